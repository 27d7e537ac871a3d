"""The stage `modelopt_quantize`: NVIDIA's modelopt places Q/DQ and finds the ranges, to compare with `quantize`.

It takes the place of `quantize` in a flow: `steps.quantize.stage=modelopt_quantize`. What follows, validation too, is
the same. modelopt changes ONNX Runtime for the whole process it runs in; a step has one of its own.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stages import batches, onnx_file, onnx_graph, quantization
from stages.allowed import require_word
from stages.data import reading
from stages.onnx_opset import opset, raise_opset
from stages.quantize import PRECISIONS
from stages.stage import Job, Metrics, Stage, StageError
from stages.wording import first_line

if TYPE_CHECKING:
    from onnx import ModelProto

    from stages.batches import Batch

NEEDED = ("modelopt", "onnxslim", "lief", "torch")
"""Without these `modelopt.onnx.quantization` does not import; modelopt's own extra `onnx` would replace onnxruntime."""


@dataclass(frozen=True)
class ModeloptQuantizeConfig:
    """How modelopt quantizes.

    Attributes:
        precision: `int8`, or `fp8` (E4M3).
        method: How ranges are found: `entropy`, modelopt's default, or `max`.
        attention: `none`, or `qk_pv`: modelopt may quantize the matrix products of attention, too.
        skip: Glob patterns of node names that stay in float; an unnamed node goes by its first output.
    """

    precision: str = "int8"
    method: str = "entropy"
    attention: str = "none"
    skip: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_word(self, "precision", tuple(PRECISIONS))
        require_word(self, "method", ("entropy", "max"))
        require_word(self, "attention", quantization.ATTENTION)


def modelopt_quantize(job: Job[ModeloptQuantizeConfig]) -> Metrics:
    """Writes the model with Q/DQ as modelopt makes it.

    Raises:
        StageError: modelopt is not installed or fails, the data do not fit, or nothing was quantized.
    """
    _require_installed()
    model = onnx_file.read(job.inputs["onnx"])
    onnx_graph.adopt_weights(model)
    if quantization.is_quantized(model):
        raise quantization.nothing_to_quantize(model)
    raise_opset(model, PRECISIONS[job.config.precision].opset)
    skipped = onnx_graph.matching(model.graph.node, job.config.skip, "skip")
    for node in model.graph.node:
        node.name = onnx_graph.label(node)  # modelopt knows nodes by their names only
    given = reading.opened(job, "calibration", batches.model_inputs(model))
    counted = _Counted(job, given)
    with TemporaryDirectory(dir=job.out) as scratch:
        result = _quantized(model, job.config, skipped, counted, Path(scratch))
        if not quantization.is_quantized(result):
            raise StageError("modelopt quantized nothing", "compare with stage quantize, or skip fewer nodes")
        onnx_file.write(result, job.out / STAGE.outputs["onnx"])
    return {
        "precision": job.config.precision,
        "method": job.config.method,
        "inputs": given.kind,
        "samples": counted.samples,
        "batches": counted.batches,
        "ranges": "not used: modelopt finds its own" if job.inputs.get("ranges") else None,
        "qdq_pairs": sum(node.op_type == "DequantizeLinear" for node in result.graph.node),
        "skipped": sorted(skipped),
        "opset": opset(result),
    }


def _require_installed() -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise StageError(
            f"modelopt_quantize needs packages that are not installed: {', '.join(missing)}",
            "pip install 'trtforge[modelopt]', or use our own: steps.quantize.stage=quantize",
        )


class _Counted:
    """The batches one by one, counted and reported as they are taken."""

    def __init__(self, job: Job[ModeloptQuantizeConfig], given: reading.Batches) -> None:
        self._job, self._given = job, given
        self.rewind()

    def rewind(self) -> None:
        """Starts again from the first batch."""
        self.samples = self.batches = 0
        self._left: Iterator[Batch] = iter(self._given)

    def take(self) -> Batch | None:
        """The next batch; None after the last."""
        batch = next(self._left, None)
        if batch is not None:
            self.samples += batches.size(batch)
            self.batches += 1
            self._job.progress("calibrating with modelopt", self._given.share(self.samples))
        return batch


def _quantized(
    model: ModelProto, config: ModeloptQuantizeConfig, skipped: set[str], counted: _Counted, scratch: Path
) -> ModelProto:
    """What modelopt makes of `model`, which goes through files: it takes nothing else."""
    onnx_file.write(model, scratch / "given.onnx")
    try:
        from modelopt.onnx.quantization import quantize

        quantize(
            str(scratch / "given.onnx"),
            quantize_mode=config.precision,
            calibration_data_reader=_reader(counted),
            calibration_method=config.method,
            calibration_eps=["cpu"],
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in sorted(skipped)],  # modelopt takes patterns
            disable_mha_qdq=config.attention == "none",
            high_precision_dtype="fp32",
            output_path=str(scratch / "made.onnx"),
            log_level="ERROR",
        )
        return onnx_file.read(scratch / "made.onnx")
    except StageError:
        raise
    except Exception as error:  # modelopt's errors have no common base
        raise StageError(
            f"modelopt fails: {type(error).__name__}: {first_line(error)}",
            "use our own: steps.quantize.stage=quantize",
        ) from error


def _reader(counted: _Counted) -> Any:
    """`counted` as ONNX Runtime's calibration reads it."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> Batch | None:
            return counted.take()

        def get_first(self) -> Batch | None:
            first = counted.take()
            counted.rewind()
            return first

        def rewind(self) -> None:
            counted.rewind()

    return Reader()


STAGE = Stage(
    name="modelopt_quantize",
    version=1,
    config=ModeloptQuantizeConfig,
    run=modelopt_quantize,
    inputs=("onnx", "calibration"),
    optional=("ranges", "calibration_source"),
    outputs={"onnx": "model.onnx"},
    facts=("calibration",),
    tools=("nvidia-modelopt", "onnxslim", "onnx", "onnxruntime", "numpy"),
)
