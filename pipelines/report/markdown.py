"""A report's sentences and tables as Markdown, which Prefect shows; charts are left out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from pipelines.report.blocks import Block, Facts, Report, Sentence, Table

MOST_ROWS = 50
"""Of a table: Prefect keeps an artifact as one value of its database."""

_MARKS = re.compile(r"([\\`*_{}\[\]<>#|~$])")


def markdown(report: Report, command: str, store: Path) -> str:
    """The report, the title first.

    Args:
        report: What it says.
        command: Writes the whole of it.
        store: Where that finds it.
    """
    lines = [f"# {_plain(report.title)}", "", *(f"- {_plain(sentence.text)}" for sentence in report.verdict)]
    lines.append(f"- All of it, with charts: {_code(command)}, with the store {_code(str(store))}")
    for section in report.sections:
        lines += ["", f"## {_plain(section.title)}"]
        for block in section.blocks:
            lines += _block(block)
    return "\n".join(lines) + "\n"


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Sentence):
        yield from ("", _plain(block.text))
    elif isinstance(block, Facts):
        yield from ("", *(f"- {_plain(name)}: {_plain(cell.full or cell.text)}" for name, cell in block.values.items()))
    elif isinstance(block, Table):
        yield from _table(block)


def _table(table: Table) -> Iterator[str]:
    yield from ("", f"**{_plain(table.caption)}**", "")
    yield _row(column.heading for column in table.columns)
    yield _row("---:" if column.is_number else "---" for column in table.columns)
    for row in table.rows[:MOST_ROWS]:
        yield _row(_plain(cell.text) for cell in row)
    if len(table.rows) > MOST_ROWS:
        yield from ("", f"and {len(table.rows) - MOST_ROWS:,} more: `trtforge report` has them all")


def _row(cells: Iterator[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _code(text: str) -> str:
    """`text` as it is, which may itself hold backticks."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"


def _plain(text: str) -> str:
    """`text` so that nothing in it is a mark: names of tensors hold underscores, stars and bars."""
    return _MARKS.sub(r"\\\1", " ".join(text.split()))
