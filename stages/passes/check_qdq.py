"""Holds the Q/DQ that a model came with to TensorRT's rules, and names the pass that mends what can be mended.

A model without Q/DQ passes. Half of what is refused here would build all the same: TensorRT-RTX 1.7 takes UINT8 codes
with zero point 0 for INT8, so that everything above 127 is cut off, and computes a convolution in float where its
weight's scales are along another axis than the output channels. A scale that is computed makes its parser crash.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from stages import onnx_graph
from stages.passes.contract import NoOptions, Pass
from stages.placement.codes import code_type, zero_point
from stages.placement.contract import View, is_onnx
from stages.placement.weighted import is_weighted, weight_read
from stages.stage import Metrics, StageError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

TYPES = ("INT8", "FLOAT8E4M3FN", "INT4", "FLOAT4E2M1")
"""What TensorRT dequantizes, by ONNX's names."""

REFUSED = (
    "ConvInteger",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "QLinearConv",
    "QLinearMatMul",
)
"""Operators on quantized tensors that TensorRT's parser does not have: it takes Q/DQ around operators in float."""

Problem = tuple[str, str]
"""What is wrong with which node, and what to do about it."""

RETRAIN = "quantize the model symmetrically: INT8 with zero point 0 (in ONNX Runtime ActivationSymmetric=True)"


def check_qdq(model: ModelProto, options: NoOptions) -> Metrics:
    """Counts the pairs.

    Raises:
        StageError: One breaks a rule; names the first node and says how many more there are.
    """
    view = View(model.graph)
    problems = [*_operators(view), *_types(view), *_axes(view)]
    if problems:
        what, next_step = problems[0]
        others = [other for other, _ in problems[1:]]
        names = ", ".join(other.split(": ")[0] for other in others[:5])
        more = f"; and {len(others)} more: {names}" if others else ""
        raise StageError(f"TensorRT does not take this model's Q/DQ: {what}{more}", next_step)
    return {
        "quantize": sum(node.op_type == "QuantizeLinear" for node in view.nodes),
        "dequantize": sum(node.op_type == "DequantizeLinear" for node in view.nodes),
    }


def _operators(view: View) -> Iterator[Problem]:
    for node in view.nodes:
        if node.op_type in REFUSED and is_onnx(node):
            yield (
                f"{_called(node)}: TensorRT has Q/DQ around operators in float instead",
                "export the model with Q/DQ (in ONNX Runtime quant_format=QuantFormat.QDQ)",
            )


def _types(view: View) -> Iterator[Problem]:
    """Problems of single nodes: type, zero point and scale."""
    for node in view.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or not is_onnx(node):
            continue
        kind, zero = code_type(view, node), zero_point(view, node)
        scale = view.constants.get(node.input[1])
        if kind == "UINT8" and is_all(zero, 128):
            yield f"{_called(node)}: its codes are UINT8 with zero point 128", _add("shift_uint8")
        elif kind == "INT32" and node.op_type == "DequantizeLinear" and node.input[0] in view.constants:
            yield f"{_called(node)}: its codes are INT32, of a bias; allowed: a float bias", _add("fold_bias_qdq")
        elif kind is not None and kind not in TYPES:
            yield f"{_called(node)}: its codes are {kind}; allowed: {', '.join(TYPES)}", RETRAIN
        elif len(node.input) > 2 and node.input[2] and not is_all(zero, 0):
            got = "computed" if zero is None else "not 0"
            yield f"{_called(node)}: its zero point is {got}; TensorRT's quantization is symmetric", RETRAIN
        elif scale is None:
            yield f"{_called(node)}: its scale is computed; TensorRT takes constant ones", "run the pass fold before"
        elif not _is_positive(scale):
            yield f"{_called(node)}: a scale is 0, negative or not finite; allowed: above 0", "quantize the model again"


def _axes(view: View) -> Iterator[Problem]:
    """Problems with scales for each channel: activations have one for the tensor, weights along the output channels."""
    wanted = _wanted_axes(view)
    for node in view.nodes:
        scale = view.constants.get(node.input[1]) if len(node.input) > 1 else None
        if node.op_type != "DequantizeLinear" or scale is None or len(scale.dims) != 1 or scale.dims[0] == 1:
            continue
        dims = _weight_dims(view, node)
        if dims is None:
            yield (
                f"{_called(node)}: an activation has {scale.dims[0]} scales; TensorRT takes one for the whole tensor",
                "quantize activations per tensor, and weights per channel",
            )
        elif wanted.get(node.output[0]) not in (None, _axis(node, len(dims))):
            yield (
                f"{_called(node)}: its scales are along axis {_axis(node, len(dims))} of the weight, the output "
                f"channels along {wanted[node.output[0]]}; TensorRT would compute in float",
                "quantize the weight along its output channels",
            )


def _wanted_axes(view: View) -> dict[str, int | None]:
    """For each dequantized weight the axis of the output channels of what reads it."""
    from onnx import TensorProto

    for node in view.nodes:
        dims = _weight_dims(view, node) if node.op_type == "DequantizeLinear" else None
        if dims is not None:  # a constant to whom the pair does not matter
            view.constants[node.output[0]] = TensorProto(dims=dims, data_type=TensorProto.FLOAT)
    found: dict[str, int | None] = {}
    for index, node in enumerate(view.nodes):
        for position in (1, 0) if is_weighted(node) else ():
            read = weight_read(view, index, position)
            if read is not None:
                found[read.tensor] = read.axis
    return found


def _weight_dims(view: View, node: NodeProto) -> list[int] | None:
    """The shape of the constant that `node` dequantizes, perhaps quantized by a node before; None for an activation."""
    name = node.input[0]
    made = view.maker(name)
    if made is not None and made[1].op_type == "QuantizeLinear":
        name = made[1].input[0]
    tensor = view.constants.get(name)
    return None if tensor is None else list(tensor.dims)


def is_all(zero: TensorProto | None, value: int) -> bool:
    """Whether every element of `zero` is `value`."""
    import numpy as np

    from stages import onnx_data

    return zero is not None and bool((onnx_data.array(zero).astype(np.float32) == value).all())


def _is_positive(scale: TensorProto) -> bool:
    import numpy as np

    from stages import onnx_data

    values = onnx_data.array(scale).astype(np.float32)
    return bool((values > 0).all() and np.isfinite(values).all())


def _axis(node: NodeProto, rank: int) -> int:
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    return axis + rank if axis < 0 else axis


def _called(node: NodeProto) -> str:
    return f"{node.op_type} {onnx_graph.label(node)!r}"


def _add(name: str) -> str:
    return f"the pass {name} mends it: steps.surgery.config.first=[{name}]"


PASS = Pass("check_qdq", NoOptions, check_qdq)
