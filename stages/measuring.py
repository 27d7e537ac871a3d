"""How a time is measured: warm up, repeat, keep every single one; and what is told of many times.

Nothing here knows what is measured, nor on what.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from stages.stage import JSON

T = TypeVar("T")

MOST_ITERATIONS = 10_000
"""More are not kept: at 10 us each they would take a tenth of a second, and as JSON 2 MB."""

PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Limits:
    """How often something is repeated: both numbers of a pair are reached, but never more than `MOST_ITERATIONS`.

    Attributes:
        warmup_iterations: So many runs at least come first and are not kept.
        warmup_ms: They take so long at least, in milliseconds.
        iterations: So many runs at least are kept.
        duration_ms: They take so long at least, in milliseconds.
    """

    warmup_iterations: int
    warmup_ms: float
    iterations: int
    duration_ms: float


def repeat(once: Callable[[], T], limits: Limits, began: Callable[[], None] = lambda: None) -> list[T]:
    """What `once` returned each time after the warm-up.

    Args:
        once: Runs it once, to its end.
        limits: How often.
        began: Called between the warm-up and the rest.
    """
    _until(once, limits.warmup_iterations, limits.warmup_ms)
    began()
    return _until(once, limits.iterations, limits.duration_ms)


def _until(once: Callable[[], T], iterations: int, duration_ms: float) -> list[T]:
    found: list[T] = []
    end = time.perf_counter() + duration_ms / 1000
    while len(found) < MOST_ITERATIONS and (len(found) < iterations or time.perf_counter() < end):
        found.append(once())
    return found


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of the values that at least `percent` per cent of them do not exceed (nearest rank).

    So it is a time that was measured, never one between two.
    """
    return _at_rank(sorted(values), percent)


def _at_rank(ordered: Sequence[float], percent: int) -> float:
    return ordered[math.ceil(percent * len(ordered) / 100) - 1]


def distribution(values: Sequence[float]) -> dict[str, JSON]:
    """`count`, `min`, `mean`, `p50`, `p90`, `p99` and `max` of some times, in their unit.

    Raises:
        ValueError: There are no values.
    """
    if not values:
        raise ValueError("a distribution of no values")
    ordered = sorted(values)
    ranks = {f"p{percent}": _at_rank(ordered, percent) for percent in PERCENTILES}
    told = {"min": ordered[0], "mean": math.fsum(ordered) / len(ordered), **ranks, "max": ordered[-1]}
    return {"count": len(ordered), **{name: rounded(value) for name, value in told.items()}}


def rounded(value: float) -> float:
    """To a nanosecond, where it is in milliseconds: CUDA's events resolve half a microsecond."""
    return round(value, 6)
