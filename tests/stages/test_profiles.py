"""Profiles as the stages see them: ranges of shapes, and of the values that shape tensors hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.profiles import Range, check, profiles_of, shape_tensors
from stages.stage import StageError

VALUES = {"min": [1, -1], "opt": [4, -1], "max": [8, -1], "values": True}


def of(**ranges: Any) -> Any:
    return profiles_of({"default": ranges})


def test_profiles_come_in_the_order_of_their_names() -> None:
    assert [profile.name for profile in profiles_of({"b": {}, "a": {}})] == ["a", "b"]


@given(st.lists(st.integers(-9, 9), min_size=3, max_size=3).map(sorted), st.integers(-12, 12), st.booleans())
def test_a_range_admits_what_lies_between_its_ends(ends: list[int], size: int, values: bool) -> None:
    low, opt, high = ends
    assert Range((low,), (opt,), (high,), values).admits((size,)) == (low <= size <= high)


def test_a_range_of_values_measures_what_an_array_holds_and_any_other_its_shape() -> None:
    array = np.array([3, 64])
    assert Range((1,), (1,), (2,)).measure(array) == (2,)
    assert Range((1, 1), (1, 1), (9, 99), values=True).measure(array) == (3, 64)
    assert Range((1,), (1,), (9,), values=True).measure(np.array(7)) == (7,)


def test_the_shape_tensors_are_those_with_values() -> None:
    found = of(s=VALUES, x={"min": [1], "opt": [1], "max": [2]})
    assert shape_tensors(found) == {"s"}
    check(found, {"x": [-1], "s": [2]})


def test_values_may_be_negative_and_sizes_may_not() -> None:
    assert of(s=VALUES)[0].ranges["s"].min == (1, -1)
    with pytest.raises(StageError, match="not min <= opt <= max"):
        of(s={**VALUES, "values": False})


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ([-1], r"gives values of 's', and the model has \[-1\]"),
        ([1, 2], r"gives values of 's', and the model has \[1, 2\]"),
        ([3], "gives 's' 2 values, and it holds 3"),
        ([], "gives 's' 2 values, and it holds 1"),
    ],
)
def test_values_that_no_shape_tensor_can_hold_are_refused(shape: list[int], words: str) -> None:
    with pytest.raises(StageError, match=words):
        check(of(s=VALUES), {"s": shape})
