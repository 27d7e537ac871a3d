"""The stage `keep_float`: the fewest layers that have to stay in float for the gates to hold, the most sensitive first.

`steps.quantize.config.skip=auto` puts it before `quantize`. Layers come in the order in which the stage `sensitivity`
ranks them. A try is the model with Q/DQ as `quantize` would make it with the first k of them in float, compared with
the float32 model; k is doubled until the gates hold, and then halved back to the least that does.

What is compared is calibration data: held-out data that chose would not judge any more. Without labels the accuracy may
fall by no more than the share of samples whose largest output moved, which is held against the gate instead.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from math import inf
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from stages import (
    batches,
    exact_runs,
    gates,
    onnx_file,
    onnx_graph,
    quantization,
    quantize,
    sensitivity_table,
    tensor_ranges,
    trial,
)
from stages.allowed import require, require_at_least, require_word
from stages.comparison import Comparison
from stages.data import reading
from stages.gates import Gates
from stages.stage import JSON, Job, Metrics, Stage, StageError

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class KeepFloatConfig:
    """Which gates, on what.

    Attributes:
        precision: As quantize's: `int8` or `fp8`.
        attention: As quantize's: `none` or `qk_pv`.
        only: As quantize's: the convolutions and matrix products that are quantized; none: all.
        skip_ops: As quantize's: operators that stay in float anyway.
        only_ops: As quantize's: those that do not; none: all.
        accuracy_drop: As the flow's gate, like those that follow; null: not asked. One may be stricter here than
            there, so that it holds on held-out data as well.
        max_abs_error: The largest difference of any output value.
        min_cosine: The least cosine similarity of any output.
        min_top1_agreement: The least share of samples whose largest output is the same.
        min_sqnr_db: The least SQNR of any output, in dB.
        margin_db: By so much `min_sqnr_db` is to be exceeded here, where that can be had: on held-out data the ratio
            was up to 0.8 dB lower.
        labels: The name of the label array in the calibration data; null: there is none.
        samples: About how many samples to compare, in batches spread evenly over the calibration data.
        most_tries: No more are made: then the least number of layers that held counts.
    """

    precision: str = "int8"
    attention: str = "none"
    only: list[str] = field(default_factory=list)
    skip_ops: list[str] = field(default_factory=list)
    only_ops: list[str] = field(default_factory=list)
    accuracy_drop: float | None = None
    max_abs_error: float | None = None
    min_cosine: float | None = None
    min_top1_agreement: float | None = None
    min_sqnr_db: float | None = None
    margin_db: float = 1.0
    labels: str | None = None
    samples: int = 64
    most_tries: int = 16

    def __post_init__(self) -> None:
        require_word(self, "precision", tuple(quantize.PRECISIONS))
        require_word(self, "attention", quantization.ATTENTION)
        require_at_least(self, 1, "samples")
        require_at_least(self, 2, "most_tries")
        require_at_least(self, 0, "margin_db")
        names = ", ".join(f"gates.{name}" for name in JUDGED)
        require(any(getattr(self, name) is not None for name in JUDGED), "gates", None, f"one of {names}")

    @property
    def gates(self) -> Gates:
        """What is asked of the plan."""
        return Gates(**{name: getattr(self, name) for name in JUDGED})

    @property
    def goal(self) -> Gates:
        """What is asked of a try."""
        sqnr_db = self.min_sqnr_db
        return self.gates if sqnr_db is None else replace(self.gates, min_sqnr_db=sqnr_db + self.margin_db)

    @property
    def options(self) -> quantize.QuantizeConfig:
        """What `quantize` will do, but for the layers that are looked for."""
        return quantize.QuantizeConfig(
            self.precision, self.attention, only=self.only, skip_ops=self.skip_ops, only_ops=self.only_ops
        )


JUDGED = tuple(
    each.name for each in fields(Gates) if gates.MEASURED_BY.get(each.name) == "validate" and each.name != "metric_drop"
)
"""The gates that the ONNX file alone can be held against, without the user's own metric."""


