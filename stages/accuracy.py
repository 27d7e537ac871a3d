"""How often a classifier is right on labelled data, and how sure that is: a candidate beside the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages.intervals import paired_difference, wilson
from stages.stage import JSON, StageError

if TYPE_CHECKING:
    from stages.batches import Array


@dataclass
class Accuracy:
    """How often the largest value of an output (N, K) stands at the label.

    Attributes:
        output: The output.
        both: Samples on which the reference and the candidate are right.
        reference_only: On which only the reference is.
        candidate_only: On which only the candidate is.
        neither: On which none is.
    """

    output: str
    both: int = 0
    reference_only: int = 0
    candidate_only: int = 0
    neither: int = 0

    def add(self, reference: Array, candidate: Array, labels: Array) -> None:
        """Adds one batch: outputs (N, K), labels (N,)."""
        first, second = reference.argmax(axis=1) == labels, candidate.argmax(axis=1) == labels
        self.both += int((first & second).sum())
        self.reference_only += int((first & ~second).sum())
        self.candidate_only += int((~first & second).sum())
        self.neither += int((~first & ~second).sum())

    def result(self) -> dict[str, JSON]:
        """The report's numbers, with 95 % intervals (`stages.intervals`); `drop` > 0 where the candidate is worse."""
        reference, candidate = self.both + self.reference_only, self.both + self.candidate_only
        count = reference + self.candidate_only + self.neither
        return {
            "output": self.output,
            "count": count,
            "reference": reference / count,
            "reference_interval": wilson(reference, count),
            "candidate": candidate / count,
            "candidate_interval": wilson(candidate, count),
            "drop": (reference - candidate) / count,
            "drop_interval": paired_difference(self.both, self.reference_only, self.candidate_only, self.neither),
        }


def check_labels(labels: Array, scores: Array) -> Array:
    """Labels as (N,), held against scores (N, K).

    Raises:
        StageError: Not one whole number from 0 to K - 1 for each row.
    """
    rows, classes = scores.shape
    if labels.size != rows or len(labels) != rows or labels.dtype.kind not in "iu":
        raise StageError(
            f"the labels are {labels.dtype} {labels.shape} for {rows} rows of scores, and each needs one whole number",
            "store labels as an integer array (N,), or judge by a function of your own: model.holdout.metric=…",
        )
    flat = labels.reshape(-1)
    if rows and not (flat.min() >= 0 and flat.max() < classes):
        raise StageError(
            f"the labels go from {flat.min()} to {flat.max()}, and the scores have the classes 0 to {classes - 1}",
            "give the labels of this model",
        )
    return flat
