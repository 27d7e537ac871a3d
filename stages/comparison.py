"""How far a candidate's outputs are from a reference's over all batches; the numbers are those of `stages.metrics`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import TYPE_CHECKING

from stages.accuracy import Accuracy, check_labels
from stages.metrics import Difference, Histogram, is_float, is_ranking
from stages.stage import JSON, StageError

if TYPE_CHECKING:
    from stages.batches import Array
    from stages.metrics import Floats

WORST = 10
"""So many of the worst batches a report names."""


class NotFiniteError(StageError):
    """An output holds NaN or infinities.

    Args:
        who: Whose output it is.
        what: Output, place and sample, in words.
        row: Which sample of the batch holds the first; None where the output has no samples.
    """

    def __init__(self, who: str, what: str, row: int | None) -> None:
        hint = "an overflow of fp16 gives Inf, and Inf - Inf gives NaN: keep the operators before it in fp32 or bf16"
        super().__init__(what, hint)
        self.who = who
        self.row = row


@dataclass
class Detail:
    """What a report shows beside the numbers.

    Attributes:
        histograms: Of the errors, by output.
        worst: The batches with the most error for their signal, worst first: (error over signal, what the report says).
        batches: How many batches there were.
    """

    histograms: dict[str, Histogram] = field(default_factory=dict)
    worst: list[tuple[float, dict[str, JSON]]] = field(default_factory=list)
    batches: int = 0

    def add(self, errors: Mapping[str, Floats], noise: Mapping[str, float], first_sample: int) -> None:
        """Adds one batch: |error| and error over signal, by output."""
        for name, error in errors.items():
            self.histograms.setdefault(name, Histogram()).add(error)
        worst = max(noise, key=lambda name: noise[name])
        said: dict[str, JSON] = {
            "batch": self.batches,
            "first_sample": first_sample,
            "output": worst,
            "max_abs_error": float(errors[worst].max(initial=0.0)),
        }
        self.batches += 1
        self.worst = sorted([*self.worst, (noise[worst], said)], key=lambda each: -each[0])[:WORST]


@dataclass
class Comparison:
    """A candidate's outputs against the reference's, over all batches.

    Attributes:
        who: How errors call the candidate.
        top_k: For which k to count the agreement of the k largest values.
        detail: What a report shows beside the numbers; None: they are all that is wanted.
    """

    who: str
    top_k: Sequence[int] = (1,)
    detail: Detail | None = None
    outputs: dict[str, Difference] = field(default_factory=dict)
    accuracy: Accuracy | None = None
    samples: int = 0

    def add(self, reference: Mapping[str, Array], candidate: Mapping[str, Array], labels: Array | None) -> None:
        """Adds one batch.

        Raises:
            StageError: Names or shapes differ, a value is NaN or infinite, or labels do not fit.
        """
        self._check_names(reference, candidate)
        errors, noise = {}, {}
        for name, values in reference.items():
            self._check_values(name, values, candidate[name])
            found = self.outputs.setdefault(name, Difference(self.top_k))
            signal, error = found.reference_energy, found.error_energy
            errors[name] = found.add(values, candidate[name])
            # Beside a signal of nothing any error is the worst, and the larger the worse.
            noise[name] = (found.error_energy - error) / max(found.reference_energy - signal, 1e-30)
        if self.detail is not None:
            self.detail.add(errors, noise, self.samples)
        if labels is not None:
            self._add_labels(reference, candidate, labels)
        self.samples += next((len(values) for values in reference.values() if values.ndim), 1)

    def summary(self) -> dict[str, JSON]:
        """The worst of each number over all outputs, and the accuracy."""
        differences = self.outputs.values()
        worst = max(self.outputs, key=lambda name: self.outputs[name].noise_ratio)
        agreements = [found.top_k_agreement for found in differences]
        accuracy = self.accuracy.result() if self.accuracy else {}
        return {
            "worst_output": worst,
            "max_abs_error": max(found.max_abs for found in differences),
            "mean_abs_error": max(found.sum_abs / max(found.values, 1) for found in differences),
            "cosine": min(found.cosine for found in differences),
            "sqnr_db": self.outputs[worst].sqnr_db,
            "top1_agreement": min((found[1] for found in agreements if 1 in found), default=None),
            "top_k_agreement": {
                str(k): min(found[k] for found in agreements if k in found)
                for k in self.top_k
                if any(k in found for found in agreements)
            },
            "accuracy": accuracy.get("candidate"),
            "accuracy_reference": accuracy.get("reference"),
            "accuracy_drop": accuracy.get("drop"),
            "accuracy_drop_interval": accuracy.get("drop_interval"),
        }

    def result(self) -> dict[str, JSON]:
        """Every output's numbers, and the accuracy; where details are wanted, histograms and the worst batches."""
        outputs: dict[str, dict[str, JSON]] = {name: found.result() for name, found in self.outputs.items()}
        found: dict[str, JSON] = {
            "outputs": outputs,
            "accuracy": self.accuracy.result() if self.accuracy else None,
        }
        if self.detail is not None:
            for name, histogram in self.detail.histograms.items():
                outputs[name]["abs_error_histogram"] = histogram.result()
            found["worst_batches"] = [said for _, said in self.detail.worst]
        return found

    def _check_names(self, reference: Mapping[str, Array], candidate: Mapping[str, Array]) -> None:
        missing, new = set(reference) - set(candidate), set(candidate) - set(reference)
        if not missing and not new:
            return
        back = dict(zip(sorted(new), sorted(missing), strict=False))
        for name in sorted(missing):
            near = get_close_matches(name, new, n=1)
            back |= {near[0]: name} if near else {}
        names = ", ".join(f"{name}: {old}" for name, old in back.items())
        back_again = f": 'steps.surgery.config.then=[{{pass: rename, tensors: {{{names}}}}}]'" if names else ""
        raise StageError(
            f"{self.who} has the outputs {_list(candidate)}, the reference has {_list(reference)}",
            f"a step between them renamed, added or dropped outputs: give them their names back{back_again}",
        )

    def _check_values(self, name: str, reference: Array, candidate: Array) -> None:
        for who, values in (("the reference", reference), (self.who, candidate)):
            if values.dtype.kind in "OUSV" and values.dtype.names is None and not is_float(values):
                raise StageError(f"output {name!r} of {who} has the type {values.dtype}, which has no distance")
            check_finite(who, name, values, self.samples)
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
                f"labels need an output of floats (N, K), and the model has {shapes}",
                "leave validate's labels out, or judge by a function of your own: model.holdout.metric=…",
            )
        if self.accuracy is None:
            self.accuracy = Accuracy(name)
        self.accuracy.add(reference[name], candidate[name], check_labels(labels, reference[name]))


def check_finite(who: str, name: str, values: Array, first_sample: int) -> None:
    """Holds one output of a batch to be finite.

    Args:
        who: Whose output it is.
        name: Of the output.
        values: The output.
        first_sample: How many samples came before this batch.

    Raises:
        NotFiniteError: It is not; says how many values, which is the first, and of which sample.
    """
    import numpy as np

    if not is_float(values):
        return
    bad = ~np.isfinite(values.astype(np.float64))
    if bad.any():
        where = [int(index) for index in np.argwhere(bad)[0]]
        value = float(values.astype(np.float64)[tuple(where)])
        sample = f", sample {first_sample + where[0]}" if where else ""
        count = int(bad.sum())
        raise NotFiniteError(
            who,
            f"output {name!r} of {who} has {count} values that are not finite, the first {value} at {where} of its "
            f"batch{sample}",
            where[0] if where else None,
        )


def _list(names: Sequence[str] | Mapping[str, object]) -> str:
    return ", ".join(sorted(names)) or "none"
