"""Conv followed by Mul or Add with one constant per channel = Conv: the weights and the bias take them up.

conv(x, W) + b, times s, is conv(x, W * s) + b * s; plus t it is conv(x, W) + (b + t), s and t per output channel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages import onnx_data, onnx_graph
from stages.passes.contract import NoOptions, Pass
from stages.passes.fuse_conv_bn import is_conv, scaled, tensor
from stages.stage import Metrics

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from onnx import ModelProto, NodeProto, TensorProto

    Array = npt.NDArray[np.float64]


def fuse_conv_scale(model: ModelProto, options: NoOptions) -> Metrics:
    """Fuses each such Mul and Add, chains of them too.

    Nothing but the Mul or Add reads what the convolution gives, and the model does not return it.
    """
    graph = model.graph
    readers, makers, known = onnx_graph.consumers(graph), onnx_graph.producers(graph), onnx_graph.constants(graph)
    returned = {value.name for value in graph.output}
    taken, gone = onnx_graph.names(graph), {}  # the nodes by id, held so that an id stays theirs
    for node in graph.node:
        conv, constant = _operands(node, makers, known)
        if conv is None or constant is None or len(readers[conv.output[0]]) > 1 or conv.output[0] in returned:
            continue
        fused = _fused(conv, node.op_type, constant, known)
        if fused is None:
            continue
        made = [tensor(array, known[conv.input[1]], taken) for array in fused]
        graph.initializer.extend(made)
        known.update({each.name: each for each in made})
        conv.input[:] = [conv.input[0], *(each.name for each in made)]
        conv.output[0] = node.output[0]
        makers[node.output[0]] = conv
        gone[id(node)] = node
    onnx_graph.replace_nodes(graph, [node for node in graph.node if id(node) not in gone])
    onnx_graph.drop_stale_values(graph)
    return {"fused": len(gone)}


def _operands(
    node: NodeProto, makers: dict[str, NodeProto], known: dict[str, TensorProto]
) -> tuple[NodeProto | None, TensorProto | None]:
    if node.op_type not in ("Mul", "Add") or node.domain not in ("", "ai.onnx"):
        return None, None
    for name, other in (tuple(node.input), tuple(node.input)[::-1]):
        conv = makers.get(name)
        if conv is not None and is_conv(conv) and other in known:
            return conv, known[other]
    return None, None


def _fused(
    conv: NodeProto, op_type: str, constant: TensorProto, known: dict[str, TensorProto]
) -> tuple[Array, Array] | None:
    """The new weight and bias, in float64; None where one is not constant or finite, or not per channel."""
    import numpy as np

    if any(name not in known for name in conv.input[1:] if name):
        return None
    stored = onnx_data.array(known[conv.input[1]])
    weight = stored.astype(np.float64)
    group = next((attribute.i for attribute in conv.attribute if attribute.name == "group"), 1)
    channels = weight.shape[0] if conv.op_type == "Conv" else weight.shape[1] * group
    values = onnx_data.array(constant).astype(np.float64)
    along = _per_channel(values, channels, weight.ndim)
    if along is None:
        return None
    has_bias = len(conv.input) > 2 and conv.input[2]
    bias = onnx_data.array(known[conv.input[2]]).astype(np.float64) if has_bias else np.zeros(channels)
    fused = (scaled(conv, weight, along), bias * along) if op_type == "Mul" else (weight, bias + along)
    largest = np.finfo(str(stored.dtype)).max
    return fused if all(np.abs(array).max(initial=0) <= largest for array in fused) else None


def _per_channel(values: Array, channels: int, rank: int) -> Array | None:
    """`values`, which are broadcast against (N, channels, …) of `rank` dims, as (channels,); None where they cannot."""
    import numpy as np

    shape = (1,) * (rank - values.ndim) + values.shape
    if len(shape) != rank or any(size != 1 for axis, size in enumerate(shape) if axis != 1):
        return None
    if shape[1] not in (1, channels):
        return None
    along: Array = np.broadcast_to(values.reshape(-1), (channels,))
    return along


PASS = Pass("fuse_conv_scale", NoOptions, fuse_conv_scale)
