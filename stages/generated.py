"""Inputs for models that come without data: random ones, in the shapes that the profiles promise.

A shape tensor is not random: with the min shapes of a profile it holds that profile's min values, and so on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from stages import batches, profiles
from stages.stage import StageError

if TYPE_CHECKING:
    import numpy as np

    from stages.batches import Array, Batch, Input


def declared(inputs: Sequence[Input]) -> dict[str, list[int]]:
    """The shape of each input, -1 for a dynamic dimension."""
    return {wanted.name: [size if isinstance(size, int) else -1 for size in wanted.shape or ()] for wanted in inputs}


def generate(
    inputs: Sequence[Input], found: Sequence[profiles.Profile], count: int, seed: int
) -> Iterator[tuple[Batch, float]]:
    """Inputs at the min, opt and max shapes of every profile in turn, and the share of all that they complete.

    Floats are standard normal, whole numbers 0 or 1 (valid token ids and masks everywhere), booleans either.

    Raises:
        StageError: A dynamic dimension has no profile, or a profile's shapes are too large to be filled.
    """
    import numpy as np

    shapes = declared(inputs)
    profiles.check(found, shapes)
    _require_room(inputs, found, shapes)
    sizes: list[Mapping[str, Sequence[int]]] = [
        {name: getattr(profile.ranges[name], which) if name in profile.ranges else shapes[name] for name in shapes}
        for profile in found
        for which in ("min", "opt", "max")
    ]
    # dict.fromkeys: profiles often have one shape twice, and a static model has one at all.
    unique = list(
        dict.fromkeys(tuple(sorted((name, tuple(s)) for name, s in size.items())) for size in sizes or [shapes])
    )
    random, runs = np.random.default_rng(seed), max(count, len(unique))
    held = profiles.shape_tensors(found)
    for number in range(runs):
        chosen = dict(unique[number % len(unique)])
        batch = {
            wanted.name: _holding(chosen[wanted.name], wanted)
            if wanted.name in held
            else _random(random, chosen[wanted.name], wanted)
            for wanted in inputs
        }
        yield batch, (number + 1) / runs


def _require_room(
    inputs: Sequence[Input], found: Sequence[profiles.Profile], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Refuses shapes too large to be filled. Of a profile the max is the largest."""
    dtypes = {wanted.name: wanted.dtype or "float32" for wanted in inputs}
    for profile in found:
        ranges = profile.ranges.items()
        largest = {**shapes, **{name: found_range.max for name, found_range in ranges if not found_range.values}}
        batches.require_room(
            f"profile {profile.name!r}: inputs of its max shape",
            {name: (shape, dtypes[name]) for name, shape in largest.items()},
            f"lower the max in model.dims or model.profiles.{profile.name}, or give data: model.holdout.path=…",
        )


def _holding(values: Sequence[int], wanted: Input) -> Array:
    import numpy as np

    shape = [size for size in wanted.shape or () if isinstance(size, int)]
    return np.array(values, dtype=wanted.dtype).reshape(shape)


def _random(random: np.random.Generator, shape: tuple[int, ...], wanted: Input) -> Array:
    dtype = wanted.dtype or "float32"
    if "float" in dtype:
        return random.standard_normal(shape).astype(dtype)
    if "int" in dtype or dtype == "bool":
        return random.integers(0, 2, shape).astype(dtype)
    raise StageError(f"input {wanted.name!r} is {dtype}, for which nothing can be generated", "give held-out data")
