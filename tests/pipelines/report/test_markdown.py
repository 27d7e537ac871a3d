"""The tables as Markdown."""

from __future__ import annotations

from pathlib import Path

from pipelines.report.blocks import Cell, Chart, Column, Facts, Report, Section, Sentence, Table
from pipelines.report.markdown import MOST_ROWS, markdown

STORE = Path("/a/store")


def whole(report):
    return markdown(report, "trtforge report targets=[l4]", STORE)


def test_a_table_is_a_table_and_a_name_no_mark():
    table = Table("a_b", [Column("layer"), Column("time", "ms", is_number=True)], [[Cell("x|y_z*"), Cell("1.5")]])
    told = whole(Report("digits", [Sentence("Validated.")], [Section("Layers", [table])]))
    assert "| layer | time (ms) |\n| --- | ---: |\n| x\\|y\\_z\\* | 1.5 |\n" in told
    assert told.startswith("# digits\n\n- Validated.\n")


def test_it_says_how_to_get_at_all_of_it():
    assert "`trtforge report targets=[l4]`, with the store `/a/store`\n" in whole(Report("t", [], []))
    odd = markdown(Report("t", [], []), "trtforge report 'model.path=``a`'", STORE)
    assert "charts: ``` trtforge report 'model.path=``a`' ```, with" in odd


def test_a_long_table_is_cut_and_says_so():
    rows = [[Cell(str(number))] for number in range(MOST_ROWS + 7)]
    told = whole(Report("t", [], [Section("s", [Table("c", [Column("n")], rows)])]))
    assert f"| {MOST_ROWS - 1} |" in told
    assert f"| {MOST_ROWS} |" not in told
    assert "and 7 more" in told


def test_charts_are_left_out_undrawn_and_facts_are_whole():
    def draw():
        raise AssertionError("nobody sees it")

    told = whole(Report("t", [], [Section("s", [Chart("c", "d", draw), Facts({"sha256": Cell("ab", "abcdef")})])]))
    assert "- sha256: abcdef" in told