@dataclass(frozen=True)
class Try:
    """The model with so many layers in float.

    Attributes:
        layers: How many.
        metrics: How far it is from the float32 model; none where that cannot be said.
        refusals: What the gates have against it.
    """

    layers: int
    metrics: Mapping[str, JSON]
    refusals: Sequence[str]

    def against(self, asked: Gates) -> Sequence[str]:
        """What other gates have against it."""
        return gates.of_validation(asked, self.metrics) if self.metrics else self.refusals

    @property
    def badness(self) -> tuple[int, float, int]:
        """Smaller is better: what fails, then the noise, then the layers."""
        decibels = self.metrics.get("sqnr_db")
        exact = self.metrics.get("max_abs_error") == 0
        noise = -decibels if isinstance(decibels, float) else -inf if exact else inf
        return len(self.refusals), noise, self.layers

    def result(self) -> dict[str, JSON]:
        """As the metrics hold it."""
        names = ("sqnr_db", "cosine", "max_abs_error", "top1_agreement", "accuracy_drop")
        return {"layers": self.layers, **{n: self.metrics.get(n) for n in names}, "refused": list(self.refusals)}


def keep_float(job: Job[KeepFloatConfig]) -> Metrics:
    """Writes the names of the layers; where the gates hold with none of the numbers tried, those of the best try.

    Returns:
        Metrics: `layers`, `of` how many, `tries`, the data, and `unreached`: what the gates have against the best.

    Raises:
        StageError: Nothing to quantize, ranges or a table of another model, a gate that these data cannot be held
            against, or a model that cannot run on the data.
    """
    with TemporaryDirectory(dir=job.out) as scratch:
        search = _Search(job, Path(scratch))
        best = search.best()
    layers = search.order[: best.layers]
    of = len(search.order)
    told = [
        f"skip=auto: {refusal}, at best, with {len(layers)} of {of} layers in float on calibration data"
        for refusal in best.against(job.config.gates)
    ]
    text = json.dumps({"layers": layers}, indent=1) + "\n"
    (job.out / "float_layers.json").write_text(text, encoding="utf-8")
    return {
        "layers": layers,
        "of": of,
        "gates": {name: getattr(job.config, name) for name in JUDGED if getattr(job.config, name) is not None},
        "tries": [each.result() for _, each in sorted(search.tried.items())],
        "data": "calibration",
        "inputs": search.given.kind,
        "samples": search.feeds.samples,
        "batches": search.feeds.batches,
        "unreached": told,
    }


