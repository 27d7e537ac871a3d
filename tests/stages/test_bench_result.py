"""What is told of a benchmark as a whole."""

from __future__ import annotations

from stages.bench_points import Point
from stages.bench_result import Result, Run, most_per_second, slowest_ms
from stages.gpu_timing import Throughput


def result(end: str, profile: str, gpu_ms: float, samples: int | None, rates: list[Throughput]) -> Result:
    run = Run("enqueue", "device", {"gpu_ms": [gpu_ms], "enqueue_ms": [0.9 * gpu_ms]}, rates)
    return Result(Point(profile, 0, end, {}, samples), [run], None)


def test_of_several_profiles_the_slowest_opt_counts() -> None:
    at = (("opt", "a", 2.0), ("opt", "b", 3.0), ("max", "b", 9.0))
    found = [result(end, name, ms, 1, []) for end, name, ms in at]
    assert slowest_ms(found, "enqueue", "device", "gpu_ms") == 3.0
    assert slowest_ms(found, "graph", "device", "gpu_ms") is None
    assert slowest_ms(found[2:], "enqueue", "device", "gpu_ms") is None, "nobody asked for opt"
    assert found[0].runs[0].enqueue_bound


def test_the_best_rate_at_opt_is_told_and_samples_where_they_are_counted() -> None:
    one, two = Throughput(1, 100, 1.0), Throughput(2, 150, 1.0)
    assert most_per_second([result("opt", "a", 1.0, 8, [one, two]), result("max", "a", 1.0, 99, [two])]) == (150, 1200)
    assert most_per_second([result("opt", "a", 1.0, None, [one])]) == (100, None)
    assert most_per_second([]) == (None, None)
