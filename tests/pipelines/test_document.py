"""What is printed at the end: the plain table is the one that rich prints to a pipe."""

from __future__ import annotations

from io import StringIO

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pipelines.document import PIPE_COLUMNS, plain_table, print_rich_table

CELLS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=24)


@given(st.lists(st.tuples(CELLS, CELLS, CELLS, CELLS, CELLS), max_size=6))
def test_the_plain_table_is_what_rich_prints(rows: list[tuple[str, ...]]) -> None:
    screen = Console(width=PIPE_COLUMNS, file=StringIO())
    print_rich_table(rows, screen)
    assert screen.file.getvalue().splitlines() == plain_table(rows)  # type: ignore[attr-defined]
