"""Field-level differences of two questions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.difference import Difference, difference, spell

QUESTION: dict[str, Any] = {
    "stage": "calibrate",
    "version": 1,
    "config": {"batch_size": 32, "skip": []},
    "inputs": {"onnx": "a" * 64, "calibration": ["0", "1", "2"]},
    "tools": {"onnx": "1.18"},
}

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(0, 3) | st.text("ab", max_size=2),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", max_size=1), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"version": 2}, [("version", 1, 2)]),
        ({"config": {"batch_size": 16, "skip": []}}, [("config.batch_size", 32, 16)]),
        ({"config": {"batch_size": 32, "skip": ["*"]}}, [("config.skip[0]", None, "*")]),
        ({"inputs": {"onnx": "a" * 64, "calibration": ["0", "2"]}},
         [("inputs.calibration[1]", "1", "2"), ("inputs.calibration[2]", "2", None)]),
        ({"tools": {}}, [("tools.onnx", "1.18", None)]),
        ({"tools": {"onnx": "1.18", "numpy": "2"}}, [("tools.numpy", None, "2")]),
    ],
)  # fmt: skip
def test_each_field_that_differs_is_named(change, expected):
    found = difference(QUESTION, {**QUESTION, **change})
    assert [(each.field, each.before, each.after) for each in found] == expected


def test_true_is_not_one():
    assert difference({"tf32": True}, {"tf32": 1}) == [Difference(("tf32",), True, 1)]


def test_a_path_is_spelled_as_people_write_it():
    assert spell(("inputs", "calibration", 3)) == "inputs.calibration[3]"


@given(st.dictionaries(st.text("xyz", max_size=1), VALUES), st.dictionaries(st.text("xyz", max_size=1), VALUES))
def test_two_ways_give_the_same_fields_and_only_equals_give_none(one, other):
    there, back = difference(one, other), difference(other, one)
    assert [(each.path, each.before, each.after) for each in there] == [
        (each.path, each.after, each.before) for each in back
    ]
    assert difference(one, one) == []
