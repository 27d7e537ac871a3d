"""Thresholds: what each algorithm makes of a histogram is near what it makes of the values themselves."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.histograms import Histogram
from stages.thresholds import ALGORITHMS, ENTROPY_BINS, FP8_ALGORITHMS, LEVELS, amax, divergences, linear_bins
from tests.stages.rewriting import rng

FLOATS = arrays(np.float32, st.integers(1, 200), elements=st.floats(-(2.0**100), 2.0**100, width=32))


def histogram(*parts: np.ndarray) -> Histogram:
    counted = Histogram()
    for part in parts:
        counted.add(np.asarray(part, np.float32))
    return counted


@settings(deadline=None)
@given(st.lists(FLOATS, min_size=1, max_size=5), st.randoms(use_true_random=False))
def test_the_order_of_the_batches_does_not_matter(parts: list[np.ndarray], random) -> None:
    shuffled = random.sample(parts, len(parts))
    for algorithm in ALGORITHMS:
        assert amax(histogram(*parts), algorithm, 99) == amax(histogram(*shuffled), algorithm, 99)


@given(FLOATS)
def test_no_range_is_larger_than_the_largest_value_and_none_but_that_of_zeros_is_zero(values: np.ndarray) -> None:
    counted = histogram(values)
    for algorithm in ALGORITHMS:
        found = amax(counted, algorithm, 99)
        assert 0 <= found <= counted.max
        assert (found == 0) == (counted.max == 0)


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.9])
def test_a_percentile_is_that_of_numpy_to_one_bin(percentile: float) -> None:
    values = rng().standard_normal(100_000).astype(np.float32)
    expected = np.percentile(np.abs(values), percentile)
    assert amax(histogram(values), "percentile", percentile) == pytest.approx(expected, rel=1 / 128)


def test_mse_cuts_off_an_outlier_and_max_does_not() -> None:
    counted = histogram(np.append(rng().standard_normal(1_000_000), 20))
    assert amax(counted, "max", 0) == 20
    assert 4 < amax(counted, "mse", 0) < 12


def test_mse_is_no_worse_than_any_other_threshold() -> None:
    values = np.random.default_rng(1).laplace(size=20_000).astype(np.float32)

    def error(threshold: float) -> float:
        scale = threshold / LEVELS
        return float(((values - np.clip(np.rint(values / scale), -LEVELS, LEVELS) * scale) ** 2).mean())

    found = amax(histogram(values), "mse", 0)
    best = min(error(float(threshold)) for threshold in np.linspace(0.5, np.abs(values).max(), 200))
    assert error(found) <= best * 1.02


def in_fp8(values: np.ndarray, threshold: float) -> np.ndarray:
    """What E4M3 makes of `values`, by ml_dtypes."""
    scale = threshold / 448
    codes = np.clip(values / scale, -448, 448).astype(np.float32).astype(ml_dtypes.float8_e4m3fn)
    return codes.astype(np.float64) * scale


@pytest.mark.parametrize("draw", ["standard_normal", "laplace", "standard_cauchy"])
def test_mse_for_fp8_is_no_worse_than_any_other_threshold(draw: str) -> None:
    values = getattr(np.random.default_rng(1), draw)(size=20_000).astype(np.float32)

    def error(threshold: float) -> float:
        return float(((values - in_fp8(values, threshold)) ** 2).mean())

    largest = float(np.abs(values).max())
    found = amax(histogram(values), "mse", 0, "fp8")
    best = min(error(largest * 2.0 ** (-step / 16)) for step in range(160))
    assert error(found) <= best * 1.02


def test_fp8_needs_no_cut_where_int8_does() -> None:
    counted = histogram(np.append(rng().standard_normal(1_000_000), 20))
    assert amax(counted, "mse", 0, "fp8") > 1.5 * amax(counted, "mse", 0)


@given(FLOATS)
def test_no_range_for_fp8_is_larger_than_the_largest_value(values: np.ndarray) -> None:
    counted = histogram(values)
    for algorithm in FP8_ALGORITHMS:
        assert 0 <= amax(counted, algorithm, 99, "fp8") <= counted.max


def test_zeros_and_nothing_have_range_zero() -> None:
    for counted in (histogram([0.0, -0.0]), histogram()):
        assert [amax(counted, algorithm, 99) for algorithm in ALGORITHMS] == [0] * len(ALGORITHMS)


def test_mostly_zeros_still_have_a_range() -> None:
    values = np.zeros(100_000, np.float32)
    values[0] = 3
    assert amax(histogram(values), "percentile", 99) == 3


def test_a_constant_keeps_its_range_with_every_algorithm() -> None:
    counted = histogram(np.full(1000, -2.5))
    assert [amax(counted, algorithm, 99.99) for algorithm in ALGORITHMS] == [2.5] * len(ALGORITHMS)


# Entropy


def published(bins: np.ndarray) -> list[float]:
    """The divergences, bin by bin, as "8-bit Inference with TensorRT" has them."""
    found = []
    for i in range(128, len(bins) + 1):
        p = [float(count) for count in bins[:i]]
        p[i - 1] += float(sum(bins[i:]))
        q = [0.0] * i
        for level in range(128):
            members = [j for j in range(i) if j * 128 // i == level]
            filled = [j for j in members if bins[j] > 0]
            for j in filled:
                q[j] = float(sum(bins[k] for k in members)) / len(filled)
        of_p, of_q, divergence = sum(p), sum(q), 0.0
        for one, other in zip(p, q, strict=True):
            if one > 0:
                divergence += float("inf") if other == 0 else one / of_p * np.log(one / of_p * of_q / other)
        found.append(divergence)
    return found


SHAPES = {
    "normal": lambda: np.histogram(np.abs(rng().standard_normal(50_000)), 300)[0],
    "a long tail": lambda: np.histogram(rng().exponential(size=3_000) ** 2, 300)[0],
    "gaps": lambda: rng().integers(0, 2, 300) * rng().integers(1, 90, 300) + np.eye(300, dtype=int)[299],
    "one value": lambda: np.eye(300, dtype=int)[299] * 7,
}


def test_the_threshold_is_in_the_middle_of_the_bin_after_the_best() -> None:
    """Bins of whole numbers, of which the histogram keeps each apart: no value is spread over bins."""
    bins = rng().geometric(0.02, 40_000)
    values = np.minimum(bins, 128)  # 128 is the largest, so bin i holds the values of i / 16
    counts = np.bincount(np.minimum(values * 16, 2047), minlength=2048).astype(float)
    counts[0] = counts[1] if counts[1] > 0 else counts[0]
    best = 128 + int(np.argmin(divergences(counts)))
    assert amax(histogram(values), "entropy", 0) == min((best + 0.5) * 128 / 2048, 128)


@pytest.mark.parametrize("shape", SHAPES)
def test_divergences_are_those_of_the_published_description(shape: str) -> None:
    bins = SHAPES[shape]().astype(float)
    np.testing.assert_allclose(divergences(bins), published(bins), rtol=1e-9, atol=1e-12)


@settings(max_examples=20, deadline=None)
@given(arrays(np.int64, 140, elements=st.integers(0, 5)))
def test_divergences_of_any_counts_are_those_of_the_published_description(counts: np.ndarray) -> None:
    counts[-1] += 1  # the largest value is in the last bin
    bins = counts.astype(float)
    np.testing.assert_allclose(divergences(bins), published(bins), rtol=1e-9, atol=1e-12)


@given(FLOATS.filter(lambda values: bool(np.abs(values).max() >= 2.0**-126)))
def test_equal_bins_lose_no_value(values: np.ndarray) -> None:
    bins = linear_bins(histogram(values))
    assert bins.shape == (ENTROPY_BINS,)
    assert bins.sum() == pytest.approx(values.size)
    assert bins[-1] > 0


@pytest.mark.parametrize("draw", ["standard_normal", "laplace", "relu"])
def test_entropy_from_the_histogram_is_near_that_from_the_values(draw: str) -> None:
    values = np.abs(rng().laplace(size=200_000) if draw == "laplace" else rng().standard_normal(200_000))
    if draw == "relu":
        values = np.append(values, np.zeros(200_000))
    exact, edges = np.histogram(values, ENTROPY_BINS, (0, np.float32(values.max())))
    exact = exact.astype(float)
    exact[0] = exact[1]
    expected = (128 + int(np.argmin(divergences(exact))) + 0.5) * edges[1]
    found = amax(histogram(values), "entropy", 0)
    # The minimum is flat: what is held is that the threshold found is as good, and not far off.
    place = round(found / edges[1] - 0.5) - 128
    near = divergences(exact)[max(place - 16, 0) : place + 17]  # infinite where a bin of the values is empty
    assert near.min() <= divergences(exact).min() * 1.1
    assert found == pytest.approx(expected, rel=0.2)


def test_entropy_does_not_spend_its_codes_on_the_zeros_behind_a_relu() -> None:
    values = np.abs(rng().standard_normal(100_000))
    alone = amax(histogram(values), "entropy", 0)
    assert amax(histogram(values, np.zeros(100_000)), "entropy", 0) == pytest.approx(alone, rel=0.05)


def test_entropy_keeps_the_largest_of_a_few_levels() -> None:
    assert amax(histogram(np.repeat(np.arange(17) / 16, 100)), "entropy", 0) == 1
