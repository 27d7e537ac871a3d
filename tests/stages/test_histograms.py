"""Histograms: what they count does not depend on order, and is near the truth."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.histograms import CHUNK, Histogram, NotFiniteError

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


@given(FLOATS, FLOATS)
def test_merging_equals_counting_together(one: np.ndarray, other: np.ndarray) -> None:
    merged = histogram(one)
    merged.merge(histogram(other))
    together = histogram(one, other)
    assert [a.tolist() for a in merged.magnitudes()] == [a.tolist() for a in together.magnitudes()]
    assert merged.max == together.max


@given(st.lists(FLOATS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_the_batches_does_not_matter(parts: list[np.ndarray], random) -> None:
    one, other = histogram(*parts), histogram(*random.sample(parts, len(parts)))
    assert [a.tolist() for a in one.sparse()] == [a.tolist() for a in other.sparse()]
    assert (one.low, one.high) == (other.low, other.high)


@given(FLOATS)
def test_a_histogram_is_made_again_from_its_sparse_form(values: np.ndarray) -> None:
    counted = histogram(values)
    again = Histogram.from_sparse(*counted.sparse(), counted.low, counted.high)
    assert [a.tolist() for a in again.edges()] == [a.tolist() for a in counted.edges()]
    assert (again.low, again.high) == (values.min(), values.max())


def test_more_values_than_are_counted_at_once_are_all_counted() -> None:
    values = np.arange(2 * CHUNK + 5, dtype=np.float32)
    assert histogram(values).sparse()[1].sum() == values.size


def test_zero_and_minus_zero_are_one_magnitude() -> None:
    assert histogram(np.array([0.0, -0.0], np.float32)).magnitudes()[1].tolist() == [2]


def test_constant_and_empty_are_told_apart_from_all_else() -> None:
    constant, empty, other = (
        histogram(np.full(9, -3, np.float32)),
        histogram(),
        histogram(np.array([1, -1], np.float32)),
    )
    assert [each.is_constant for each in (constant, empty, other)] == [True, False, False]
    assert [each.is_empty for each in (constant, empty, other)] == [False, True, False]
    assert [each.max for each in (constant, empty, other)] == [3, 0, 1]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(NotFiniteError):
        histogram(np.array([1, bad, 2], np.float32))


def test_float16_and_empty_arrays_count_too() -> None:
    counted = histogram(np.array([1, -2], np.float16), np.zeros((0, 3), np.float32))
    assert counted.max == 2
