import math
from typing import Any

import pytest

from stages.gates import MEASURED_BY, Baseline, Gates, asked, of_bench, of_plan, of_validation

GOOD: dict[str, Any] = {
    "accuracy_drop": 0.001,
    "max_abs_error": 0.1,
    "cosine": 0.9999,
    "top1_agreement": 0.99,
    "sqnr_db": 31.0,
    "metric_drop": 0.0,
}
ALL = Gates(
    accuracy_drop=0.01,
    max_abs_error=0.5,
    min_cosine=0.999,
    min_top1_agreement=0.98,
    min_sqnr_db=30.0,
    metric_drop=0.02,
    plan_bytes=1000,
)
TIMED: dict[str, Any] = {"latency_ms": 2.0, "engine_executed": True, "reason": None, "gpu": "NVIDIA L4"}


def test_gates_that_are_not_set_ask_for_nothing() -> None:
    assert of_validation(Gates(), {}) == of_plan(Gates(), None) == of_bench(Gates(), {}, None) == []


def test_numbers_inside_every_gate_pass() -> None:
    assert of_validation(ALL, GOOD) == of_plan(ALL, 1000) == []


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({"accuracy_drop": 0.031}, "accuracy_drop 0.031 > 0.01"),
        ({"max_abs_error": 0.75}, "max_abs_error 0.75 > 0.5"),
        ({"cosine": 0.5}, "cosine 0.5 < 0.999"),
        ({"top1_agreement": 0.9}, "top1_agreement 0.9 < 0.98"),
        ({"sqnr_db": 29.5}, "sqnr_db 29.5 < 30"),
        ({"metric_drop": 0.5}, "metric_drop 0.5 > 0.02"),
    ],
)
def test_a_number_outside_its_gate_is_one_line_with_both(metrics: dict[str, Any], line: str) -> None:
    assert of_validation(ALL, {**GOOD, **metrics}) == [line]


def test_a_plan_that_is_too_large_fails_with_whole_bytes() -> None:
    assert of_plan(ALL, 12345678) == ["plan_bytes 12345678 > 1000"]


def test_every_gate_that_is_set_fails_when_nothing_was_measured_and_says_what_to_do() -> None:
    lines = of_validation(ALL, {}) + of_plan(ALL, None)
    assert len(lines) == 7
    told = "accuracy_drop was not measured, and the gate accuracy_drop asks for 0.01: name the labels"
    assert lines[0].startswith(told)


@pytest.mark.parametrize("value", [None, math.nan, "0.0", True])
def test_what_is_no_number_never_passes(value: Any) -> None:
    assert len(of_validation(Gates(accuracy_drop=1.0), {"accuracy_drop": value})) == 1


def test_the_engines_own_numbers_must_hold_too() -> None:
    assert of_validation(ALL, {**GOOD, "engine": {**GOOD, "cosine": 0.1}}) == ["engine cosine 0.1 < 0.999"]


def test_a_gate_that_the_engine_has_no_number_for_fails() -> None:
    (line,) = of_validation(ALL, {**GOOD, "engine": {**GOOD, "accuracy_drop": None}})
    assert line.startswith("engine accuracy_drop was not measured, and the gate accuracy_drop asks for 0.01")


def test_a_better_accuracy_passes_a_gate_of_zero() -> None:
    assert of_validation(Gates(accuracy_drop=0.0), {"accuracy_drop": -0.01}) == []


def test_no_error_at_all_passes_any_ratio_and_no_signal_none() -> None:
    gates = Gates(min_sqnr_db=30)
    assert of_validation(gates, {"sqnr_db": None, "max_abs_error": 0.0}) == []
    assert len(of_validation(gates, {"sqnr_db": None, "max_abs_error": 1.0})) == 1


@pytest.mark.parametrize(("limit", "passes"), [(2.0, True), (1.9, False)])
def test_latency_is_held_against_the_median_of_the_plan_on_its_gpu(limit: float, passes: bool) -> None:
    assert of_bench(Gates(latency_ms=limit), TIMED, None) == ([] if passes else [f"latency_ms 2 > {limit:g}"])


def test_a_time_of_another_runtime_satisfies_no_gate_of_latency() -> None:
    cpu = {**TIMED, "engine_executed": False, "reason": "no GPU of 8.9 here"}
    for gates in (Gates(latency_ms=1e9), Gates(latency_regression=1e9)):
        (line,) = of_bench(gates, cpu, None)
        assert line.startswith("latency_ms was not measured")
        assert "no GPU of 8.9 here: run the step of stage bench on a GPU of the target" in line


@pytest.mark.parametrize(
    ("published", "line"),
    [
        (None, None),
        (Baseline(2.0, "NVIDIA L4"), None),
        (Baseline(1.91, "NVIDIA L4"), None),
        (Baseline(1.9, "NVIDIA L4"), "latency_ms 2 > 1.05 times the published plan's 1.9"),
        (Baseline(), "was never timed on a GPU"),
        (Baseline(2.0, "NVIDIA A10"), "was timed on NVIDIA A10, this on NVIDIA L4"),
        (Baseline(math.nan, "NVIDIA L4"), "latency_ms 2 > 1.05 times the published plan's nan"),
    ],
)
def test_a_regression_is_judged_against_the_published_plan_on_the_same_gpu(
    published: Baseline | None, line: str | None
) -> None:
    found = of_bench(Gates(latency_regression=1.05), TIMED, published)
    assert found == [] if line is None else line in found[0]


def test_every_gate_says_which_stage_measures_it() -> None:
    gates = Gates(**dict.fromkeys([*MEASURED_BY, "plan_bytes"], 1))
    assert None not in vars(gates).values()
    assert [*asked(gates, "validate"), *asked(gates, "bench")] == list(MEASURED_BY)
