"""What a report is made of: sections of sentences, tables and charts, before anybody says how they look."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from pipelines.document import in_bytes

NOTHING = "\N{EN DASH}"
"""What stands where there is no value."""

DIGITS = 4
"""Numbers are rounded to so many significant digits; the whole number is the cell's `full`."""

_MOST_DIGITS = 9

SHORT_DIGEST = 12

LONGEST_TEXT = 96
"""Characters of a setting; the whole is the cell's `full`."""

Tone: TypeAlias = Literal["plain", "good", "bad", "warning"]


@dataclass(frozen=True)
class Cell:
    """One value of a table.

    Attributes:
        text: What is shown.
        full: The whole value, where `text` is less of it; empty where it is not.
        tone: What it means for the plan.
    """

    text: str
    full: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True)
class Column:
    """What the cells below it are.

    Attributes:
        name: Its heading.
        unit: Of its numbers, as the heading says it; empty where they have none, or each says its own.
        is_number: Whether its cells end flush.
        is_code: Whether its cells are names of the model's or the store's.
    """

    name: str
    unit: str = ""
    is_number: bool = False
    is_code: bool = False

    @property
    def heading(self) -> str:
        """`max abs error`, `time (ms)`."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns."""

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class Facts:
    """Names with one value each."""

    values: Mapping[str, Cell]


@dataclass(frozen=True)
class Sentence:
    """Something in words; in place of a chart or table it says why there is none."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True)
class Chart:
    """A picture of numbers.

    Attributes:
        title: What it shows.
        description: What can be read from it, for whoever does not see it.
        draw: Draws it, as SVG.
    """

    title: str
    description: str
    draw: Callable[[], str]


Block: TypeAlias = "Table | Facts | Sentence | Chart"


@dataclass(frozen=True)
class Section:
    """Blocks under a title."""

    title: str
    blocks: Sequence[Block]


@dataclass(frozen=True)
class Report:
    """All that is said of a plan.

    Attributes:
        title: `digits on l4, flow int8`.
        verdict: Whether it may be used, and what was executed where.
        sections: The rest.
    """

    title: str
    verdict: Sequence[Sentence] = ()
    sections: Sequence[Section] = field(default_factory=tuple)


def number(value: object, tone: Tone = "plain") -> Cell:
    """A number, rounded; counts stay whole."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return Cell(NOTHING if value is None else str(value))
    if isinstance(value, int):
        return Cell(f"{value:,}", tone=tone)
    text = _rounded(value)
    return Cell(text, "" if text == repr(value) or float(text.replace(",", "")) == value else repr(value), tone)


def percent(value: object, tone: Tone = "plain") -> Cell:
    """A share, in percent."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return Cell(NOTHING)
    in_percent = 100 * value
    text = f"{in_percent:.2f}" if not value or abs(in_percent) >= 0.01 else f"{in_percent:.2g}"
    return Cell(f"{text} %", "" if float(text) == in_percent else repr(value), tone)


def between(ends: object) -> str:
    """The two ends of an interval of shares, in percent; empty where there is none."""
    if not isinstance(ends, Sequence) or len(ends) != 2:
        return ""
    return f"{100 * ends[0]:.2f} to {100 * ends[1]:.2f} %"


def size(value: object) -> Cell:
    """A number of bytes."""
    return Cell(in_bytes(value), f"{value:,} bytes") if isinstance(value, int) else Cell(NOTHING)


def digest(value: str | None) -> Cell:
    """The beginning of a digest or key."""
    return Cell(value[:SHORT_DIGEST], value) if value else Cell(NOTHING)


def text(value: object) -> Cell:
    """Words, or a value of a config as JSON; long ones are cut."""
    if value is None or value == "":
        return Cell(NOTHING)
    told = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return Cell(told) if len(told) <= LONGEST_TEXT else Cell(f"{told[:LONGEST_TEXT]}…", told)


def _rounded(value: float) -> str:
    """To `DIGITS`, or so many that it does not look like 1: a cosine of 0.99997 is none."""
    if abs(value) >= 10**DIGITS:
        return f"{value:,.0f}"
    digits = DIGITS
    while value != 1 and digits < _MOST_DIGITS and float(f"{value:.{digits}g}") == 1:
        digits += 1
    return f"{value:.{digits}g}"
