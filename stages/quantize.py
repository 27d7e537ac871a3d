"""The stage `quantize`: Q/DQ nodes around what TensorRT shall run in INT8.

INT8, symmetric, zero point 0: one scale for an activation (its calibrated range), one for each output channel of a
weight (its largest magnitude). Weights stay in float before their Q, so that a retrained model can still be refitted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from stages import onnx_file, onnx_graph, onnx_shapes, quantization, tensor_ranges
from stages.onnx_opset import opset, raise_opset
from stages.quantization import Placement, Read
from stages.stage import Job, Metrics, Stage, StageError
from stages.thresholds import LEVELS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from onnx import ModelProto, NodeProto, TensorProto

    Floats: TypeAlias = npt.NDArray[np.float64]

PER_CHANNEL_OPSET, LOW_FLOAT_OPSET = 13, 19
"""The first opsets whose QuantizeLinear has an axis, and scales in float16 and bfloat16."""


@dataclass(frozen=True)
class QuantizeConfig:
    """What stays in float.

    Attributes:
        skip: Glob patterns of node names that stay in float; an unnamed node goes by its first output.
    """

    skip: list[str] = field(default_factory=list)


def quantize(job: Job[QuantizeConfig]) -> Metrics:
    """Writes the model with Q/DQ.

    Raises:
        StageError: Nothing to quantize, Q/DQ already there, or ranges of another model.
    """
    model = onnx_file.read(job.inputs["onnx"])
    prepare(model)
    skipped = onnx_graph.matching(model.graph.node, job.config.skip, "skip")
    placement = quantization.place(model, skipped)
    if not placement.reads:
        raise StageError(f"skip leaves nothing to quantize: {', '.join(job.config.skip)}", "skip fewer nodes")
    ranges = tensor_ranges.read(job.file("ranges"))
    tensor_ranges.require_match(
        ranges, placement.activations, onnx_graph.names(model.graph), "calibrate the same file that is quantized"
    )
    job.progress("inserting Q/DQ", 0.5)
    pairs = insert(model, placement, {name: found.amax for name, found in ranges.items()})
    onnx_file.write(model, job.out / "model.onnx")
    return {
        "qdq_pairs": pairs,
        "weighted": len(placement.weighted),
        "quantized": len(placement.quantized),
        "in_float": sorted(set(placement.weighted) - set(placement.quantized) - skipped),
        "skipped": sorted(skipped),
        "opset": opset(model),
    }


def prepare(model: ModelProto) -> None:
    """Brings `model` to where Q/DQ can go in: weights are initializers, and the opset has them.

    Raises:
        StageError: Nothing to quantize, or Q/DQ already there.
    """
    onnx_graph.adopt_weights(model)
    if quantization.is_quantized(model) or not quantization.place(model).reads:
        raise quantization.nothing_to_quantize(model)
    onnx_graph.adopt_constants(model.graph)
    raise_opset(model, _needed_opset(model))


def _needed_opset(model: ModelProto) -> int:
    from onnx import TensorProto

    low = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return LOW_FLOAT_OPSET if any(t.data_type in low for t in model.graph.initializer) else PER_CHANNEL_OPSET


def insert(model: ModelProto, placement: Placement, ranges: Mapping[str, float]) -> int:
    """Inserts a pair for each tensor (and axis), makes its readers read it, and says how many pairs there are.

    Args:
        model: As `prepare` left it.
        placement: Where, in this model.
        ranges: The amax of each activation.
    """
    graph, kinds = model.graph, _float_types(model)
    weights, taken = onnx_graph.constants(graph), onnx_graph.names(graph)
    fallback = next(weights[read.tensor].data_type for read in placement.reads if read.axis is not None)
    pairs: dict[tuple[str, int | None], list[NodeProto]] = {}
    zeros: dict[int, str] = {}
    for read in placement.reads:
        if (read.tensor, read.axis) not in pairs:
            kind = kinds.get(read.tensor, fallback)
            amax = _channel_amax(weights[read.tensor], read.axis) if read.axis is not None else ranges[read.tensor]
            scale = scale_of(amax, kind, onnx_graph.fresh(f"{read.tensor}_scale", taken))
            graph.initializer.append(scale)
            zero = _zero_point(model, scale.dims[0] if scale.dims else 0, zeros, taken)
            pairs[read.tensor, read.axis] = _pair(read, scale.name, zero, taken)
        graph.node[read.node].input[read.input] = pairs[read.tensor, read.axis][1].output[0]
    inserted = [node for pair in pairs.values() for node in pair]
    onnx_graph.replace_nodes(graph, [*inserted, *graph.node])
    onnx_graph.sort(graph)  # each pair moves behind the node that makes its tensor
    return len(pairs)


def _float_types(model: ModelProto) -> dict[str, int]:
    try:
        types = onnx_shapes.tensor_types(onnx_shapes.infer(model))
    except Exception as error:  # C++ raises InferenceError, RuntimeError and others
        raise StageError(
            f"the types of the model's tensors cannot be inferred: {onnx_graph.first_line(error)}",
            "check the model: python -m onnx.checker",
        ) from error
    return {name: found.tensor_type.elem_type for name, found in types.items() if found.tensor_type.elem_type}


def _channel_amax(weight: TensorProto, axis: int) -> Floats:
    """The largest magnitude of each channel of `weight`, (channels,)."""
    import numpy as np

    array = onnx_file.array(weight)
    others = tuple(d for d in range(array.ndim) if d != axis)
    # The magnitudes themselves would take as much memory as the weight, or twice as much in float64.
    largest, smallest = (np.asarray(found, np.float64) for found in (array.max(axis=others), array.min(axis=others)))
    return np.maximum(largest, -smallest)


def scale_of(amax: Floats | float, kind: int, name: str) -> TensorProto:
    """The scale amax / 127 in the float type `kind`, shape () or (channels,), and always positive.

    A channel of zeros gets 1 / 127: TensorRT refuses a scale of 0. One that float16 would round to 0 gets float16's
    smallest normal number.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    wide = np.where(np.asarray(amax) > 0, amax, 1.0) / LEVELS
    scale = np.asarray(wide.astype(helper.tensor_dtype_to_np_dtype(kind)))
    return numpy_helper.from_array(np.where(scale > 0, scale, np.asarray(6.2e-5, scale.dtype)), name)


