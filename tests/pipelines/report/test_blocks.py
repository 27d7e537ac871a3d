"""What numbers look like in a report."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.report import blocks


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_rounded_number_is_near_the_number_and_keeps_it_whole(value):
    cell = blocks.number(value)
    shown = float(cell.text.replace(",", ""))
    assert shown == pytest.approx(value, rel=1e-3)
    assert (float(cell.full) if cell.full else shown) == value


def test_a_cosine_that_is_not_one_does_not_look_like_one():
    assert blocks.number(0.999971).text == "0.99997"
    assert blocks.number(1.0).text == "1"


def test_a_small_share_is_not_nothing():
    assert blocks.percent(0.00003).text == "0.003 %"
    assert blocks.percent(0.0).text == "0.00 %"
    assert blocks.percent(0.9944).text == "99.44 %"


def test_what_is_not_there_is_a_dash():
    assert {blocks.number(None).text, blocks.percent(None).text, blocks.size(None).text, blocks.text("").text} == {
        blocks.NOTHING
    }


def test_a_long_text_is_cut_and_kept_whole():
    cell = blocks.text(["pass"] * 50)
    assert len(cell.text) <= blocks.LONGEST_TEXT + 1
    assert cell.full.count("pass") == 50
