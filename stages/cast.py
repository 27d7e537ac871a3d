"""The stage `cast`: float16 or bfloat16 wherever the operators allow it, with Casts at the boundaries only.

TensorRT builds strongly typed networks: the types are those of the ONNX. What may be low is read from the operators'
own schemas, and what comes out is asked of ONNX's type inference, so that no table of operators can be out of date.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages import lowering, onnx_file, onnx_graph, quantization
from stages.allowed import require_word
from stages.onnx_opset import opset, raise_opset
from stages.stage import Job, Metrics, Stage

if TYPE_CHECKING:
    from onnx import ModelProto

PRECISIONS = {"fp16": "FLOAT16", "bf16": "BFLOAT16"}
"""What a user says, and the name of ONNX's type."""

BF16_OPSET = 22
"""Convolutions take bfloat16 from this opset on; below it they would silently stay in float32."""

QDQ_FP16_OPSET = 19
"""Q/DQ have float16 scales from here on; below, a Cast between DQ and Conv would break the INT8 kernel apart."""


@dataclass(frozen=True)
class CastConfig:
    """What becomes low.

    Attributes:
        precision: `fp16` or `bf16`.
        keep_io_types: Inputs and outputs stay float32.
        keep: Glob patterns of node names that stay in float32; an unnamed node goes by its first output.
    """

    precision: str = "fp16"
    keep_io_types: bool = True
    keep: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_word(self, "precision", tuple(PRECISIONS))


def cast(job: Job[CastConfig]) -> Metrics:
    """Writes the model in the lower precision.

    Raises:
        StageError: A pattern without a node, or a model whose types cannot be inferred.
    """
    config = job.config
    model = onnx_file.read(job.inputs["onnx"])
    onnx_graph.adopt_weights(model)
    onnx_graph.adopt_constants(model.graph)
    onnx_graph.sort(model.graph)
    raise_opset(model, _needed_opset(model, config.precision))
    kept = onnx_graph.matching(model.graph.node, config.keep, "keep")
    job.progress("casting", 0.5)
    done = lowering.lower(model, PRECISIONS[config.precision], keep=kept, keep_io_types=config.keep_io_types)
    onnx_file.write(model, job.out / "model.onnx")
    return {
        "low": done.low,
        "kept": done.kept,
        "kept_weighted": done.kept_weighted,
        "out_of_range": done.out_of_range,
        "casts": done.casts,
        "opset": opset(model),
    }


def _needed_opset(model: ModelProto, precision: str) -> int:
    if precision == "bf16":
        return BF16_OPSET
    return QDQ_FP16_OPSET if quantization.is_quantized(model) else 0


STAGE = Stage(
    name="cast",
    version=2,
    config=CastConfig,
    run=cast,
    inputs=("onnx",),
    outputs={"onnx": "model.onnx"},
    tools=("onnx", "numpy"),
)
