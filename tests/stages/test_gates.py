import math
from typing import Any

import pytest

from stages.gates import Gates, failures

GOOD: dict[str, Any] = {"accuracy_drop": 0.001, "max_abs_error": 0.1, "cosine": 0.9999, "top1_agreement": 0.99}
ALL = Gates(accuracy_drop=0.01, max_abs_error=0.5, min_cosine=0.999, min_top1_agreement=0.98, plan_bytes=1000)


def test_gates_that_are_not_set_ask_for_nothing() -> None:
    assert failures(Gates(), {}, None) == []


def test_numbers_inside_every_gate_pass() -> None:
    assert failures(ALL, GOOD, 1000) == []


@pytest.mark.parametrize(
    ("metrics", "line"),
    [
        ({"accuracy_drop": 0.031}, "accuracy_drop 0.031 > 0.01"),
        ({"max_abs_error": 0.75}, "max_abs_error 0.75 > 0.5"),
        ({"cosine": 0.5}, "cosine 0.5 < 0.999"),
        ({"top1_agreement": 0.9}, "top1_agreement 0.9 < 0.98"),
    ],
)
def test_a_number_outside_its_gate_is_one_line_with_both(metrics: dict[str, Any], line: str) -> None:
    assert failures(ALL, {**GOOD, **metrics}, 1000) == [line]


def test_a_plan_that_is_too_large_fails_with_whole_bytes() -> None:
    assert failures(ALL, GOOD, 12345678) == ["plan_bytes 12345678 > 1000"]


def test_every_gate_that_is_set_fails_when_nothing_was_measured() -> None:
    lines = failures(ALL, {}, None)
    assert len(lines) == 5
    assert "accuracy_drop was not measured, and the gate accuracy_drop asks for 0.01" in lines


@pytest.mark.parametrize("value", [None, math.nan, "0.0", True])
def test_what_is_no_number_never_passes(value: Any) -> None:
    assert len(failures(Gates(accuracy_drop=1.0), {"accuracy_drop": value}, None)) == 1


def test_the_engines_own_numbers_must_hold_too() -> None:
    metrics = {**GOOD, "engine": {**GOOD, "cosine": 0.1}}
    assert failures(ALL, metrics, 1000) == ["engine cosine 0.1 < 0.999"]


def test_a_gate_that_the_engine_has_no_number_for_fails() -> None:
    metrics = {**GOOD, "engine": {**GOOD, "accuracy_drop": None}}
    assert failures(ALL, metrics, 1000) == [
        "engine accuracy_drop was not measured, and the gate accuracy_drop asks for 0.01"
    ]


def test_a_better_accuracy_passes_a_gate_of_zero() -> None:
    assert failures(Gates(accuracy_drop=0.0), {"accuracy_drop": -0.01}, None) == []
