"""Random samples, for who asks for them by name: they show that a flow runs, and say little about a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import batches, profiles
from stages.generated import generate
from stages.stage import StageError

if TYPE_CHECKING:
    from stages.batches import Batch, Input


@dataclass(frozen=True)
class Drawn:
    """So many random samples.

    Attributes:
        inputs: What the model takes.
        profiles: Their shapes are used in turn: the min, opt and max of each.
        samples: How many.
        seed: Of the random numbers.
    """

    inputs: Sequence[Input]
    profiles: Sequence[profiles.Profile]
    samples: int
    seed: int

    def count(self) -> int:
        """How many samples there are.

        Raises:
            StageError: A dynamic dimension has no profile, or labels are wanted.
        """
        unknown = next((wanted for wanted in self.inputs if wanted.dtype is None), None)
        if unknown is not None:
            raise StageError(
                f"random samples have no {unknown.name!r}: nothing is known about it",
                "give real data, or ask for no labels",
            )
        return self.samples

    def pieces(self, chosen: Sequence[int], rows: int | None) -> Iterator[Batch]:
        """The first of them, as many as are `chosen`: one random sample is as good as another."""
        left = len(chosen)
        for batch, _ in generate(self.inputs, self.profiles, left, self.seed):
            yield batches.cut(batch, 0, left)
            left -= batches.size(batch)
            if left <= 0:
                return
