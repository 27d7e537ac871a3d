"""The stage `cast`: float16 or bfloat16 wherever the operators allow it, with Casts at the boundaries only.

TensorRT builds strongly typed networks: the types are those of the ONNX. What may be low is read from the operators'
own schemas, and what comes out is asked of ONNX's type inference, so that no table of operators can be out of date.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages import batches, lowering, onnx_file, onnx_graph, overflow, quantization
from stages.allowed import require, require_word
from stages.data import reading
from stages.onnx_opset import opset, raise_opset
from stages.overflow import Unsafe
from stages.stage import Job, Metrics, Stage, StageError

if TYPE_CHECKING:
    from onnx import ModelProto

PRECISIONS = {"fp16": "FLOAT16", "bf16": "BFLOAT16", "fp32": "FLOAT"}
"""What a user says, and the name of ONNX's type."""

BF16_OPSET = 22
"""Convolutions take bfloat16 from this opset on; below it they would silently stay in float32."""

QDQ_FP16_OPSET = 19
"""Q/DQ have float16 scales from here on; below, a Cast between DQ and Conv would break the INT8 kernel apart."""


@dataclass(frozen=True)
class CastConfig:
    """What becomes low.

    Attributes:
        precision: `fp16` or `bf16`; `fp32`: only what `layers` names becomes low.
        keep_io_types: Inputs and outputs stay float32.
        keep: Glob patterns of node names that stay in float32; an unnamed node goes by its first output.
        layers: Another precision for the nodes that a pattern matches: `{"*.attn.*": bf16}`.
    """

    precision: str = "fp16"
    keep_io_types: bool = True
    keep: list[str] = field(default_factory=list)
    layers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require_word(self, "precision", tuple(PRECISIONS))
        for pattern, precision in self.layers.items():
            require(precision in PRECISIONS, f"layers.{pattern}", precision, ", ".join(PRECISIONS))


def precisions(config: CastConfig) -> tuple[str, ...]:
    """What the target's GPU must be able to compute in."""
    return tuple(sorted({config.precision, *config.layers.values()}))


def cast(job: Job[CastConfig]) -> Metrics:
    """Writes the model in the lower precision.

    With calibration batches, whatever of it float16 cannot hold stays in float32 (see `stages.overflow`).

    Raises:
        StageError: A pattern without a node, two that ask different things of one node, a model whose types cannot be
            inferred, or batches that do not fit it.
    """
    config = job.config
    model = onnx_file.read(job.inputs["onnx"])
    onnx_graph.adopt_weights(model)
    onnx_graph.adopt_constants(model.graph)
    onnx_graph.sort(model.graph)
    raise_opset(model, _needed_opset(model, config))
    layers = _layers(model, config)
    unsafe, unchecked = _look(model, job)
    for label in (*unsafe.overflow, *unsafe.underflow):
        if layers.get(label, PRECISIONS[config.precision]) == "FLOAT16":
            layers[label] = "FLOAT"
    job.progress("casting", None)
    done = lowering.lower(model, PRECISIONS[config.precision], layers, config.keep_io_types)
    onnx_file.write(model, job.out / "model.onnx")
    return {
        "low": done.low,
        "kept": done.kept,
        "kept_weighted": done.kept_weighted,
        "out_of_range": done.out_of_range,
        "overflow_checked": unchecked is None,
        "overflow_unchecked_reason": unchecked,
        "overflow_samples": unsafe.samples,
        "overflow": unsafe.overflow,
        "underflow": unsafe.underflow,
        "casts": done.casts,
        "opset": opset(model),
    }


def _needed_opset(model: ModelProto, config: CastConfig) -> int:
    if "bf16" in precisions(config):
        return BF16_OPSET
    return QDQ_FP16_OPSET if quantization.is_quantized(model) else 0


def _layers(model: ModelProto, config: CastConfig) -> dict[str, str]:
    """ONNX's type for each node that the config names, by label."""
    asked = {**dict.fromkeys(config.keep, "fp32"), **config.layers}
    found: dict[str, tuple[str, str]] = {}
    for pattern, precision in asked.items():
        option = "layers" if pattern in config.layers else "keep"
        for label in onnx_graph.matching(model.graph.node, [pattern], option):
            other, before = found.setdefault(label, (pattern, precision))
            if before != precision:
                raise StageError(
                    f"{option}: {label!r} matches {other!r}, which says {before}, and {pattern!r}, which says "
                    f"{precision}",
                    "make the patterns exclude one another: their order says nothing",
                )
    return {label: PRECISIONS[precision] for label, (_, precision) in found.items()}


def _look(model: ModelProto, job: Job[CastConfig]) -> tuple[Unsafe, str | None]:
    """What float16 cannot hold of `model`, and why nobody looked; None where somebody did."""
    if "fp16" not in precisions(job.config):
        return Unsafe(), "bfloat16 and float32 have one range"
    if "calibration" not in job.inputs:
        return Unsafe(), "there are no calibration data"
    given = reading.opened(job, "calibration", batches.model_inputs(model))
    try:
        probed = overflow.Probed(model)
    except StageError as error:  # plugins, or operators that ONNX Runtime does not know: TensorRT may
        return Unsafe(), error.what
    unsafe = Unsafe()
    for batch in given:
        probed.look(batch, unsafe)
        job.progress("looking for overflow", given.share(unsafe.samples))
    return unsafe, None


STAGE = Stage(
    name="cast",
    version=3,
    config=CastConfig,
    run=cast,
    inputs=("onnx",),
    optional=("calibration", "calibration_source"),
    facts_when=lambda config: ("calibration",) if "fp16" in precisions(config) else (),
    outputs={"onnx": "model.onnx"},
    tools=("onnx", "onnxruntime", "numpy"),
    precisions=precisions,
    keeps_fp32=lambda config: False,
)
