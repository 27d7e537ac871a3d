"""Histograms: what they say about a range does not depend on order, and is near the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.histograms import ALGORITHMS, LEVELS, Histogram, NotFiniteError

FLOATS = arrays(np.float32, st.integers(1, 200), elements=st.floats(-(2.0**100), 2.0**100, width=32))


def histogram(*parts: np.ndarray) -> Histogram:
    counted = Histogram()
    for part in parts:
        counted.add(part)
    return counted


@given(FLOATS)
def test_the_largest_bin_is_within_one_part_in_128_of_the_true_maximum(values: np.ndarray) -> None:
    counted, true = histogram(values), float(np.abs(values).max())
    assert counted.max == true
    smallest_normal = float(np.finfo(np.float32).tiny)
    assert abs(counted.magnitudes()[0].max() - true) <= max(true / 128, smallest_normal)


@given(st.lists(FLOATS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_the_batches_does_not_matter(parts: list[np.ndarray], random) -> None:
    shuffled = random.sample(parts, len(parts))
    for algorithm in ALGORITHMS:
        assert histogram(*parts).amax(algorithm, 99) == histogram(*shuffled).amax(algorithm, 99)


@given(FLOATS, FLOATS)
def test_merging_equals_counting_together(one: np.ndarray, other: np.ndarray) -> None:
    merged = histogram(one)
    merged.merge(histogram(other))
    together = histogram(one, other)
    assert [a.tolist() for a in merged.magnitudes()] == [a.tolist() for a in together.magnitudes()]
    assert merged.max == together.max


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.9])
def test_a_percentile_is_that_of_numpy_to_one_bin(percentile: float) -> None:
    values = np.random.default_rng(0).standard_normal(100_000).astype(np.float32)
    expected = np.percentile(np.abs(values), percentile)
    assert histogram(values).amax("percentile", percentile) == pytest.approx(expected, rel=1 / 128)


def test_mse_cuts_off_an_outlier_and_max_does_not() -> None:
    values = np.append(np.random.default_rng(0).standard_normal(1_000_000), 20).astype(np.float32)
    counted = histogram(values)
    assert counted.amax("max", 0) == 20
    assert 4 < counted.amax("mse", 0) < 12


def test_mse_is_no_worse_than_any_other_threshold() -> None:
    values = np.random.default_rng(1).laplace(size=20_000).astype(np.float32)

    def error(amax: float) -> float:
        scale = amax / LEVELS
        return float(((values - np.clip(np.rint(values / scale), -LEVELS, LEVELS) * scale) ** 2).mean())

    found = histogram(values).amax("mse", 0)
    best = min(error(float(amax)) for amax in np.linspace(0.5, np.abs(values).max(), 200))
    assert error(found) <= best * 1.02


def test_zeros_have_range_zero() -> None:
    counted = histogram(np.array([0.0, -0.0], np.float32))
    assert [counted.amax(algorithm, 99) for algorithm in ALGORITHMS] == [0, 0, 0]
    assert counted.magnitudes()[1].tolist() == [2]


def test_mostly_zeros_still_have_a_range() -> None:
    values = np.zeros(100_000, np.float32)
    values[0] = 3
    assert histogram(values).amax("percentile", 99) == 3


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(NotFiniteError):
        histogram(np.array([1, bad, 2], np.float32))


def test_float16_and_empty_arrays_count_too() -> None:
    counted = histogram(np.array([1, -2], np.float16), np.zeros((0, 3), np.float32))
    assert counted.max == 2
