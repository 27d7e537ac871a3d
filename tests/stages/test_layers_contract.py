"""What `layers` asks of TensorRT on a GPU, held against the real bindings of several versions.

The processes are those of test_contract.py, where a call that no test reaches fails too.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.stages.test_contract import pytestmark as of_each_version

pytestmark = of_each_version


def case(answers: Any, version: str, name: str = "") -> dict[str, Any]:
    found: dict[str, Any] = answers(version)["layers"][name]
    return found


def test_a_plan_that_holds_no_text_is_told_of_by_the_inspector(version: str, answers: Any) -> None:
    found = case(answers, version)
    assert found.get("error") is None
    report = found["report"]
    assert (report["source"], report["unread_reason"], report["timed_reason"]) == ("engine", None, None)
    (profile,) = report["profiles"]
    assert profile["profile"] == "default"
    told = {layer["name"]: layer for layer in profile["layers"]}
    product = told["mm0"]
    assert (product["product"], product["precision"], product["operators"]) == (True, "INT8", ["MatMul", None])
    assert (product["reads"], product["weights"], product["writes"]) == (["int8", "int8"], ["int8"], ["half"])
    assert product["nodes"] == ["mm0", "w_dequantized"]
    assert product["macs"] == 2 * 4 * 4
    assert (told["reformat"]["precision"], told["reformat"]["macs"]) == ("FP32", 0)
    assert profile["precisions"]["INT8"] == {"layers": 1, "products": 1, "macs": 32, "weight_bytes": 16, "ms": 0.5}


def test_times_are_means_over_the_runs_that_count(version: str, answers: Any) -> None:
    found = case(answers, version)
    assert found["calls"].count("IExecutionContext.execute_async_v3") == 1 + 4
    assert {layer["name"]: layer["ms"] for layer in found["report"]["profiles"][0]["layers"]} == {
        "reformat": 0.25,
        "mm0": 0.5,
    }


def test_nothing_of_tensorrt_is_held_afterwards(version: str, answers: Any) -> None:
    assert case(answers, version)["held"] == 0


@pytest.mark.parametrize(
    ("name", "field", "reason"),
    [
        ("names", "unread_reason", "profiling_verbosity=detailed"),
        ("none", "unread_reason", "profiling_verbosity is none"),
        ("none", "timed_reason", "no layer is known"),
        ("otherwise", "timed_reason", "tells of {ForeignNode[mm0]}, which the plan calls otherwise"),
        ("untimed", "timed_reason", "iterations is 0"),
        ("alone", "timed_reason", "without the model"),
        ("alone", "model_reason", "was not given"),
    ],
)
def test_what_is_not_known_is_said(version: str, answers: Any, name: str, field: str, reason: str) -> None:
    assert reason in case(answers, version, name)["report"][field]


def test_layers_that_are_names_alone_still_have_times(version: str, answers: Any) -> None:
    (profile,) = case(answers, version, "names")["report"]["profiles"]
    assert [(layer["name"], layer["precision"], layer["ms"]) for layer in profile["layers"]] == [
        ("reformat", "?", 0.25),
        ("mm0", "?", 0.5),
    ]


def test_layers_of_several_profiles_are_one_list_and_each_profile_is_run(version: str, answers: Any) -> None:
    found = case(answers, version, "two")
    (profile,) = found["report"]["profiles"]
    assert profile["profile"] is None
    assert found["calls"].count("IExecutionContext.set_optimization_profile_async") == 2


@pytest.mark.parametrize(("name", "what"), [("no JSON", "says something else than layers"), ("run", "cannot run")])
def test_what_fails_says_so(version: str, answers: Any, name: str, what: str) -> None:
    assert what in case(answers, version, name)["error"]
