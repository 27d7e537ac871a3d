"""How far one model's outputs are from another's: numbers that are added up batch by batch.

For an output with reference values r and values c, over all samples:

- absolute error |c - r|, the largest and the mean;
- relative error |c - r| / max(|r|, 1e-6), the largest and the mean;
- cosine similarity r·c / (|r| |c|);
- SQNR in dB: 10 log10(sum r² / sum (c - r)²), null where there is no error or no signal;
- top-1 agreement, for outputs of floats (N, K), K > 1: the share of rows whose largest value stands in the same place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stages.stage import JSON, StageError

if TYPE_CHECKING:
    from stages.batches import Array

RELATIVE_FLOOR = 1e-6
"""Below this a reference value counts as this: relative errors of values around 0 say nothing."""


@dataclass
class Difference:
    """What is added up for one output."""

    values: int = 0
    max_abs: float = 0.0
    sum_abs: float = 0.0
    max_relative: float = 0.0
    sum_relative: float = 0.0
    dot: float = 0.0
    reference_energy: float = 0.0
    candidate_energy: float = 0.0
    error_energy: float = 0.0
    rows: int = 0
    agreeing_rows: int = 0

    def add(self, reference: Array, candidate: Array) -> None:
        """Adds one batch; both arrays have one shape."""
        import numpy as np

        ranked = is_ranking(reference)
        r, c = reference.astype(np.float64), candidate.astype(np.float64)
        error = np.abs(c - r)
        relative = error / np.maximum(np.abs(r), RELATIVE_FLOOR)
        self.values += r.size
        self.max_abs = max(self.max_abs, float(error.max(initial=0.0)))
        self.sum_abs += float(error.sum())
        self.max_relative = max(self.max_relative, float(relative.max(initial=0.0)))
        self.sum_relative += float(relative.sum())
        self.dot += float((r * c).sum())
        self.reference_energy += float((r * r).sum())
        self.candidate_energy += float((c * c).sum())
        self.error_energy += float((error * error).sum())
        if ranked:
            self.rows += r.shape[0]
            self.agreeing_rows += int((r.argmax(axis=1) == c.argmax(axis=1)).sum())

    @property
    def cosine(self) -> float:
        """Equal outputs have 1, to the last bit; one that is all zeros points nowhere: 0."""
        if self.error_energy == 0:
            return 1.0
        if self.reference_energy == 0 or self.candidate_energy == 0:
            return 0.0
        # Rounding can carry the quotient of equal vectors a little beyond 1.
        return max(-1.0, min(1.0, self.dot / math.sqrt(self.reference_energy) / math.sqrt(self.candidate_energy)))

    @property
    def noise_ratio(self) -> float:
        """Error over signal: what the worst output is worst in; 0 where nothing differs."""
        if self.error_energy == 0:
            return 0.0
        return self.error_energy / self.reference_energy if self.reference_energy else math.inf

    @property
    def sqnr_db(self) -> float | None:
        """The signal-to-noise ratio in decibels."""
        return -10 * math.log10(self.noise_ratio) if 0 < self.noise_ratio < math.inf else None

    @property
    def top1_agreement(self) -> float | None:
        """The share of agreeing rows; None for outputs that rank nothing."""
        return self.agreeing_rows / self.rows if self.rows else None

    def result(self) -> dict[str, JSON]:
        """All numbers, as the report holds them."""
        values = max(self.values, 1)
        return {
            "values": self.values,
            "max_abs_error": self.max_abs,
            "mean_abs_error": self.sum_abs / values,
            "max_relative_error": self.max_relative,
            "mean_relative_error": self.sum_relative / values,
            "cosine": self.cosine,
            "sqnr_db": self.sqnr_db,
            "top1_agreement": self.top1_agreement,
        }


@dataclass
class Accuracy:
    """How often the largest value of an output (N, K) stands at the label."""

    output: str
    count: int = 0
    reference: int = 0
    candidate: int = 0

    def add(self, reference: Array, candidate: Array, labels: Array) -> None:
        """Adds one batch: outputs (N, K), labels (N,)."""
        self.count += len(labels)
        self.reference += int((reference.argmax(axis=1) == labels).sum())
        self.candidate += int((candidate.argmax(axis=1) == labels).sum())

    def result(self) -> dict[str, JSON]:
        """The report's numbers; `drop` is positive where the candidate is worse."""
        reference, candidate = self.reference / self.count, self.candidate / self.count
        drop = (self.reference - self.candidate) / self.count
        return {
            "output": self.output,
            "count": self.count,
            "reference": reference,
            "candidate": candidate,
            "drop": drop,
        }