class _Search:
    """What has been tried, and what to try next."""

    def __init__(self, job: Job[KeepFloatConfig], scratch: Path) -> None:
        self.job, self.tried = job, dict[int, Try]()
        reference = onnx_file.read(job.inputs["onnx"])
        onnx_graph.adopt_weights(reference)
        self.skipped = quantize.in_float(reference, job.config.options)
        table = sensitivity_table.read(job.file("sensitivity"))
        sensitivity_table.require_layers(table, {onnx_graph.label(node) for node in reference.graph.node})
        self.order = [name for name in sensitivity_table.worst(table, len(table), None) if name not in self.skipped]
        self.given = reading.opened(job, "calibration", batches.model_inputs(reference), job.config.labels)
        self.feeds, self.kept = trial.Slice(self.given, job.config.samples), trial.Kept(scratch)
        trial.run_float(reference, self.feeds, job.config.labels, self.kept, job.progress)

    @cached_property
    def amax(self) -> dict[str, float]:
        """The calibrated range of each activation."""
        return {name: found.amax for name, found in tensor_ranges.read(self.job.file("ranges")).items()}

    def best(self) -> Try:
        """The try with the fewest layers of those that hold; where none does, the one that comes nearest."""
        failing, holding = -1, None
        count = 0
        while holding is None and self._may_try(count):
            if self._try(count).refusals:
                failing, count = count, min(max(1, 2 * count), self._most)
                if count == failing:
                    break
            else:
                holding = count
        while holding is not None and holding - failing > 1 and self._may_try(middle := (holding + failing) // 2):
            if self._try(middle).refusals:
                failing = middle
            else:
                holding = middle
        return self.tried[holding] if holding is not None else min(self.tried.values(), key=lambda t: t.badness)

    @cached_property
    def _most(self) -> int:
        """So many layers can stay in float with something left to quantize."""
        model = onnx_file.read(self.job.inputs["onnx"])
        quantize.prepare(model, self.job.config.precision)
        low, high = 0, len(self.order)
        while low < high:
            middle = (low + high + 1) // 2
            left = quantization.place(model, self.skipped | set(self.order[:middle]), self.job.config.attention).reads
            low, high = (middle, high) if left else (low, middle - 1)
        return low

    def _may_try(self, count: int) -> bool:
        return count in self.tried or len(self.tried) < self.job.config.most_tries

    def _try(self, count: int) -> Try:
        if count not in self.tried:
            self.job.progress(f"{count} of {len(self.order)} layers in float", None)
            self.tried[count] = self._tried(count)
        return self.tried[count]

    def _tried(self, count: int) -> Try:
        compared = Comparison(f"the model with {count} layers in float")
        session = exact_runs.open_exact(self._candidate(count))
        for number, (batch, expected, truth) in enumerate(self.kept):
            got = exact_runs.run(session, list(expected), batch, number)
            try:
                compared.add(expected, got, truth)
            except StageError as error:  # not finite: as bad as can be, and more layers in float may mend it
                return Try(count, {}, [error.what])
        metrics = _measured(compared, self.job.config.labels)
        self._require_measured(metrics)
        return Try(count, metrics, gates.of_validation(self.job.config.goal, metrics))

    def _candidate(self, count: int) -> ModelProto:
        """The model with Q/DQ but for the first `count` layers, as `quantize` makes it."""
        config = self.job.config
        model = onnx_file.read(self.job.inputs["onnx"])
        quantize.prepare(model, config.precision)
        placement = quantization.place(model, self.skipped | set(self.order[:count]), config.attention)
        if not placement.reads:
            raise StageError("the options of quantize leave nothing to quantize", "keep fewer nodes in float")
        tensor_ranges.require_match(
            self.amax, placement.activations, onnx_graph.names(model.graph), "calibrate the same file"
        )
        quantize.insert(model, placement, self.amax, config.precision)
        trial.round_weights(model)
        return model

    def _require_measured(self, metrics: Mapping[str, JSON]) -> None:
        """Refuses a gate that no number of layers can satisfy: what it asks for is not there."""
        if self.job.config.accuracy_drop is not None and metrics["accuracy_drop"] is None:
            raise StageError(
                "skip=auto cannot hold gates.accuracy_drop: no output is a ranking, floats (N, K) with K > 1",
                "gate another number: gates.min_sqnr_db=25",
            )
        if self.job.config.min_top1_agreement is not None and metrics["top1_agreement"] is None:
            raise StageError(
                "skip=auto cannot hold gates.min_top1_agreement: no output is a ranking, floats (N, K) with K > 1",
                "gate another number: gates.min_sqnr_db=25",
            )


def _measured(compared: Comparison, labels: str | None) -> Mapping[str, JSON]:
    """The numbers; without labels, for the drop of accuracy the most that it can be on these samples."""
    found = compared.summary()
    agreement = found["top1_agreement"]
    if labels is None and isinstance(agreement, float):
        found = {**found, "accuracy_drop": 1 - agreement}
    return found


STAGE = Stage(
    name="keep_float",
    version=1,
    config=KeepFloatConfig,
    run=keep_float,
    inputs=("onnx", "ranges", "sensitivity", "calibration"),
    optional=("calibration_source",),
    outputs={"layers": "float_layers.json"},
    facts=("calibration",),
    tools=("onnx", "onnxruntime", "numpy"),
)
