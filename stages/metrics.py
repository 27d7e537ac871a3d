"""Numbers about one output of a model against a reference's, added up batch by batch.

For an output with reference values r and values c, over all samples:

- absolute error |c - r|, the largest and the mean;
- relative error |c - r| / max(|r|, 1e-6), the largest and the mean;
- cosine similarity r·c / (|r| |c|);
- SQNR in dB: 10 log10(sum r² / sum (c - r)²), null where there is no error or no signal;
- top-k agreement, for outputs of floats (N, K), K > k: which share of the places of the reference's k largest values
  are among the candidate's k largest, in the mean over rows; with k = 1 the share of rows with the same largest place;
- the histogram of log10 |c - r|, in bins that are always the same, so that those of batches and models add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stages.stage import JSON

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from stages.batches import Array

    Floats = npt.NDArray[np.float64]

RELATIVE_FLOOR = 1e-6
"""Below this a reference value counts as this: relative errors of values around 0 say nothing."""

LOG10_EDGES = tuple(-12 + step / 4 for step in range(65))
"""Where the histogram's bins begin and end, as log10 |error|: 1e-12 to 1e4, four bins a decade."""


@dataclass
class Difference:
    """What is added up for one output.

    Attributes:
        top_k: For which k to count the agreement of the k largest.
    """

    top_k: Sequence[int] = (1,)
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
    agreeing: dict[int, float] = field(default_factory=dict)

    def add(self, reference: Array, candidate: Array) -> Floats:
        """Adds one batch; both arrays have one shape. Returns |error|, float64."""
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
            self._rank(r, c)
        return error

    def _rank(self, r: Array, c: Array) -> None:
        self.rows += r.shape[0]
        for k in self.top_k:
            if k < r.shape[1]:
                self.agreeing[k] = self.agreeing.get(k, 0.0) + _agreeing(r, c, k)

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
    def top_k_agreement(self) -> dict[int, float]:
        """The agreement by k; empty for outputs that rank nothing."""
        return {k: agreeing / self.rows for k, agreeing in self.agreeing.items()} if self.rows else {}

    def result(self) -> dict[str, JSON]:
        """All numbers, as the report holds them."""
        values, agreement = max(self.values, 1), self.top_k_agreement
        return {
            "values": self.values,
            "max_abs_error": self.max_abs,
            "mean_abs_error": self.sum_abs / values,
            "max_relative_error": self.max_relative,
            "mean_relative_error": self.sum_relative / values,
            "cosine": self.cosine,
            "sqnr_db": self.sqnr_db,
            "top1_agreement": agreement.get(1),
            "top_k_agreement": {str(k): share for k, share in agreement.items()},
        }


def _agreeing(r: Array, c: Array, k: int) -> float:
    """The sum over rows of the shared part of the k largest places, each row at most 1."""
    import numpy as np

    if k == 1:
        return int((r.argmax(axis=1) == c.argmax(axis=1)).sum())
    largest = [np.zeros(r.shape, bool) for _ in range(2)]
    for chosen, scores in zip(largest, (r, c), strict=True):
        np.put_along_axis(chosen, np.argpartition(scores, -k, axis=1)[:, -k:], True, axis=1)
    return int((largest[0] & largest[1]).sum()) / k


@dataclass
class Histogram:
    """How many values have which error.

    Attributes:
        exact: Values without any.
        counts: Of each bin between two neighbours of `LOG10_EDGES`; what lies outside counts in the first or last.
    """

    exact: int = 0
    counts: list[int] = field(default_factory=lambda: [0] * (len(LOG10_EDGES) - 1))

    def add(self, error: Floats) -> None:
        """Adds the errors of one batch: float64, not negative."""
        import numpy as np

        wrong = error[error > 0]
        self.exact += error.size - wrong.size
        if wrong.size:
            low, per_unit = LOG10_EDGES[0], 4
            places = np.clip((np.log10(wrong) - low) * per_unit, 0, len(self.counts) - 1).astype(np.intp)
            for place, count in enumerate(np.bincount(places, minlength=len(self.counts))):
                self.counts[place] += int(count)

    def result(self) -> dict[str, JSON]:
        """The counts, as the report holds them."""
        return {"log10_edges": LOG10_EDGES, "counts": self.counts, "exact": self.exact}


def is_ranking(values: Array) -> bool:
    """Whether the place of the largest value in a row means something: floats (N, K), K > 1."""
    return values.ndim == 2 and values.shape[1] > 1 and is_float(values)


def is_float(values: Any) -> bool:
    """Whether an array holds floats, those of ml_dtypes (bfloat16, float8_…) too, which are of kind V to NumPy."""
    return values.dtype.kind == "f" or "float" in values.dtype.name
