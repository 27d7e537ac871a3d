"""The table of sensitivity as a file."""

from __future__ import annotations

import json
from math import inf
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.sensitivity_table import read, require_layers, worst
from stages.stage import StageError

TABLES = st.dictionaries(st.text(min_size=1, max_size=5), st.floats(-20, 90) | st.just(inf), max_size=12)


@given(table=TABLES, count=st.integers(0, 15), least=st.none() | st.floats(-20, 90))
def test_the_worst_are_the_lowest_and_all_below_the_limit(
    table: dict[str, float], count: int, least: float | None
) -> None:
    found = worst(table, count, least)
    below = {name for name, value in table.items() if least is not None and value < least}
    assert len(found) == max(min(count, len(table)), len(below))
    assert below <= set(found)
    rest = [value for name, value in table.items() if name not in found]
    assert max((table[name] for name in found), default=-inf) <= min(rest, default=inf)
    assert [table[name] for name in found] == sorted(table[name] for name in found)


def test_null_is_a_layer_that_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sensitivity.json"
    path.write_text(json.dumps({"layers": {"a": {"sqnr_db": None}, "b": {"sqnr_db": 3}}}))
    assert read(path) == {"a": inf, "b": 3.0}


@pytest.mark.parametrize("text", ["", "[]", '{"layers": {"a": {}}}', '{"layers": {"a": {"sqnr_db": "high"}}}'])
def test_what_is_no_table_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "sensitivity.json"
    path.write_text(text)
    with pytest.raises(StageError, match="no table of sensitivity"):
        read(path)


def test_layers_of_another_model_are_named() -> None:
    with pytest.raises(StageError, match="no node is called b, c"):
        require_layers(["c", "a", "b"], ["a"])
