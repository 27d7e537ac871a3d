"""What the table of precisions calls a distance."""

from __future__ import annotations

import numpy as np

from benchmarks import precisions


def test_the_worst_output_counts_and_one_that_is_not_finite_is_the_worst() -> None:
    near, far = np.array([10.0, 0.0]), np.array([1.0, 0.0])
    moved = np.array([0.0, 0.1])
    assert precisions.sqnr([near], [near + moved]) == 40.0
    assert precisions.sqnr([near, far], [near + moved, far + moved]) == 20.0
    assert precisions.sqnr([near, far], [near, np.array([np.nan, 0.0])]) == -np.inf


def test_every_candidate_is_fed_what_its_profile_says() -> None:
    for name in ("magika", "silero", "silero_ifless"):
        candidate = precisions.CANDIDATES[name]
        feed = next(candidate.feeds())
        for given, shapes in candidate.profile["default"].items():
            assert list(feed[given].shape) == shapes["opt"], (name, given)
        assert candidate.counted == (len({array.shape[0] for array in feed.values() if array.ndim}) == 1)
