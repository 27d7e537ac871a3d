"""Optimization profiles: which shapes a plan takes, as the fact `profiles` states them.

`{profile: {input: {"min": shape, "opt": shape, "max": shape}}}`, for every input with a dynamic dimension. Of a shape
tensor, an input that holds a shape (what a Reshape, a Resize or an Expand takes beside its data), the range is not of
its own shape but of the numbers in it: `{"min": …, "opt": …, "max": …, "values": True}`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, TypeAlias

from stages.stage import StageError

if TYPE_CHECKING:
    from stages.batches import Array

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Range:
    """The shapes of one input in one profile.

    Attributes:
        min: The smallest.
        opt: The one to optimize for.
        max: The largest.
        values: Whether these are the numbers that the input holds, not its shape.
    """

    min: Shape
    opt: Shape
    max: Shape
    values: bool = False

    def measure(self, array: Array) -> Shape:
        """What of `array` this is a range of: its shape, or the numbers in it."""
        return tuple(map(int, array.ravel())) if self.values else array.shape

    def admits(self, shape: Sequence[int]) -> bool:
        """Whether the shape, or the numbers, lie between `min` and `max` in every place."""
        return len(shape) == len(self.min) and all(
            low <= size <= high for low, size, high in zip(self.min, shape, self.max, strict=True)
        )


@dataclass(frozen=True)
class Profile:
    """One profile: a range for every input with a dynamic dimension, and every shape tensor."""

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


def shape_tensors(profiles: Sequence[Profile]) -> set[str]:
    """The inputs whose values the profiles give."""
    return {name for profile in profiles for name, found in profile.ranges.items() if found.values}


def override(profile: str, name: str, ends: Mapping[str, Sequence[int]], values: bool = False) -> str:
    """What to type for a range of the input `name`, in quotes; `ends` are its min, opt and max."""
    body = ",".join(f"{end}:[{','.join(map(str, sizes))}]" for end, sizes in ends.items()) + ",values:true" * values
    if name.isidentifier():
        return f"'model.profiles.{profile}.{name}={{{body}}}'"
    # Dots, colons and brackets mean something to Hydra in a key, and nothing in a mapping once they are escaped.
    escaped = re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", name)
    return f"'model.profiles.{profile}={{{escaped}:{{{body}}}}}'"


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
            _require_input(profile.name, name, inputs)
            check_one = _check_values if found.values else _check_shapes
            check_one(profile.name, name, found, inputs[name])


def _missing(name: str, shape: Sequence[int], why: str) -> StageError:
    text = ", ".join("?" if size == -1 else str(size) for size in shape)
    hint = f"model.profiles.default.{name}: {{min: [...], opt: [...], max: [...]}}"
    return StageError(f"input {name!r} has the dynamic shape ({text}), and {why}", f"give one: {hint}")


def _require_input(profile: str, name: str, inputs: Mapping[str, Sequence[int]]) -> None:
    if name not in inputs:
        near = difflib.get_close_matches(name, inputs, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"the inputs are {', '.join(inputs)}"
        raise StageError(f"profile {profile!r} has a range for {name!r}, which is no input of the model", hint)


def _check_shapes(profile: str, name: str, found: Range, shape: Sequence[int]) -> None:
    fits = len(shape) == len(found.min) and all(
        size in (-1, low) and size in (-1, high) for size, low, high in zip(shape, found.min, found.max, strict=True)
    )
    if not fits:
        got = f"min {list(found.min)}, max {list(found.max)}"
        raise StageError(
            f"profile {profile!r} gives {name!r} {got}, and the model has {list(shape)} (-1 is dynamic)",
            "give every profile the input's rank and its fixed sizes",
        )


def _check_values(profile: str, name: str, found: Range, shape: Sequence[int]) -> None:
    if len(shape) > 1 or -1 in shape:
        raise StageError(
            f"profile {profile!r} gives values of {name!r}, and the model has {list(shape)} (-1 is dynamic)",
            "a shape tensor has rank 0 or 1 and a fixed size",
        )
    if len(found.min) != prod(shape):
        raise StageError(
            f"profile {profile!r} gives {name!r} {len(found.min)} values, and it holds {prod(shape)}",
            "give min, opt and max a number for each",
        )


def _range(profile: str, name: str, shapes: Any) -> Range:
    where = f"profile {profile!r}, input {name!r}"
    absent = [key for key in ("min", "opt", "max") if key not in shapes]
    if absent:
        raise StageError(f"{where}: {', '.join(absent)} is missing", "give min, opt and max, each a full shape")
    low, opt, high = (tuple(int(size) for size in shapes[key]) for key in ("min", "opt", "max"))
    found = Range(low, opt, high, bool(shapes.get("values")))
    if not (len(found.min) == len(found.opt) == len(found.max)):
        raise StageError(f"{where}: min, opt and max have other ranks: {found}", "give each the input's rank")
    ordered = zip(found.min, found.opt, found.max, strict=True)
    # A value may be -1: Reshape takes it for what is left.
    if not all((found.values or low >= 0) and low <= best <= high for low, best, high in ordered):
        raise StageError(f"{where}: not min <= opt <= max: {found}", "order the sizes in every dimension")
    return found
