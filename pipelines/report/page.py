"""A report as one HTML file: no script, nothing that is fetched, and the same bytes for the same report."""

from __future__ import annotations

import re
from html import escape
from itertools import count
from pathlib import Path

from pipelines.report.blocks import Cell, Chart, Column, Report
from stages.stage import StageError

_HERE = Path(__file__).parent
_IDS = re.compile(r'(?<= id=")|(?<=url\(#)|(?<=href="#)')

_CODE = re.compile("`([^`]+)`")


def html(report: Report) -> str:
    """The page.

    Raises:
        StageError: What draws it is not installed.
    """
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup

        numbers = count(1)
        environment = Environment(loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined)
        environment.globals |= {
            "kind": lambda block: type(block).__name__,
            "drawn": lambda chart: Markup(_drawn(chart, next(numbers))),  # noqa: S704 - ours, and matplotlib's
            "prose": lambda text: Markup(_CODE.sub(r"<code>\1</code>", escape(text))),  # noqa: S704 - escaped before
            "classes": lambda column, cell: Markup(_classes(column, cell)),  # noqa: S704
        }
        css = Markup((_HERE / "page.css").read_text(encoding="utf-8"))  # noqa: S704
        return environment.get_template("page.html").render(report=report, css=css) + "\n"
    except ModuleNotFoundError as error:
        raise StageError(
            f"a report needs {error.name}, which is not installed", "install it: pip install 'trtforge[report]'"
        ) from error


def _drawn(chart: Chart, number: int) -> str:
    """The chart's SVG; ids are the page's, so that those of two charts are not the same."""
    name = f"chart-{number}-"
    svg = _IDS.sub(name, chart.draw())
    told = f'<title id="{name}title">{escape(chart.title)}</title>'
    told += f'<desc id="{name}desc">{escape(chart.description)}</desc>'
    labels = f'<svg role="img" aria-labelledby="{name}title" aria-describedby="{name}desc"'
    head, _, rest = svg.removeprefix("<svg").partition(">")
    return f"{labels}{head}>{told}{rest}"


def _classes(column: Column, cell: Cell) -> str:
    found = [("number", column.is_number), ("code", column.is_code), (cell.tone, cell.tone != "plain")]
    names = " ".join(name for name, wanted in found if wanted)
    return f' class="{names}"' if names else ""
