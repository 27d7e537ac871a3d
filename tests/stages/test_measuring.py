"""Repeating, and what is told of many times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.measuring import MOST_ITERATIONS, Limits, distribution, repeat

TIMES = st.lists(st.floats(0.001, 1e6), min_size=1, max_size=300)


@given(TIMES)
def test_percentiles_are_times_that_were_measured_and_rise(values: list[float]) -> None:
    told = distribution(values)
    rising = [told[name] for name in ("min", "p50", "p90", "p99", "max")]
    assert rising == sorted(rising) and {*rising} <= {round(value, 6) for value in values}
    assert told["min"] <= told["mean"] * (1 + 1e-9) and told["mean"] <= told["max"] * (1 + 1e-9)
    assert told["count"] == len(values)


@given(TIMES, st.sampled_from([50, 90, 99]))
def test_so_many_per_cent_of_the_times_do_not_exceed_a_percentile_and_no_smaller_time_will_do(
    values: list[float], percent: int
) -> None:
    values = [round(value, 6) for value in values]
    found = distribution(values)[f"p{percent}"]

    def share(limit: float) -> float:
        return 100 * sum(value <= limit for value in values) / len(values)

    assert share(found) >= percent
    assert all(share(value) < percent for value in values if value < found)


def test_of_a_hundred_times_the_percentiles_are_those_at_their_ranks() -> None:
    told = distribution([float(number) for number in range(100, 0, -1)])
    assert [told[name] for name in ("min", "p50", "p90", "p99", "max")] == [1, 50, 90, 99, 100]


def test_no_times_have_no_percentiles() -> None:
    with pytest.raises(ValueError, match="no values"):
        distribution([])


def test_the_warm_up_is_run_and_not_kept() -> None:
    runs: list[str] = []
    kept = repeat(lambda: runs.append("run") or len(runs), Limits(3, 0, 5, 0), lambda: runs.append("begin"))
    assert runs == ["run"] * 3 + ["begin"] + ["run"] * 5
    assert kept == [5, 6, 7, 8, 9]


@pytest.mark.parametrize(("iterations", "duration_ms"), [(1, 20), (0, 20)])
def test_it_goes_on_until_the_time_is_over_too(iterations: int, duration_ms: float) -> None:
    import time

    started = time.perf_counter()
    kept = repeat(lambda: time.sleep(0.001), Limits(0, 0, iterations, duration_ms))
    assert time.perf_counter() - started >= duration_ms / 1000
    assert 1 <= len(kept) <= 20


def test_more_than_the_most_are_never_kept() -> None:
    assert len(repeat(lambda: None, Limits(0, 0, MOST_ITERATIONS + 1, 1e6))) == MOST_ITERATIONS
