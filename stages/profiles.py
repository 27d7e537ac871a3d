"""Optimization profiles: which shapes a plan takes, as the fact `profiles` states them.

`{profile: {input: {"min": shape, "opt": shape, "max": shape}}}`, for every input with a dynamic dimension.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from stages.stage import StageError

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """The shapes of one input in one profile."""

    min: Shape
    opt: Shape
    max: Shape

    def admits(self, shape: Sequence[int]) -> bool:
        """Whether the shape lies between `min` and `max` in every dimension."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )


@dataclass(frozen=True)
class Profile:
    """One profile: a range for every input with a dynamic dimension."""

    name: str
    ranges: Mapping[str, Range]


def profiles_of(fact: Any) -> tuple[Profile, ...]:
    """The fact `profiles` in a fixed order: by name, since a key does not see the order they were written in.

    Raises:
        StageError: A shape is missing, or min <= opt <= max does not hold.
    """
    return tuple(
        Profile(name, {input_name: _range(name, input_name, shapes) for input_name, shapes in sorted(inputs.items())})
        for name, inputs in sorted((fact or {}).items())
    )


def check(profiles: Sequence[Profile], inputs: Mapping[str, Sequence[int]]) -> None:
    """Holds the profiles against a model's inputs.

    Args:
        profiles: What `profiles_of` gave.
        inputs: The shape of each input, -1 for a dynamic dimension.

    Raises:
        StageError: An input with a dynamic dimension has no range, or a range does not fit the model.
    """
    dynamic = [name for name, shape in inputs.items() if -1 in shape]
    if dynamic and not profiles:
        raise _missing(dynamic[0], inputs[dynamic[0]], "no profile is given")
    for profile in profiles:
        for name in dynamic:
            if name not in profile.ranges:
                raise _missing(name, inputs[name], f"profile {profile.name!r} has no range for it")
        for name, found in profile.ranges.items():
            _check_range(profile.name, name, found, inputs)


def _missing(name: str, shape: Sequence[int], why: str) -> StageError:
    text = ", ".join("?" if size == -1 else str(size) for size in shape)
    hint = f"model.profiles.default.{name}: {{min: [...], opt: [...], max: [...]}}"
    return StageError(f"input {name!r} has the dynamic shape ({text}), and {why}", f"give one: {hint}")


def _check_range(profile: str, name: str, found: Range, inputs: Mapping[str, Sequence[int]]) -> None:
    if name not in inputs:
        near = difflib.get_close_matches(name, inputs, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the inputs are {', '.join(inputs)}"
        raise StageError(f"profile {profile!r} has a range for {name!r}, which is no input of the model", hint)
    shape = inputs[name]
    fits = len(shape) == len(found.min) and all(
        size in (-1, low) and size in (-1, high) for size, low, high in zip(shape, found.min, found.max, strict=True)
    )
    if not fits:
        got = f"min {list(found.min)}, max {list(found.max)}"
        raise StageError(
            f"profile {profile!r} gives {name!r} {got}, and the model has {list(shape)} (-1 is dynamic)",
            "give every profile the input's rank and its fixed sizes",
        )


def _range(profile: str, name: str, shapes: Any) -> Range:
    where = f"profile {profile!r}, input {name!r}"
    absent = [key for key in ("min", "opt", "max") if key not in shapes]
    if absent:
        raise StageError(f"{where}: {', '.join(absent)} is missing", "give min, opt and max, each a full shape")
    found = Range(*(tuple(int(size) for size in shapes[key]) for key in ("min", "opt", "max")))
    if not (len(found.min) == len(found.opt) == len(found.max)):
        raise StageError(f"{where}: min, opt and max have other ranks: {found}", "give each the input's rank")
    ordered = zip(found.min, found.opt, found.max, strict=True)
    if not all(0 <= low <= best <= high for low, best, high in ordered):
        raise StageError(f"{where}: not min <= opt <= max: {found}", "order the sizes in every dimension")
    return found
