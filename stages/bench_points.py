"""Where a plan is timed: the ends of its profiles, and the inputs there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import generated, profiles
from stages.stage import JSON, StageError

if TYPE_CHECKING:
    from stages.batches import Batch, Input

ENDS = ("min", "opt", "max")


@dataclass(frozen=True)
class Point:
    """One end of one profile.

    Attributes:
        profile: The profile's name; None for a model of fixed shapes.
        index: Its number, as it was built in.
        end: `min`, `opt` or `max`.
        feed: Inputs there, by name.
        samples: The size that axis 0 of all inputs has, scalars and shape tensors left out; None where they differ.
    """

    profile: str | None
    index: int
    end: str
    feed: Batch
    samples: int | None

    @property
    def name(self) -> str:
        """`default.opt`; `opt` for a model of fixed shapes."""
        return self.end if self.profile is None else f"{self.profile}.{self.end}"

    def described(self) -> dict[str, JSON]:
        """For reports: its name, the inputs' shapes, and the samples of a run."""
        shapes: dict[str, JSON] = {name: list(array.shape) for name, array in self.feed.items()}
        return {"profile": self.profile, "point": self.end, "shapes": shapes, "samples": self.samples}


def points(
    inputs: Sequence[Input], found: Sequence[profiles.Profile], wanted: Sequence[str], seed: int
) -> Iterator[Point]:
    """The points that `wanted` names (`opt`, or `small.opt`), profile by profile; of ends with equal shapes one, `opt`.

    Raises:
        StageError: There is no such profile, or its inputs cannot be made.
    """
    _require_known(found, wanted)
    held = profiles.shape_tensors(found)
    for index, profile in enumerate(found or (None,)):
        ends = _ends(profile, wanted)
        for end in ends:
            feed = generated.at(inputs, found, profile, end, seed)
            sizes = {array.shape[0] for name, array in feed.items() if array.ndim and name not in held}
            samples = sizes.pop() if len(sizes) == 1 else None
            yield Point(profile.name if profile else None, index, end, feed, samples)


def _ends(profile: profiles.Profile | None, wanted: Sequence[str]) -> list[str]:
    """The ends of this profile that are asked for; one for all that are alike."""
    if profile is None:
        return ["opt"] if wanted else []
    asked = [end for end in ENDS if end in wanted or f"{profile.name}.{end}" in wanted]
    alike = {end: tuple(getattr(each, end) for each in profile.ranges.values()) for end in asked}
    # `opt` last: it is what stays.
    kept = {alike[end]: end for end in sorted(asked, key=lambda end: end == "opt")}
    return [end for end in asked if end in kept.values()]


def _require_known(found: Sequence[profiles.Profile], wanted: Sequence[str]) -> None:
    names = [profile.name for profile in found]
    for text in wanted:
        profile, dot, _ = text.rpartition(".")
        if dot and profile not in names:
            raise StageError(
                f"points: {text!r}: the model has no profile {profile!r}",
                f"it has {', '.join(names)}" if names else "its shapes are fixed: leave the profile out, points=[opt]",
            )
