"""The door to data: whatever a config names comes out as batches that were checked against the model.

A stage declares the input `calibration` or `holdout`, beside it the optional `calibration_source` or `holdout_source`
(the user's own Python, where batches come from it), and the fact of the same name: the options, and what else the
batches depend on beside their content (`pipelines.data`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

from stages import batches, profiles
from stages.batches import Input, Limits
from stages.data import options
from stages.data.arrays import Arrays
from stages.data.datasets import Rows
from stages.data.drawn import Drawn
from stages.data.images import Pictures
from stages.data.options import Data
from stages.data.own import Feeds
from stages.stage import Job, StageError

if TYPE_CHECKING:
    from stages.batches import Array, Batch


class Counted(Protocol):
    """A source that knows how many samples it has."""

    def count(self) -> int:
        """How many; checks what can be checked without reading them."""

    def pieces(self, chosen: Sequence[int], rows: int | None) -> Iterator[Batch]:
        """The samples `chosen`, in rising order, about `rows` a piece; None: as the source has them."""


@dataclass(frozen=True)
class Batches:
    """Batches, as often as they are iterated over.

    Attributes:
        source: Where they come from.
        inputs: What is read: the model's inputs, and the labels where they are wanted.
        options: Which samples, and how many at a time.
        held: The shape tensors, which no sample has: the same in every batch.
    """

    source: Counted | Feeds
    inputs: Sequence[Input]
    options: Data
    held: Mapping[str, Array] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """What reports call it: `arrays`, `images`, `dataset`, `callable` or `random`."""
        return self.options.kind

    @property
    def batch_size(self) -> int | None:
        """Samples of a batch; None: a batch is what the source has."""
        asked = self.options.batch_size
        single = self.options.kind in ("images", "dataset")
        return batches.fixed_batch(self.inputs) or 1 if asked is None and single else asked

    @cached_property
    def known(self) -> int | None:
        """How many samples there will be; None where nobody knows before they have come.

        Raises:
            StageError: The source cannot be read, or does not fit the model.
        """
        if isinstance(self.source, Feeds):
            return None
        return min(self._there, self.options.max_samples or self._there)

    @property
    def there(self) -> int | None:
        """How many samples there are to choose from; None where nobody knows before they have come.

        Raises:
            StageError: The source cannot be read, or does not fit the model.
        """
        return None if isinstance(self.source, Feeds) else self._there

    @cached_property
    def extent(self) -> tuple[int, int]:
        """How many samples and batches there are. Of a source that does not know, all are read to find out.

        Raises:
            StageError: As iterating.
        """
        if self.known is not None and self.batch_size is not None:
            return self.known, -(-self.known // self.batch_size)
        if isinstance(self.source, Arrays):
            return self.known or 0, self.source.holding(self._chosen())
        sizes = [batches.size(batch) for batch in self]
        return sum(sizes), len(sizes)

    def share(self, samples: int) -> float | None:
        """Which share of all so many samples are; None where nobody knows."""
        total = self.options.max_samples if self.known is None else self.known
        return None if total is None else min(1.0, samples / total)

    def __iter__(self) -> Iterator[Batch]:
        # What can be checked beforehand is, before the first batch is asked for.
        pieces = self._pieces()
        given = pieces if self.batch_size is None else batches.regroup(pieces, self.batch_size)
        checked = batches.checked_sizes(given, self.inputs)
        return ({**batch, **self.held} for batch in checked) if self.held else checked

    @cached_property
    def _there(self) -> int:
        there = self.source.count() if not isinstance(self.source, Feeds) else None
        if not there:
            raise StageError("no batches: there are 0 samples", "give at least one sample")
        return there

    def _pieces(self) -> Iterator[Batch]:
        if isinstance(self.source, Feeds):
            return _first(self.source, self.options.max_samples)
        return self.source.pieces(self._chosen(), self.batch_size)

    def _chosen(self) -> Sequence[int]:
        """The samples that are taken, in rising order."""
        import numpy as np

        wanted = min(self._there, self.options.max_samples or self._there)
        if self.options.order == "given" or wanted == self._there:
            return range(wanted)
        chosen = np.random.default_rng(self.options.seed).choice(self._there, wanted, replace=False, shuffle=False)
        return np.sort(chosen)  # type: ignore[return-value]


def _first(source: Feeds, most: int | None) -> Iterator[Batch]:
    """The first `most` samples of a function of the user's, which may go on forever."""
    read = 0
    for piece in source.feeds():
        got = batches.size(piece)
        yield piece if most is None or read + got <= most else batches.cut(piece, 0, most - read)
        read += got
        if most is not None and read >= most:
            return
    if not read:
        raise StageError(f"no batches: {source.name} gave no sample", "give at least one sample")


def opened(
    job: Job[Any], name: str, inputs: Sequence[Input], labels: str | None = None, batch_size: int | None = None
) -> Batches:
    """The batches of the job's input `name`.

    Args:
        job: With the input, the fact `name`, and what stands behind a callable.
        name: `calibration` or `holdout`.
        inputs: What the model takes.
        labels: The array beside them that holds the labels; None: they are not read.
        batch_size: Samples of a batch, instead of what the options say.
    """
    fact = job.facts[name]
    asked = options_of(fact)
    if batch_size is not None:
        asked.batch_size = batch_size
    held = _held(fact.get("held", {}), inputs)
    sampled = [each for each in inputs if each.name not in held]
    wanted = [*sampled, *([Input(labels, None, None)] if labels is not None else [])]
    return Batches(_source(job, name, asked, wanted), wanted, asked, held)


def options_of(fact: Mapping[str, Any]) -> Data:
    """What a config asks for, out of the fact `calibration` or `holdout`."""
    given = {each.name for each in fields(Data)}
    return options.restored({key: value for key, value in fact.items() if key in given})


def _held(values: Mapping[str, Sequence[int]], inputs: Sequence[Input]) -> dict[str, Array]:
    """The shape tensors among `inputs`, as arrays."""
    import numpy as np

    found = {each.name: each for each in inputs if each.name in values}
    return {
        name: np.array(values[name], dtype=each.dtype).reshape([d for d in each.shape or () if isinstance(d, int)])
        for name, each in found.items()
    }


def _source(job: Job[Any], name: str, asked: Data, wanted: Sequence[Input]) -> Counted | Feeds:
    fact, files = job.facts[name], job.inputs[name]
    limits = limits_of(fact.get("shapes"))
    if asked.images is not None:
        return Pictures(files, wanted, asked.images, fact.get("classes"), limits)
    if asked.dataset is not None:
        return Rows(files, wanted, asked.dataset, job.out, limits)
    if asked.callable is not None:
        return Feeds(asked.callable, job.inputs[f"{name}_source"], files, wanted, limits)
    if asked.random is not None:
        return Drawn(wanted, profiles.profiles_of(fact.get("profiles")), asked.random, asked.seed)
    return Arrays(files, wanted, limits)


def limits_of(shapes: Mapping[str, Mapping[str, Mapping[str, Sequence[int]]]] | None) -> list[Limits]:
    """What the profiles take of a sample, out of the fact."""
    return [
        Limits(profile, {name: (ends["min"], ends["max"]) for name, ends in inputs.items()})
        for profile, inputs in sorted((shapes or {}).items())
    ]
