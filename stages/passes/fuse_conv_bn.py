"""Conv + BatchNormalization = Conv: at inference a batch normalization is one scale and one shift per channel.

y = (conv(x, W) + b - mean) * s + beta with s = gamma / sqrt(var + epsilon) per output channel, so W' = W * s and
b' = (b - mean) * s + beta. It is done before quantization, so that the scales are those of the weights that run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages import onnx_data, onnx_graph
from stages.onnx_opset import opset
from stages.passes.contract import NoOptions, Pass
from stages.stage import Metrics

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from onnx import ModelProto, NodeProto, TensorProto

    Array = npt.NDArray[np.float64]

OLDEST_OPSET = 7
"""Before it, BatchNormalization had a training flag of its own (`is_test`)."""


def fuse_conv_bn(model: ModelProto, options: NoOptions) -> Metrics:
    """Fuses each BatchNormalization into the Conv or ConvTranspose before it.

    Both have constant parameters; nothing but the BatchNormalization reads what the convolution gives, and the model
    does not return it. The new weights get new names: others may share the old ones.
    """
    if opset(model) < OLDEST_OPSET:
        return {"fused": 0}
    graph = model.graph
    readers, makers, known = onnx_graph.consumers(graph), onnx_graph.producers(graph), onnx_graph.constants(graph)
    returned = {value.name for value in graph.output}
    taken, gone = onnx_graph.names(graph), {}  # the nodes by id, held so that an id stays theirs
    for norm in graph.node:
        conv = makers.get(norm.input[0]) if _is_inference_norm(norm) else None
        if conv is None or len(readers[norm.input[0]]) > 1 or norm.input[0] in returned or not is_conv(conv):
            continue
        fused = _fused_weights(conv, norm, known)
        if fused is None:
            continue
        tensors = [tensor(array, known[conv.input[1]], taken) for array in fused]
        graph.initializer.extend(tensors)
        conv.input[:] = [conv.input[0], *(tensor.name for tensor in tensors)]
        conv.output[0] = norm.output[0]
        makers[norm.output[0]] = conv
        gone[id(norm)] = norm
    onnx_graph.replace_nodes(graph, [node for node in graph.node if id(node) not in gone])
    return {"fused": len(gone)}


def is_conv(node: NodeProto) -> bool:
    """Whether it is one of ONNX's own convolutions."""
    return node.op_type in ("Conv", "ConvTranspose") and node.domain in ("", "ai.onnx")


def _is_inference_norm(node: NodeProto) -> bool:
    if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
        return False
    settings = {attribute.name: attribute.i for attribute in node.attribute}
    trains = settings.get("training_mode", 0) or not settings.get("spatial", 1)
    return not trains and not any(node.output[1:])


def _fused_weights(conv: NodeProto, norm: NodeProto, known: dict[str, TensorProto]) -> tuple[Array, Array] | None:
    """The weight and bias of both together, in float64; None where a parameter is not constant or not finite."""
    import numpy as np

    parameters = [name for name in [*conv.input[1:], *norm.input[1:]] if name]
    if any(name not in known for name in parameters):
        return None

    def value(name: str) -> Array:
        return onnx_data.array(known[name]).astype(np.float64)

    gamma, beta, mean, variance = (value(name) for name in norm.input[1:5])
    weight = value(conv.input[1])
    bias = value(conv.input[2]) if len(conv.input) > 2 and conv.input[2] else np.zeros_like(mean)
    epsilon = next((a.f for a in norm.attribute if a.name == "epsilon"), 1e-5)
    with np.errstate(invalid="ignore", divide="ignore"):
        scale = gamma / np.sqrt(variance + epsilon)
    fused = scaled(conv, weight, scale), (bias - mean) * scale + beta
    largest = np.finfo(str(onnx_data.array(known[conv.input[1]]).dtype)).max
    return fused if all(np.abs(array).max(initial=0) <= largest for array in fused) else None


def scaled(conv: NodeProto, weight: Array, scale: Array) -> Array:
    """`weight` times `scale` per output channel: Conv (M, C/group, …), ConvTranspose (C, M/group, …)."""
    if conv.op_type == "Conv":
        return weight * scale.reshape(-1, *[1] * (weight.ndim - 1))
    group = next((a.i for a in conv.attribute if a.name == "group"), 1)
    grouped = weight.reshape(group, -1, *weight.shape[1:])
    return (grouped * scale.reshape(group, 1, -1, *[1] * (weight.ndim - 2))).reshape(weight.shape)


def tensor(array: Array, like: TensorProto, taken: set[str]) -> TensorProto:
    """The weight or bias that takes the place of `like`, in its type, under a name of its own."""
    from onnx import helper, numpy_helper

    name = onnx_graph.fresh(f"{like.name}_fused" if array.ndim > 1 else f"{like.name}_fused_bias", taken)
    return numpy_helper.from_array(array.astype(helper.tensor_dtype_to_np_dtype(like.data_type)), name)


PASS = Pass("fuse_conv_bn", NoOptions, fuse_conv_bn)