def _zero_point(model: ModelProto, channels: int, zeros: dict[int, str], taken: set[str]) -> str:
    """The name of the INT8 zero point of shape () or (channels,); without one, ONNX would quantize to UINT8."""
    import numpy as np
    from onnx import numpy_helper

    if channels not in zeros:
        zeros[channels] = onnx_graph.fresh(f"zero_point_{channels}" if channels else "zero_point", taken)
        value = np.zeros([channels] if channels else [], np.int8)
        model.graph.initializer.append(numpy_helper.from_array(value, zeros[channels]))
    return zeros[channels]


def _pair(read: Read, scale: str, zero: str, taken: set[str]) -> list[NodeProto]:
    """QuantizeLinear and DequantizeLinear of the tensor of `read`."""
    from onnx import helper

    codes, result = (onnx_graph.fresh(f"{read.tensor}_{what}", taken) for what in ("quantized", "dequantized"))
    pair = [
        helper.make_node("QuantizeLinear", [read.tensor, scale, zero], [codes], codes),
        helper.make_node("DequantizeLinear", [codes, scale, zero], [result], result),
    ]
    for node in pair if read.axis is not None else []:
        node.attribute.append(helper.make_attribute("axis", read.axis))
    return pair


STAGE = Stage(
    name="quantize",
    version=2,
    config=QuantizeConfig,
    run=quantize,
    inputs=("onnx", "ranges"),
    outputs={"onnx": "model.onnx"},
    tools=("onnx", "numpy"),
)
