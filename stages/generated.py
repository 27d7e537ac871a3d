"""Inputs for models that come without data: random ones, in the shapes that the profiles promise.

A shape tensor is not random: with the min shapes of a profile it holds that profile's min values, and so on.

Beside them stand what a model should not need, and may well meet: edges, where one dim is at its end while the others
are at opt, and extremes, inputs that are all zeros or very large.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from stages import batches, profiles
from stages.stage import StageError

LARGE = 100.0
"""How many times larger than normal the values of large inputs are: what was not normalised is of this size (0 to 255),
and a few layers of float16 can leave its range with it."""

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
        yield _filled(inputs, dict(unique[number % len(unique)]), held, random), (number + 1) / runs


def at(
    inputs: Sequence[Input], found: Sequence[profiles.Profile], profile: profiles.Profile | None, which: str, seed: int
) -> Batch:
    """Inputs at one end of one profile, such as `generate` yields.

    Args:
        inputs: The model's.
        found: All its profiles.
        profile: One of them; None for a model that has none.
        which: `min`, `opt` or `max`.
        seed: Of the numbers.

    Raises:
        StageError: A dynamic dimension has no profile, or a profile's shapes are too large to be filled.
    """
    import numpy as np

    shapes = declared(inputs)
    profiles.check(found, shapes)
    _require_room(inputs, found, shapes)
    ranges = profile.ranges if profile else {}
    chosen = {name: getattr(ranges[name], which) if name in ranges else shape for name, shape in shapes.items()}
    return _filled(inputs, chosen, profiles.shape_tensors(found), np.random.default_rng(seed))


def _filled(
    inputs: Sequence[Input], chosen: Mapping[str, Sequence[int]], held: set[str], random: np.random.Generator
) -> Batch:
    """A batch of these shapes; of the inputs in `held`, that holds these numbers."""
    return {
        wanted.name: _holding(chosen[wanted.name], wanted)
        if wanted.name in held
        else _random(random, tuple(chosen[wanted.name]), wanted)
        for wanted in inputs
    }


def generate_edges(
    inputs: Sequence[Input], found: Sequence[profiles.Profile], seed: int
) -> Iterator[tuple[str, Batch]]:
    """Inputs at every edge of every profile: what is at its end (`profile default: batch=64`), and the inputs.

    Dims that have one name are one dim. One without a name may depend on others in ways that nobody states, and so do
    the numbers in a shape tensor: these stay at opt. A shape that is some profile's min, opt or max is left out.
    """
    import numpy as np

    shapes, random = declared(inputs), np.random.default_rng(seed)
    met = {_frozen(_at(profile, shapes, end)) for profile in found for end in ("min", "opt", "max")}
    for profile in found:
        held = {name: each.opt for name, each in profile.ranges.items() if each.values}
        for dim, places in _named_dims(inputs, profile).items():
            for end in ("min", "max"):
                chosen = {name: list(shape) for name, shape in _at(profile, shapes, "opt").items()}
                for name, axis in places:
                    chosen[name][axis] = getattr(profile.ranges[name], end)[axis]
                if _frozen(chosen) not in met:
                    met.add(_frozen(chosen))
                    where = f"profile {profile.name}: {dim}={chosen[places[0][0]][places[0][1]]}"
                    yield where, _filled(inputs, {**chosen, **held}, set(held), random)


def generate_extremes(
    inputs: Sequence[Input], found: Sequence[profiles.Profile], seed: int
) -> Iterator[tuple[str, Batch]]:
    """`zeros` and `large` at the opt shapes of the first profile: floats are 0, or `LARGE` times standard normal.

    Whole numbers and booleans are as ever: which ones a model takes nobody knows. A model without floats has none.
    """
    floats = {wanted.name for wanted in inputs if "float" in (wanted.dtype or "")}
    opt = [
        profiles.Profile(
            each.name, {name: profiles.Range(r.opt, r.opt, r.opt, r.values) for name, r in each.ranges.items()}
        )
        for each in found[:1]
    ]
    if floats:
        batch, _ = next(generate(inputs, opt, 1, seed))
        for kind, factor in (("zeros", 0.0), ("large", LARGE)):
            yield (
                kind,
                {
                    name: (values * factor).astype(values.dtype) if name in floats else values  # type: ignore[operator]
                    for name, values in batch.items()
                },
            )


def _at(profile: profiles.Profile, shapes: Mapping[str, Sequence[int]], end: str) -> dict[str, Sequence[int]]:
    """The shape of each input at an end of the profile; of a shape tensor, its own."""
    ranges = profile.ranges
    return {
        name: getattr(ranges[name], end) if name in ranges and not ranges[name].values else shape
        for name, shape in shapes.items()
    }


def _frozen(shapes: Mapping[str, Sequence[int]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple(sorted((name, tuple(shape)) for name, shape in shapes.items()))


def _named_dims(inputs: Sequence[Input], profile: profiles.Profile) -> dict[str, list[tuple[str, int]]]:
    """The places, input and axis, of every dim that has a name and varies in the profile."""
    places: dict[str, list[tuple[str, int]]] = {}
    for wanted in inputs:
        given = profile.ranges.get(wanted.name)
        for axis, dim in enumerate(wanted.shape or ()):
            if isinstance(dim, str) and given and not given.values and given.min[axis] != given.max[axis]:
                places.setdefault(dim, []).append((wanted.name, axis))
    return places


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
