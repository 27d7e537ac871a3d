"""The algorithms that turn a histogram into a range: the magnitude that INT8's or FP8's largest code shall stand for.

None is the best for every model: percentile 99.99 beat mse on three of seven, and lost on four. `stages.trial` tries
them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from stages.histograms import Floats, Histogram

ALGORITHMS = ("mse", "percentile", "max", "entropy")
FP8_ALGORITHMS = ("mse", "percentile", "max")
"""`entropy` counts INT8's equal levels, and FP8 has others."""

LEVELS = 127
"""INT8, symmetric: the largest code on either side (-128 is not used)."""

FP8_LARGEST, FP8_MANTISSA_BITS, FP8_LEAST_EXPONENT = 448.0, 3, -6
"""FP8 E4M3: the largest code (there is no infinity), bits behind the point, and the exponent of the smallest normal
number, below which codes are evenly spaced (OCP 8-bit Floating Point Specification)."""

STEPS, PER_OCTAVE = 160, 16
"""The thresholds that `mse` tries: 10 octaves down from the maximum, 4.4 % apart."""

ENTROPY_BINS, ENTROPY_LEVELS = 2048, 128
"""Of TensorRT's calibrator, as NVIDIA published it ("8-bit Inference with TensorRT", GTC 2017: thresholds from 128 bins
on, what lies beyond added to the last bin, 128 levels, (m + 0.5) bin widths; whether all 2,048 bins are a
threshold too it leaves open, and here they are)."""


def amax(histogram: Histogram, algorithm: str, percentile: float, precision: str = "int8") -> float:
    """The range by one of `ALGORITHMS`; 0 if all values are 0, or there are none.

    Args:
        histogram: What the tensor holds.
        algorithm: Which one.
        percentile: For `percentile`: how many percent of the values the range covers.
        precision: `int8` or `fp8`, whose codes `mse` and `entropy` look at.
    """
    if algorithm == "max" or histogram.max == 0:
        return histogram.max
    if algorithm == "percentile":
        return _percentile(histogram, percentile)
    if algorithm == "mse":
        return _least_error(histogram, _in_fp8 if precision == "fp8" else _in_int8)
    return _entropy(histogram)


def _percentile(histogram: Histogram, percentile: float) -> float:
    """The magnitude that `percentile` % of the values do not exceed, to 1/128."""
    import numpy as np

    values, counts = histogram.magnitudes()
    reached = np.cumsum(counts) >= counts.sum() * percentile / 100
    threshold = float(values[int(np.argmax(reached))])
    return threshold if threshold > 0 else histogram.max


def _least_error(histogram: Histogram, rounded: Callable[[Floats, float], Floats]) -> float:
    """The threshold with the smallest mean squared error between the values and what `rounded` makes of them."""
    import numpy as np

    values, counts = histogram.magnitudes()
    candidates = histogram.max * 2.0 ** (-np.arange(STEPS) / PER_OCTAVE)
    errors = [float(counts @ (values - rounded(values, amax)) ** 2) for amax in candidates]
    return float(candidates[int(np.argmin(errors))])


def _in_int8(values: Floats, amax: float) -> Floats:
    """What INT8 with the range `amax` makes of magnitudes."""
    import numpy as np

    scale = amax / LEVELS
    return np.clip(np.rint(values / scale), 0, LEVELS) * scale


def _in_fp8(values: Floats, amax: float) -> Floats:
    """What FP8 with the range `amax` makes of magnitudes: to the nearest code, of two the even one."""
    import numpy as np

    scale = amax / FP8_LARGEST
    scaled = values / scale
    _, exponent = np.frexp(scaled)  # scaled is below 2 ** exponent, and not below half of it
    step = np.exp2(np.maximum(exponent - 1, FP8_LEAST_EXPONENT) - FP8_MANTISSA_BITS)
    rounded: Floats = np.minimum(np.rint(scaled / step) * step, FP8_LARGEST)
    return rounded * scale


