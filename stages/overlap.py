"""Whether held-out samples are among those that the model was calibrated with: such say little about others.

Samples are compared by content. What is kept of each calibration sample is a digest of 16 bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from stages import batches
from stages.data import reading
from stages.stage import JSON, Job, StageError

if TYPE_CHECKING:
    from stages.batches import Batch, Input

SHOWN = 10
"""So many of the held-out samples are named."""


@dataclass
class Overlap:
    """What held-out and calibration data share.

    Attributes:
        seen: The digests of the calibration samples.
        reason: Why there are none; None where they were read.
        count: How many held-out samples are among them.
        first: The first of these, counted from 0.
        samples: How many held-out samples there were.
    """

    seen: frozenset[bytes] = frozenset()
    reason: str | None = None
    count: int = 0
    first: list[int] = field(default_factory=list)
    samples: int = 0

    def add(self, batch: Batch) -> None:
        """Looks for the samples of a held-out batch."""
        if self.seen:
            for row, digest in enumerate(_digests(batch)):
                if digest in self.seen:
                    self.count += 1
                    self.first += [self.samples + row] if len(self.first) < SHOWN else []
        self.samples += batches.size(batch)

    def result(self) -> dict[str, JSON] | None:
        """As the report holds it; None where the two were not compared."""
        if self.reason is not None:
            return None
        return {
            "count": self.count,
            "held_out_samples": self.samples,
            "calibration_samples": len(self.seen),
            "first_samples": self.first,
        }


def opened(job: Job[Any], inputs: Sequence[Input]) -> Overlap:
    """Reads the calibration data of the job, where both are given and neither is random."""
    if "calibration" not in job.inputs or "holdout" not in job.inputs:
        return Overlap(reason="there are not both held-out and calibration data")
    if any(job.facts[name].get("random") is not None for name in ("calibration", "holdout")):
        return Overlap(reason="random samples are no data")
    job.progress("digest calibration data", None)
    try:
        return Overlap(frozenset(d for batch in reading.opened(job, "calibration", inputs) for d in _digests(batch)))
    except StageError as error:  # a pass may have given inputs other names since, which calibration data then have
        return Overlap(reason=error.what)


def _digests(batch: Batch) -> list[bytes]:
    """The digest of each sample: of the type, shape and values of its inputs, by name."""
    rows = [(name, array) for name, array in sorted(batch.items()) if array.ndim]
    about = repr([(name, array.dtype.str, array.shape[1:]) for name, array in rows]).encode()
    found = []
    for row in range(batches.size(batch)):
        digest = blake2b(about, digest_size=16)
        for _, array in rows:
            digest.update(array[row].tobytes())
        found.append(digest.digest())
    return found
