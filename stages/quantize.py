"""The stage `quantize`: Q/DQ nodes around what TensorRT shall run in INT8 or FP8.

Symmetric, zero point 0: one scale for an activation (its calibrated range), one for each output channel of a weight
(its largest magnitude). Weights stay in float before their Q, so that a retrained model can still be refitted. Where
the pairs go is `stages/quantization.py`'s to say.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

from stages import onnx_file, onnx_graph, onnx_shapes, quantization, sensitivity_table, tensor_ranges
from stages.allowed import require, require_at_least, require_word
from stages.onnx_opset import opset, raise_opset
from stages.placement.contract import Placement, Read
from stages.placement.weighted import WEIGHTED
from stages.stage import Job, Metrics, Stage, StageError
from stages.thresholds import LEVELS
from stages.wording import first_line

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from onnx import ModelProto, NodeProto, TensorProto

    Floats: TypeAlias = npt.NDArray[np.float64]

LOW_FLOAT_OPSET = 19
"""The first opset whose QuantizeLinear has scales in float16 and bfloat16."""


@dataclass(frozen=True)
class Format:
    """What QuantizeLinear gives.

    Attributes:
        largest: The magnitude that the amax of a tensor becomes.
        zero: ONNX's name of the type, which is that of the zero point.
        opset: The first whose QuantizeLinear gives this type, with one scale a channel.
    """

    largest: int
    zero: str
    opset: int


PRECISIONS: Mapping[str, Format] = {
    "int8": Format(LEVELS, "INT8", 13),
    "fp8": Format(448, "FLOAT8E4M3FN", 19),  # OFP8 E4M3: S.1111.110 is 448, the largest finite value
}


FP8_MOST_PLACES = 32
"""TensorRT-RTX 1.7.1 has no FP8 convolution whose kernel has more places: 4 x 8 reads FP8, 3 x 11 and 7 x 7 floats."""


AUTO = "auto"
"""What `skip` says where the layers that stay in float are looked for."""


@dataclass(frozen=True)
class QuantizeConfig:
    """How, and what stays in float.

    Attributes:
        precision: `int8`, or `fp8` (E4M3).
        attention: `none`, or `qk_pv`: the two matrix products of attention are quantized, too. Calibration must have
            seen their inputs.
        skip: Glob patterns of node names that stay in float; an unnamed node goes by its first output. `auto`: as few
            layers as let the gates hold, the most sensitive first; the flow gets the steps that find them.
        only: Glob patterns of the convolutions and matrix products that are quantized; none: all.
        skip_ops: Operators that stay in float, such as `ConvTranspose`, or `Add` for the shortcuts.
        only_ops: Those of Conv, ConvTranspose, Gemm, MatMul that are quantized; none: all.
        skip_sensitive: So many layers stay in float: those that lower the SQNR most, by the table of `sensitivity`.
        min_sqnr_db: Layers that alone bring the SQNR below this stay in float, by the same table; null: none.
    """

    precision: str = "int8"
    attention: str = "none"
    skip: Any = field(default_factory=list)
    only: list[str] = field(default_factory=list)
    skip_ops: list[str] = field(default_factory=list)
    only_ops: list[str] = field(default_factory=list)
    skip_sensitive: int = 0
    min_sqnr_db: float | None = None

    def __post_init__(self) -> None:
        require_word(self, "precision", tuple(PRECISIONS))
        require_word(self, "attention", quantization.ATTENTION)
        for operator in self.only_ops:
            require(operator in WEIGHTED, "only_ops", operator, ", ".join(WEIGHTED))
        require_at_least(self, 0, "skip_sensitive")
        require_patterns_or_auto(self.skip)


def require_patterns_or_auto(skip: object) -> None:
    """Holds the option `skip` to a list of patterns, or the word `auto`.

    Raises:
        NotAllowedError: It is neither.
    """
    patterns = isinstance(skip, list) and all(isinstance(pattern, str) for pattern in skip)
    require(patterns or skip == AUTO, "skip", skip, f"a list of patterns, or {AUTO}")


def quantize(job: Job[QuantizeConfig]) -> Metrics:
    """Writes the model with Q/DQ.

    Raises:
        StageError: Nothing to quantize, Q/DQ already there, or ranges of another model.
    """
    config = job.config
    model = onnx_file.read(job.inputs["onnx"])
    prepare(model, config.precision)
    skipped = in_float(model, config) | _sensitive(job, model) | _found(job)
    placement = quantization.place(model, skipped, config.attention)
    if not placement.reads:
        raise StageError(f"{_choice(config)} leaves nothing to quantize", "keep fewer nodes in float")
    ranges = tensor_ranges.read(job.file("ranges"))
    tensor_ranges.require_match(
        ranges,
        placement.activations,
        onnx_graph.names(model.graph),
        "calibrate the same file that is quantized (not refit.ranges=keep), with the same attention: "
        "steps.calibrate.config.attention",
    )
    job.progress("inserting Q/DQ", 0.5)
    adds = sum(model.graph.node[read.node].op_type == "Add" for read in placement.reads)
    pairs = insert(model, placement, {name: found.amax for name, found in ranges.items()}, config.precision)
    onnx_file.write(model, job.out / "model.onnx")
    return {
        "precision": config.precision,
        "qdq_pairs": pairs,
        "weighted": len(placement.weighted),
        "quantized": len(placement.quantized),
        "residual_adds": adds,
        "shared_scales": [list(group) for group in placement.shared],
        "in_float": sorted(set(placement.weighted) - set(placement.quantized) - skipped),
        "skipped": sorted(skipped),
        "opset": opset(model),
    }


def in_float(model: ModelProto, config: QuantizeConfig) -> set[str]:
    """The labels of the nodes that the config's names and operators keep in float, and its precision.

    Raises:
        StageError: A pattern or an operator that the model does not have.
    """
    nodes = model.graph.node
    weighted = {onnx_graph.label(node): node.op_type for node in nodes if node.op_type in WEIGHTED}
    found = set() if config.skip == AUTO else onnx_graph.matching(nodes, config.skip, "skip")
    if config.only:
        found |= weighted.keys() - onnx_graph.matching(nodes, config.only, "only")
    for option, operators in (("skip_ops", config.skip_ops), ("only_ops", config.only_ops)):
        for operator in operators:
            onnx_graph.require_known(operator, {node.op_type for node in nodes}, option, "operator")
    found |= {onnx_graph.label(node) for node in nodes if node.op_type in config.skip_ops}
    if config.only_ops:
        found |= {name for name, operator in weighted.items() if operator not in config.only_ops}
    if config.precision == "fp8":
        shapes = {name: tensor.dims for name, tensor in onnx_graph.constants(model.graph).items()}
        convolutions = [node for node in nodes if node.op_type == "Conv"]
        found |= {
            onnx_graph.label(node) for node in convolutions if prod(shapes.get(node.input[1], ())[2:]) > FP8_MOST_PLACES
        }
    return found


def _choice(config: QuantizeConfig) -> str:
    """The options that keep nodes in float, as the config has them."""
    names = ("skip", "only", "skip_ops", "only_ops", "skip_sensitive", "min_sqnr_db")
    given = {name: getattr(config, name) for name in names}
    return ", ".join(f"{name} {value}" for name, value in given.items() if value) or f"precision {config.precision}"


def _sensitive(job: Job[QuantizeConfig], model: ModelProto) -> set[str]:
    """The layers that the table keeps in float.

    Raises:
        StageError: They are asked for, and there is no table, or one of another model.
    """
    config = job.config
    if not config.skip_sensitive and config.min_sqnr_db is None:
        return set()
    if not job.inputs.get("sensitivity"):
        raise StageError(
            "quantize: skip_sensitive and min_sqnr_db need to know how sensitive each layer is",
            "add a step of stage sensitivity, and give steps.quantize.inputs.sensitivity=STEP.sensitivity",
        )
    table = sensitivity_table.read(job.file("sensitivity"))
    sensitivity_table.require_layers(table, {onnx_graph.label(node) for node in model.graph.node})
    return set(sensitivity_table.worst(table, config.skip_sensitive, config.min_sqnr_db))


def _found(job: Job[QuantizeConfig]) -> set[str]:
    """The layers that the stage `keep_float` has found.

    Raises:
        StageError: They are asked for, and are not given.
    """
    if job.config.skip != AUTO:
        return set()
    if not job.inputs.get("float_layers"):
        raise StageError(
            "quantize: skip=auto, and nobody has looked for the layers that stay in float",
            "add a step of stage keep_float, and give steps.quantize.inputs.float_layers=STEP.layers",
        )
    path = job.file("float_layers")
    try:
        layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
        return {str(layer) for layer in layers}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StageError(
            f"{path}: not the layers that stay in float: {error!r}",
            "give a float_layers.json as the stage keep_float writes it",
        ) from error


def prepare(model: ModelProto, precision: str = "int8") -> None:
    """Brings `model` to where Q/DQ can go in: weights are initializers, and the opset has them.

    Raises:
        StageError: Nothing to quantize, or Q/DQ already there.
    """
    onnx_graph.adopt_weights(model)
    if quantization.is_quantized(model) or not quantization.place(model).reads:
        raise quantization.nothing_to_quantize(model)
    onnx_graph.adopt_constants(model.graph)
    raise_opset(model, max(PRECISIONS[precision].opset, _low_opset(model)))


def _low_opset(model: ModelProto) -> int:
    from onnx import TensorProto

    low = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return LOW_FLOAT_OPSET if any(t.data_type in low for t in model.graph.initializer) else 0


def insert(model: ModelProto, placement: Placement, ranges: Mapping[str, float], precision: str = "int8") -> int:
    """Inserts a pair for each tensor (and axis), makes its readers read it, and says how many pairs there are.

    Args:
        model: As `prepare` left it.
        placement: Where, in this model.
        ranges: The amax of each activation; those that share a scale get the largest of them.
        precision: One of `PRECISIONS`.
    """
    graph, kinds, form = model.graph, _float_types(model), PRECISIONS[precision]
    weights, taken, amaxes = onnx_graph.constants(graph), onnx_graph.names(graph), placement.unified(ranges)
    fallback = next((weights[read.tensor].data_type for read in placement.reads if read.axis is not None), 1)
    pairs: dict[tuple[str, int | None], list[NodeProto]] = {}
    zeros: dict[int, str] = {}
    for read in placement.reads:
        if (read.tensor, read.axis) not in pairs:
            kind = kinds.get(read.tensor, fallback)
            amax = _channel_amax(weights[read.tensor], read.axis) if read.axis is not None else amaxes[read.tensor]
            scale = scale_of(amax, kind, onnx_graph.fresh(f"{read.tensor}_scale", taken), precision)
            graph.initializer.append(scale)
            zero = _zero_point(model, scale.dims[0] if scale.dims else 0, form, zeros, taken)
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
            f"the types of the model's tensors cannot be inferred: {first_line(error)}",
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


def scale_of(amax: Floats | float, kind: int, name: str, precision: str = "int8") -> TensorProto:
    """The scale amax / 127 (FP8: / 448) in the float type `kind`, shape () or (channels,), and always positive.

    A channel of zeros gets the scale of amax 1: TensorRT refuses a scale of 0. One that float16 would round to 0 gets
    float16's smallest normal number.
    """
    import numpy as np
    from onnx import helper, numpy_helper

    wide = np.where(np.asarray(amax) > 0, amax, 1.0) / PRECISIONS[precision].largest
    scale = np.asarray(wide.astype(helper.tensor_dtype_to_np_dtype(kind)))
    return numpy_helper.from_array(np.where(scale > 0, scale, np.asarray(6.2e-5, scale.dtype)), name)


def _zero_point(model: ModelProto, channels: int, form: Format, zeros: dict[int, str], taken: set[str]) -> str:
    """The name of the zero point of shape () or (channels,); without one, ONNX would quantize to UINT8."""
    from onnx import TensorProto

    if channels not in zeros:
        zeros[channels] = onnx_graph.fresh(f"zero_point_{channels}" if channels else "zero_point", taken)
        kind = TensorProto.DataType.Value(form.zero)
        dims, raw = ([channels] if channels else []), bytes(channels or 1)  # 0 is one zero byte in both types
        model.graph.initializer.append(TensorProto(name=zeros[channels], data_type=kind, dims=dims, raw_data=raw))
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
    version=4,
    config=QuantizeConfig,
    run=quantize,
    inputs=("onnx", "ranges"),
    optional=("sensitivity", "float_layers"),
    outputs={"onnx": "model.onnx"},
    tools=("onnx", "numpy"),
    precisions=lambda config: (config.precision,),
)
