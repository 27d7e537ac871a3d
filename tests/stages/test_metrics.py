"""Numbers that are added up batch by batch: they do not depend on how the samples are cut."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.metrics import LOG10_EDGES, Difference, Histogram

ROWS = 60


def outputs(noise: float, classes: int = 8) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(1)
    reference = random.standard_normal((ROWS, classes)).astype(np.float32)
    return reference, reference + noise * random.standard_normal(reference.shape).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(cuts=st.lists(st.integers(1, ROWS - 1), max_size=4, unique=True), noise=st.sampled_from([0.0, 1e-7, 0.1, 3.0]))
def test_cutting_the_samples_into_other_batches_changes_nothing(cuts: list[int], noise: float) -> None:
    reference, candidate = outputs(noise)
    whole, pieces, one, many = Difference((1, 3)), Difference((1, 3)), Histogram(), Histogram()
    one.add(whole.add(reference, candidate))
    for r, c in zip(np.split(reference, sorted(cuts)), np.split(candidate, sorted(cuts)), strict=True):
        many.add(pieces.add(r, c))
    assert one == many
    assert pieces.top_k_agreement == pytest.approx(whole.top_k_agreement)
    for name, value in whole.result().items():
        if isinstance(value, float):
            assert pieces.result()[name] == pytest.approx(value)


def test_the_k_largest_places_agree_as_far_as_they_are_shared() -> None:
    reference = np.array([[9, 8, 7, 0, 0, 0], [9, 8, 7, 0, 0, 0]], np.float32)
    candidate = np.array([[9, 8, 0, 7, 0, 0], [8, 9, 7, 0, 0, 0]], np.float32)
    found = Difference((1, 2, 3, 6))
    found.add(reference, candidate)
    assert found.top_k_agreement == pytest.approx({1: 0.5, 2: 1.0, 3: 5 / 6})  # of 6 places all 6 are always shared


def test_what_ranks_nothing_has_no_agreement() -> None:
    found = Difference((1, 5))
    found.add(np.zeros((4, 3, 3), np.float32), np.zeros((4, 3, 3), np.float32))
    assert found.result()["top1_agreement"] is None and found.result()["top_k_agreement"] == {}


def test_every_value_is_in_one_bin_and_exact_ones_are_apart() -> None:
    found = Histogram()
    found.add(np.array([0.0, 0.0, 1e-20, 1.1e-3, 1.2e-3, 0.5, 1e9]))
    assert found.exact == 2 and sum(found.counts) == 5
    assert found.counts[0] == 1 and found.counts[-1] == 1  # beyond the ends
    place = found.counts.index(2)
    assert 10 ** LOG10_EDGES[place] <= 1.1e-3 < 1.2e-3 < 10 ** LOG10_EDGES[place + 1]