@dataclass
class Comparison:
    """A candidate's outputs against the reference's, over all batches.

    Attributes:
        who: How errors call the candidate.
    """

    who: str
    outputs: dict[str, Difference] = field(default_factory=dict)
    accuracy: Accuracy | None = None
    samples: int = 0

    def add(self, reference: Mapping[str, Array], candidate: Mapping[str, Array], labels: Array | None) -> None:
        """Adds one batch.

        Raises:
            StageError: Names or shapes differ, a value is NaN or infinite, or labels do not fit.
        """
        self._check_names(reference, candidate)
        for name, values in reference.items():
            self._check_values(name, values, candidate[name])
            self.outputs.setdefault(name, Difference()).add(values, candidate[name])
        if labels is not None:
            self._add_labels(reference, candidate, labels)
        self.samples += next((len(values) for values in reference.values() if values.ndim), 1)

    def summary(self) -> dict[str, JSON]:
        """The worst of each number over all outputs, and the accuracy."""
        differences = self.outputs.values()
        worst = max(self.outputs, key=lambda name: self.outputs[name].noise_ratio)
        agreements = [found.top1_agreement for found in differences if found.top1_agreement is not None]
        accuracy = self.accuracy.result() if self.accuracy else {}
        return {
            "worst_output": worst,
            "max_abs_error": max(found.max_abs for found in differences),
            "mean_abs_error": max(found.sum_abs / max(found.values, 1) for found in differences),
            "cosine": min(found.cosine for found in differences),
            "sqnr_db": self.outputs[worst].sqnr_db,
            "top1_agreement": min(agreements, default=None),
            "accuracy": accuracy.get("candidate"),
            "accuracy_reference": accuracy.get("reference"),
            "accuracy_drop": accuracy.get("drop"),
        }

    def result(self) -> dict[str, JSON]:
        """Every output's numbers, and the accuracy."""
        return {
            "outputs": {name: found.result() for name, found in self.outputs.items()},
            "accuracy": self.accuracy.result() if self.accuracy else None,
        }

    def _check_names(self, reference: Mapping[str, Array], candidate: Mapping[str, Array]) -> None:
        if set(reference) != set(candidate):
            raise StageError(
                f"{self.who} has the outputs {_list(candidate)}, the reference has {_list(reference)}",
                "a step between them renamed or dropped outputs: compare models with the same outputs",
            )

    def _check_values(self, name: str, reference: Array, candidate: Array) -> None:
        for who, values in (("the reference", reference), (self.who, candidate)):
            if values.dtype.kind in "OUSV" and values.dtype.names is None and not _is_float(values):
                raise StageError(f"output {name!r} of {who} has the type {values.dtype}, which has no distance")
            _check_finite(who, name, values, self.samples)
        if reference.shape != candidate.shape:
            raise StageError(
                f"output {name!r} of {self.who} has the shape {candidate.shape}, the reference's {reference.shape}",
                "compare models with the same outputs",
            )

    def _add_labels(self, reference: Mapping[str, Array], candidate: Mapping[str, Array], labels: Array) -> None:
        name = next((name for name, values in reference.items() if is_ranking(values)), None)
        if name is None:
            shapes = ", ".join(f"{name} {values.shape}" for name, values in reference.items())
            raise StageError(
                f"labels need an output of floats (N, K), and the model has {shapes}", "leave validate's labels out"
            )
        if self.accuracy is None:
            self.accuracy = Accuracy(name)
        self.accuracy.add(reference[name], candidate[name], check_labels(labels, reference[name]))


def is_ranking(values: Array) -> bool:
    """Whether the place of the largest value in a row means something: floats (N, K), K > 1."""
    return values.ndim == 2 and values.shape[1] > 1 and _is_float(values)


def check_labels(labels: Array, scores: Array) -> Array:
    """Labels as (N,), held against scores (N, K).

    Raises:
        StageError: Not one whole number from 0 to K - 1 for each row.
    """
    rows, classes = scores.shape
    if labels.size != rows or len(labels) != rows or labels.dtype.kind not in "iu":
        raise StageError(
            f"the labels are {labels.dtype} {labels.shape} for {rows} rows of scores, and each needs one whole number",
            "store labels as an integer array (N,)",
        )
    flat = labels.reshape(-1)
    if rows and not (flat.min() >= 0 and flat.max() < classes):
        raise StageError(
            f"the labels go from {flat.min()} to {flat.max()}, and the scores have the classes 0 to {classes - 1}",
            "give the labels of this model",
        )
    return flat


def _check_finite(who: str, name: str, values: Array, first_sample: int) -> None:
    import numpy as np

    if not _is_float(values):
        return
    bad = ~np.isfinite(values.astype(np.float64))
    if bad.any():
        where = [int(index) for index in np.argwhere(bad)[0]]
        value = float(values.astype(np.float64)[tuple(where)])
        sample = f", sample {first_sample + where[0]}" if where else ""
        raise StageError(
            f"output {name!r} of {who} has {int(bad.sum())} values that are not finite, the first {value} at "
            f"{where} of its batch{sample}",
            "an overflow of fp16 gives Inf, and Inf - Inf gives NaN: keep the operators before it in fp32 or bf16",
        )


def _is_float(values: Any) -> bool:
    # The floats of ml_dtypes (bfloat16, float8_…) are of kind V to NumPy.
    return values.dtype.kind == "f" or "float" in values.dtype.name


def _list(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "none"
