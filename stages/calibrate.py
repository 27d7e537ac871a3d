"""The stage `calibrate`: one pass of real batches through the model, to learn the range of each tensor that gets Q/DQ.

Memory does not grow with the data, and the order of the batches does not matter. Weights need no calibration: their
ranges are computed where they are quantized.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stages import batches, onnx_file, onnx_graph, quantization
from stages.allowed import require, require_at_least, require_word
from stages.histograms import ALGORITHMS, Histogram, NotFiniteError
from stages.stage import Job, Metrics, Stage, StageError

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class CalibrateConfig:
    """How ranges are found.

    Attributes:
        batch_size: Samples per run; None: each file is one batch.
        max_samples: Use only the first so many; None: all.
        algorithm: `mse`: the range with the least squared error. `percentile`: the one that so many percent of the
            values do not exceed. `max`: the largest value.
        percentile: For `percentile`: above 0, at most 100.
    """

    batch_size: int | None = None
    max_samples: int | None = None
    algorithm: str = "mse"
    percentile: float = 99.99

    def __post_init__(self) -> None:
        require_at_least(self, 1, "batch_size", "max_samples")
        require_word(self, "algorithm", ALGORITHMS)
        require(0 < self.percentile <= 100, "percentile", self.percentile, "above 0, at most 100")


@dataclass(frozen=True)
class TensorRange:
    """What was learnt about one tensor: the range to quantize to, and the largest magnitude seen."""

    amax: float
    max: float


@dataclass
class _Seen:
    histograms: dict[str, Histogram]
    samples: int = 0
    batches: int = 0


def calibrate(job: Job[CalibrateConfig]) -> Metrics:
    """Writes the range of each activation that will carry Q/DQ.

    Raises:
        StageError: The data do not fit the model, an activation is not finite, or there is nothing to quantize.
    """
    config = job.config
    model = onnx_file.read(job.file("onnx"))
    onnx_graph.adopt_weights(model)
    tensors = quantization.place(model).activations
    if quantization.is_quantized(model) or not tensors:
        raise quantization.nothing_to_quantize(model)
    seen = _observe(model, tensors, job)
    ranges = {
        name: TensorRange(histogram.amax(config.algorithm, config.percentile), histogram.max)
        for name, histogram in seen.histograms.items()
    }
    document = {
        "algorithm": config.algorithm,
        "samples": seen.samples,
        "batches": seen.batches,
        "tensors": {name: asdict(found) for name, found in sorted(ranges.items())},
    }
    (job.out / "ranges.json").write_text(json.dumps(document, indent=1) + "\n")
    return {
        "samples": seen.samples,
        "batches": seen.batches,
        "tensors": len(ranges),
        "all_zero": sorted(name for name, found in ranges.items() if found.max == 0),
    }


def _observe(model: ModelProto, tensors: Sequence[str], job: Job[CalibrateConfig]) -> _Seen:
    """Runs every batch and counts what the tensors hold."""
    config, inputs, files = job.config, batches.model_inputs(model), job.inputs["calibration"]
    total = batches.count_samples(files, inputs, config.max_samples)
    stream = batches.read_batches(files, inputs, config.batch_size, config.max_samples)
    session = _session(model, tensors)
    computed = [name for name in tensors if name not in {i.name for i in inputs}]
    seen = _Seen({name: Histogram() for name in tensors})
    for batch in stream:
        found = {**batch, **_run(session, computed, batch, seen.batches)}
        for name, histogram in seen.histograms.items():
            try:
                histogram.add(found[name])
            except NotFiniteError as kind:
                raise StageError(
                    f"the tensor {name!r} holds {kind} in batch {seen.batches} (counted from 0): it has no range",
                    "check that batch, and that the model computes it correctly in float32",
                ) from None
        seen.samples += batches.size(batch)
        seen.batches += 1
        job.progress("calibrating", seen.samples / total)
    return seen


def _session(model: ModelProto, tensors: Sequence[str]) -> Any:
    """An ONNX Runtime session of `model` that also gives `tensors`, with every tensor as the model has it."""
    import onnxruntime as ort

    returned = {value.name for value in model.graph.output} | {value.name for value in model.graph.input}
    added = [name for name in tensors if name not in returned]
    model.graph.output.extend([_untyped(name) for name in added])
    model.ir_version = min(model.ir_version, onnx_graph.MAX_ORT_IR)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise StageError(
            f"ONNX Runtime cannot load the model: {onnx_graph.first_line(error)}",
            "calibration runs the model on the CPU with it",
        ) from error


def _untyped(name: str) -> Any:
    from onnx import ValueInfoProto

    return ValueInfoProto(name=name)


def _run(session: Any, names: Sequence[str], batch: batches.Batch, number: int) -> batches.Batch:
    try:
        return dict(zip(names, session.run(list(names), batch) if names else [], strict=True))
    except Exception as error:  # ONNX Runtime's errors have no common base
        shapes = ", ".join(f"{name} {array.shape}" for name, array in batch.items())
        raise StageError(
            f"the model fails on batch {number} (counted from 0; {shapes}): {onnx_graph.first_line(error)}",
            "check that the batch is what the model takes",
        ) from error


STAGE = Stage(
    name="calibrate",
    version=1,
    config=CalibrateConfig,
    run=calibrate,
    inputs=("onnx", "calibration"),
    outputs={"ranges": "ranges.json"},
    tools=("onnx", "onnxruntime", "numpy"),
)
