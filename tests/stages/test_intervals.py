"""Confidence intervals: against published figures, and against the share of cases that they must cover."""

from __future__ import annotations

import numpy as np
import pytest

from stages.intervals import bootstrap, paired_difference, wilson

DRAWS = 1000


def test_wilsons_interval_is_that_of_its_formula_and_holds_at_both_ends() -> None:
    assert wilson(9, 10) == pytest.approx((0.5958, 0.9821), abs=1e-4)
    assert wilson(0, 20)[0] == 0.0 < wilson(0, 20)[1] < 0.2
    assert wilson(20, 20)[1] == 1.0 > wilson(20, 20)[0] > 0.8


def test_a_paired_difference_is_what_newcombe_computed_for_his_example() -> None:
    assert paired_difference(36, 12, 2, 0) == pytest.approx((0.0569, 0.3404), abs=1e-4)


def test_who_is_first_only_turns_the_interval_around() -> None:
    low, high = paired_difference(50, 9, 3, 7)
    assert paired_difference(50, 3, 9, 7) == pytest.approx((-high, -low))


def test_all_right_is_not_sure_and_more_samples_are_surer() -> None:
    few, many = paired_difference(10, 0, 0, 0), paired_difference(1000, 0, 0, 0)
    assert few[0] < many[0] < 0 < many[1] < few[1]
    assert many[1] < 0.01


def test_the_true_difference_lies_inside_in_about_95_of_100_cases() -> None:
    shares = np.array([0.80, 0.12, 0.04, 0.04])
    tables = np.random.default_rng(3).multinomial(80, shares, DRAWS)
    inside = sum(low <= 0.08 <= high for low, high in (paired_difference(*map(int, row)) for row in tables))
    assert 0.93 < inside / DRAWS < 0.99


def test_a_bootstrapped_mean_is_about_as_sure_as_its_standard_error_says_and_the_same_each_time() -> None:
    values = np.random.default_rng(4).standard_normal(400)
    low, high = bootstrap(values)
    half = 1.96 * values.std() / 20
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.02)
    assert bootstrap(values) == (low, high)
