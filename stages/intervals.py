"""How sure a measured rate or mean is: 95 % confidence intervals, each as (low, high)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stages.batches import Array

Z = 1.959963984540054
"""The 97.5 % point of the standard normal distribution."""

RESAMPLES = 1000
"""Percentiles of 2.5 % and 97.5 % then lie between 25th and 26th values from the ends."""

Interval = tuple[float, float]


def wilson(right: int, count: int) -> Interval:
    """Of a rate `right / count`: the score interval, which holds for small counts and for rates of 0 and 1, too.

    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference, JASA 22 (1927).
    """
    rate, square = right / count, Z * Z / count
    centre = rate + square / 2
    half = Z * math.sqrt(rate * (1 - rate) / count + square / (4 * count))
    return max(0.0, (centre - half) / (1 + square)), min(1.0, (centre + half) / (1 + square))


def paired_difference(both: int, first_only: int, second_only: int, neither: int) -> Interval:
    """Of the difference between two rates of right answers to the same questions: first's rate less second's.

    Source: R. G. Newcombe, Improved confidence intervals for the difference between binomial proportions based on
    paired data, Statistics in Medicine 17 (1998), method 10: the score intervals of both rates, joined by their
    correlation phi.

    Args:
        both: Questions that both answer right.
        first_only: That the first answers right and the second does not.
        second_only: The reverse.
        neither: That none answers right.
    """
    count = both + first_only + second_only + neither
    first, second = (both + first_only) / count, (both + second_only) / count
    (low1, high1), (low2, high2) = wilson(both + first_only, count), wilson(both + second_only, count)
    phi = _phi(both, first_only, second_only, neither)

    def reach(one: float, other: float) -> float:
        # Rounding can carry the sum of squares of equal rates a little below 0.
        return math.sqrt(max(0.0, one * one - 2 * phi * one * other + other * other))

    difference = first - second
    return difference - reach(first - low1, high2 - second), difference + reach(high1 - first, second - low2)


def _phi(both: int, first_only: int, second_only: int, neither: int) -> float:
    margins = (both + first_only) * (second_only + neither) * (both + second_only) * (first_only + neither)
    if margins == 0:
        return 0.0
    excess: float = both * neither - first_only * second_only
    half = (both + first_only + second_only + neither) / 2
    if excess > 0:
        excess = max(0.0, excess - half)  # the continuity correction of method 10
    return excess / math.sqrt(margins)


def bootstrap(values: Array) -> Interval:
    """Of the mean of `values` (N,): the percentiles of the means of `RESAMPLES` draws of N samples with replacement.

    Source: B. Efron, Bootstrap methods: another look at the jackknife, Annals of Statistics 7 (1979). The draws are the
    same each time. For the difference of two models give the differences by sample.
    """
    import numpy as np

    random = np.random.default_rng(0)
    means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)
