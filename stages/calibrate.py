"""The stage `calibrate`: one pass of real batches through the model, to count what each tensor that gets Q/DQ holds.

Memory does not grow with the data, and the order of the batches does not matter. What ranges follow from the histograms
is the stage `ranges`'s to say, so that another algorithm runs no pass again. Weights need no calibration: their ranges
are computed where they are quantized.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import batches, exact_runs, histogram_file, onnx_file, onnx_graph, quantization
from stages.allowed import require_word
from stages.data import reading
from stages.histogram_file import Observed
from stages.histograms import Histogram, NotFiniteError
from stages.stage import Job, Metrics, Stage, StageError

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class CalibrateConfig:
    """What of the batches is observed.

    Attributes:
        attention: `none`, or `qk_pv`: the inputs of the two matrix products of attention are observed, too.
    """

    attention: str = "none"

    def __post_init__(self) -> None:
        require_word(self, "attention", quantization.ATTENTION)


def calibrate(job: Job[CalibrateConfig]) -> Metrics:
    """Writes the histogram of each activation that will carry Q/DQ.

    Raises:
        StageError: The data do not fit the model, an activation is not finite, or there is nothing to quantize.
    """
    model = onnx_file.read(job.inputs["onnx"])
    onnx_graph.adopt_weights(model)
    tensors = quantization.place(model, attention=job.config.attention).activations
    if quantization.is_quantized(model) or not tensors:
        raise quantization.nothing_to_quantize(model)
    seen = _observe(model, tensors, job)
    histogram_file.write(seen, job.out / "histograms.bin")
    found = sorted(seen.histograms.items())
    return {
        "inputs": seen.inputs,
        "samples": seen.samples,
        "batches": seen.batches,
        "tensors": len(found),
        "all_zero": [name for name, each in found if each.max == 0 and not each.is_empty],
        "constant": [name for name, each in found if each.max != 0 and each.is_constant],
        "empty": [name for name, each in found if each.is_empty],
    }


def _observe(model: ModelProto, tensors: Sequence[str], job: Job[CalibrateConfig]) -> Observed:
    """Runs every batch and counts what the tensors hold."""
    inputs = batches.model_inputs(model)
    given = reading.opened(job, "calibration", inputs)
    stream = iter(given)
    session = exact_runs.open_exact(model, tensors)
    computed = [name for name in tensors if name not in {i.name for i in inputs}]
    seen = Observed({name: Histogram() for name in tensors}, inputs=given.kind)
    for batch in stream:
        _count({**batch, **exact_runs.run(session, computed, batch, seen.batches)}, seen)
        seen.samples += batches.size(batch)
        seen.batches += 1
        job.progress("calibrating", given.share(seen.samples))
    return seen


def _count(found: Mapping[str, batches.Array], seen: Observed) -> None:
    """Adds one batch's values.

    Raises:
        StageError: Some are not finite; names each such tensor.
    """
    bad: dict[str, str] = {}
    for name, histogram in seen.histograms.items():
        try:
            histogram.add(found[name])
        except NotFiniteError as kind:
            bad[name] = str(kind)
    if bad:
        first, *others = [f"{name!r} holds {kind}" for name, kind in bad.items()]
        after = f", and after it {', '.join(others[:10])}{', …' if len(others) > 10 else ''}" if others else ""
        raise StageError(
            f"the tensor {first} in batch {seen.batches} (counted from 0){after}: no range holds that",
            "check that batch, and that the model computes it correctly in float32",
        )


STAGE = Stage(
    name="calibrate",
    version=3,
    config=CalibrateConfig,
    run=calibrate,
    inputs=("onnx", "calibration"),
    optional=("calibration_source",),
    outputs={"histograms": "histograms.bin"},
    facts=("calibration",),
    tools=("onnx", "onnxruntime", "numpy"),
)