def _entropy(histogram: Histogram) -> float:
    """The threshold whose INT8 codes lose the least information: (m + 0.5) bin widths for the m of least divergence.

    As in NVIDIA's own pytorch-quantization, the first bin counts as many as the second: the zeros behind a Relu have a
    code of their own at any threshold. (Of the digits' 7 tensors 4 are such: 36.5 dB at the output instead of 10.8.)
    Data with nothing in the second bin, such as the 17 grey levels of an image, keep the first as it is.
    """
    import numpy as np

    bins = linear_bins(histogram)
    bins[0] = bins[1] if bins[1] > 0 else bins[0]
    best = ENTROPY_LEVELS + int(np.argmin(divergences(bins)))
    return min((best + 0.5) * histogram.max / ENTROPY_BINS, histogram.max)


def linear_bins(histogram: Histogram) -> Floats:
    """The counts of `ENTROPY_BINS` equal bins from 0 to the largest magnitude.

    NOTE: next to the maximum one bin of `histogram` covers 8 to 16 of these; its values are taken as evenly spread.
    """
    import numpy as np

    below, above, counts = histogram.edges()
    is_point = above <= below
    width = histogram.max / ENTROPY_BINS
    at = np.minimum((below / width).astype(np.int64), ENTROPY_BINS - 1)
    points = np.bincount(at[is_point], counts[is_point], ENTROPY_BINS)
    low, high, spread = below[~is_point], above[~is_point], counts[~is_point]
    # How many values lie below each end of the equal bins: linear within a bin, flat where none is.
    known = np.stack([low, high], axis=1).reshape(-1)
    total = np.cumsum(spread)
    shares = np.stack([total - spread, total], axis=1).reshape(-1)
    cumulated = np.interp(np.arange(ENTROPY_BINS + 1) * width, known, shares, left=0.0) if known.size else np.zeros(1)
    return np.maximum(points + (np.diff(cumulated) if known.size else 0.0), 0.0)


def divergences(bins: Floats) -> Floats:
    """Kullback-Leibler divergence of each threshold's INT8 codes from the values, (N - 127,).

    For i bins from 128 to all N: P is the first i, the rest added to the last of them; Q is the first i merged to
    128 levels, each level spread evenly over those of its bins that are not empty. Both are scaled to 1. A threshold
    where P has values in a bin that Q leaves empty has divergence infinity. All i are computed at once, from running
    sums: sum P log P - sum P log Q needs no bin, only the sums and the numbers of bins of the levels.

    Args:
        bins: (N,) counts, not all 0.
    """
    import numpy as np

    number = np.arange(ENTROPY_LEVELS, len(bins) + 1)
    ends = -(-np.arange(ENTROPY_LEVELS + 1) * number[:, None] // ENTROPY_LEVELS)  # bin j is in level j * 128 // i
    sums = np.append(0.0, np.cumsum(bins))
    filled = np.append(0, np.cumsum(bins > 0))
    entropy = np.append(0.0, np.cumsum(_times_log(bins)))
    level, width = np.diff(sums[ends]), np.diff(filled[ends])
    last, inside, total = bins[number - 1], sums[number], sums[-1]
    beyond = total - inside
    beyond[filled[number] == filled[-1]] = 0.0  # not what rounding leaves
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = np.where(level > 0, level / width, 1.0)
        of_p = entropy[number] - _times_log(last) + _times_log(last + beyond)
        of_q = (level * np.log(mean)).sum(axis=1) + beyond * np.log(mean[:, -1])
        found = (of_p - of_q) / total + np.log(inside / total)
    return np.where((inside <= 0) | ((last <= 0) & (beyond > 0)), np.inf, found)


def _times_log(values: Floats) -> Floats:
    """Gives x log x, and 0 at 0."""
    import numpy as np

    return values * np.log(np.where(values > 0, values, 1.0))
