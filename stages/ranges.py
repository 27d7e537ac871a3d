"""The stage `ranges`: from what calibration saw to the range that each tensor is quantized to, without another pass.

`auto`, the default, tries the ranges of every algorithm on a few batches and keeps the best. Ranges of the user's own,
as a `ranges.json` that was reviewed and edited or as a TensorRT calibration cache, take the place of all that.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from stages import (
    batches,
    calibration_cache,
    histogram_file,
    onnx_file,
    onnx_graph,
    quantization,
    tensor_ranges,
    thresholds,
    trial,
)
from stages.allowed import require, require_at_least, require_word
from stages.data import reading
from stages.histogram_file import Observed
from stages.quantize import AUTO, PRECISIONS, QuantizeConfig, require_patterns_or_auto
from stages.stage import JSON, Job, Metrics, Stage, StageError
from stages.tensor_ranges import TensorRange

AUTO_PERCENTILES = (99.99, 99.9)
"""Tried by `auto` beside the config's own."""

ADVICE = "name an algorithm: steps.ranges.config.algorithm=mse"


@dataclass(frozen=True)
class RangesConfig:
    """How ranges are found.

    Attributes:
        algorithm: `auto`: whichever of the others does best on a few batches. `mse`: the range with the least squared
            error. `percentile`: the one that so many percent of the values do not exceed. `max`: the largest value.
            `entropy`: the least Kullback-Leibler divergence, as TensorRT's calibrator.
        percentile: For `percentile` and `auto`: above 0, at most 100.
        trial_samples: For `auto`: about how many samples to try on, in batches spread evenly over the data.
        labels: For `auto`: the name of the label array in held-out data, so that accuracy decides; None: SQNR does.
        precision: As `quantize`'s, as all that follow, so that `auto` tries what it will make: `int8` or `fp8`.
        attention: `none` or `qk_pv`; as calibration's, too.
        skip: Nodes that stay in float; `auto` is none, since they are looked for with the ranges.
        only: The convolutions and matrix products that do not; none: all.
        skip_ops: Operators that stay in float.
        only_ops: Those that do not; none: all.
        cache_version: The TensorRT that the calibration cache is written for, as it says it: 8601 is 8.6.1, 101303
            is 10.13.3.
    """

    algorithm: str = "auto"
    percentile: float = 99.99
    trial_samples: int = 64
    labels: str | None = None
    precision: str = "int8"
    attention: str = "none"
    skip: Any = field(default_factory=list)
    only: list[str] = field(default_factory=list)
    skip_ops: list[str] = field(default_factory=list)
    only_ops: list[str] = field(default_factory=list)
    cache_version: int = 101303

    def __post_init__(self) -> None:
        require_at_least(self, 1, "trial_samples", "cache_version")
        require_word(self, "precision", tuple(PRECISIONS))
        require_word(self, "algorithm", ("auto", *self.algorithms))
        require_word(self, "attention", quantization.ATTENTION)
        require_patterns_or_auto(self.skip)
        if self.skip == AUTO:
            object.__setattr__(self, "skip", [])  # so that it is the same question as without
        require(0 < self.percentile <= 100, "percentile", self.percentile, "above 0, at most 100")

    @property
    def algorithms(self) -> tuple[str, ...]:
        """Those there are for the precision."""
        return thresholds.ALGORITHMS if self.precision == "int8" else thresholds.FP8_ALGORITHMS

    @property
    def options(self) -> QuantizeConfig:
        """What `quantize` will do, but for the layers that a table of sensitivity keeps in float."""
        return QuantizeConfig(self.precision, self.attention, self.skip, self.only, self.skip_ops, self.only_ops)


def ranges(job: Job[RangesConfig]) -> Metrics:
    """Writes the range of each activation that will carry Q/DQ, for people and as a TensorRT calibration cache.

    Raises:
        StageError: Histograms or ranges are of another model, or `auto` has nothing to try them on.
    """
    graph = _graph(job)
    about, found = _given(job, graph) if job.inputs.get("given") else _calibrated(job, graph)
    tensors = {name: asdict(each) for name, each in sorted(found.items())}
    text = json.dumps({**about, "tensors": tensors}, indent=1, allow_nan=False) + "\n"
    (job.out / "ranges.json").write_text(text, encoding="utf-8")
    amax = {name: each.amax for name, each in found.items()}
    cache = calibration_cache.text_of(amax, job.config.cache_version)
    (job.out / "calibration.cache").write_text(cache, encoding="utf-8")
    return {**about, "tensors": len(found)}


@dataclass(frozen=True)
class _Graph:
    """What is asked of the model; its weights are in memory only where it runs.

    Attributes:
        activations: The tensors that will carry Q/DQ.
        names: All its tensors.
        inputs: What it takes.
    """

    activations: Sequence[str]
    names: Collection[str]
    inputs: Sequence[batches.Input]


def _graph(job: Job[RangesConfig]) -> _Graph:
    model = onnx_file.read(job.inputs["onnx"])
    onnx_graph.adopt_weights(model)
    activations = quantization.place(model, attention=job.config.attention).activations
    if quantization.is_quantized(model) or not activations:
        raise quantization.nothing_to_quantize(model)
    return _Graph(activations, onnx_graph.names(model.graph), batches.model_inputs(model))


def _given(job: Job[RangesConfig], graph: _Graph) -> tuple[Metrics, dict[str, TensorRange]]:
    """The user's own ranges.

    A cache names every tensor of its network, also those that surgery has fused away: what it holds beyond the tensors
    that carry Q/DQ is counted. A `ranges.json` may name tensors of the graph only.
    """
    path, wanted = job.file("given"), graph.activations
    found = tensor_ranges.read(path)
    is_cache = calibration_cache.is_cache(path.read_text(encoding="utf-8"))
    known = found if is_cache else graph.names
    advice = "model.ranges: give ranges of this model, with the names that its tensors have after surgery"
    tensor_ranges.require_match(found, wanted, known, advice)
    about: Metrics = {
        "algorithm": "given",
        "format": "calibration cache" if is_cache else "ranges.json",
        "unused": len(found.keys() - set(wanted)),
    }
    return about, {name: found[name] for name in wanted}


def _calibrated(job: Job[RangesConfig], graph: _Graph) -> tuple[Metrics, dict[str, TensorRange]]:
    """Ranges out of the histograms."""
    config = job.config
    if not job.inputs.get("histograms"):
        raise StageError(
            "no ranges: neither histograms nor ranges of the user's own are given",
            "give steps.ranges.inputs.histograms=calibrate.histograms, or model.ranges=PATH",
        )
    seen = histogram_file.read(job.file("histograms"))
    tensor_ranges.require_match(seen.histograms, graph.activations, seen.histograms, "calibrate the same file")
    choices = {
        name: {
            tensor: thresholds.amax(each, algorithm, percentile, config.precision)
            for tensor, each in seen.histograms.items()
        }
        for name, (algorithm, percentile) in _candidates(config).items()
    }
    tried, chosen = (None, next(iter(choices))) if len(choices) == 1 else _try(job, graph, choices)
    about: Metrics = {
        "algorithm": chosen,
        "asked": config.algorithm,
        "inputs": seen.inputs,
        "samples": seen.samples,
        "batches": seen.batches,
        "trial": tried,
    }
    return about, _described(seen, choices[chosen], chosen)


def _described(seen: Observed, chosen: Mapping[str, float], algorithm: str) -> dict[str, TensorRange]:
    return {
        name: TensorRange(chosen[name], each.max, algorithm, seen.samples, histogram_file.digest(each))
        for name, each in seen.histograms.items()
    }


def _candidates(config: RangesConfig) -> dict[str, tuple[str, float]]:
    """Algorithm and percentile of each candidate, by the name that reports give it; the first of equals is kept."""
    asked = config.algorithms if config.algorithm == "auto" else (config.algorithm,)
    percentiles = dict.fromkeys((config.percentile, *(AUTO_PERCENTILES if config.algorithm == "auto" else ())))
    found: dict[str, tuple[str, float]] = {}
    for algorithm in asked:
        for percentile in percentiles if algorithm == "percentile" else (config.percentile,):
            found[f"{algorithm} {percentile:g}" if algorithm == "percentile" else algorithm] = (algorithm, percentile)
    return found


def _try(
    job: Job[RangesConfig], graph: _Graph, choices: Mapping[str, Mapping[str, float]]
) -> tuple[dict[str, JSON], str]:
    """What each of `choices` scored, on what, and the best of them."""
    config = job.config
    data = _trial_data(job)
    given = reading.opened(job, data, graph.inputs, config.labels)
    feeds = trial.Slice(given, config.trial_samples)
    read = partial(onnx_file.read, job.inputs["onnx"])
    scores = trial.compare(read, choices, feeds, config.labels, job.progress, config.options, job.out)
    best = max(scores, key=lambda name: scores[name].rank)
    if scores[best].refused:
        raise StageError(f"no candidate can be judged by the outputs: {scores[best].refused}", ADVICE)
    tried: dict[str, JSON] = {
        "data": data,
        "inputs": given.kind,
        "batches": feeds.batches,
        "samples": feeds.samples,
        "by": "sqnr_db" if config.labels is None else "accuracy, then sqnr_db",
        "scores": {name: score.result() for name, score in scores.items()},
    }
    return tried, best


def _trial_data(job: Job[RangesConfig]) -> str:
    """The input that `auto` tries on: held-out data where there are labels, else calibration data."""
    if job.config.labels is not None and "holdout" not in job.inputs:
        raise StageError(
            f"ranges: labels is {job.config.labels!r}, and there is no held-out data to hold them",
            "give steps.ranges.inputs.holdout=model.holdout, or leave out steps.ranges.config.labels",
        )
    data = "calibration" if job.config.labels is None else "holdout"
    if data not in job.inputs:
        raise StageError(
            "ranges: auto has no batches to try ranges on",
            f"give steps.ranges.inputs.calibration=model.calibration, or {ADVICE}",
        )
    return data


STAGE = Stage(
    name="ranges",
    version=3,
    config=RangesConfig,
    run=ranges,
    inputs=("onnx",),
    optional=("histograms", "calibration", "calibration_source", "holdout", "holdout_source", "given"),
    outputs={"ranges": "ranges.json", "cache": "calibration.cache"},
    facts=("calibration",),
    facts_when=lambda config: ("holdout",) if config.labels is not None else (),
    tools=("onnx", "onnxruntime", "numpy"),
    instead_of={"given": ("histograms", "calibration")},
)
