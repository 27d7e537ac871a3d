"""The charts of a report: matplotlib draws them as SVG, with the same bytes for the same numbers.

Every axis says what it shows and in which unit. Colours are told apart by those who do not see all of them (Okabe and
Ito, "Color Universal Design", 2008), and none is the only sign of anything: what it means stands in words beside it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import StringIO
from itertools import groupby
from math import ceil, floor, log10
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 7.2
"""Inches: as wide as the page's column, so that 9 pt in a chart are 9 pt on paper."""

BLUE, ORANGE, GREEN, RED, PURPLE, SKY, YELLOW, GREY = (
    *("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#f0e442", "#8a8a8a"),
)

PRECISION_COLOURS: Mapping[str, str] = {
    "FP32": GREY,
    "FP16": SKY,
    "BF16": PURPLE,
    "FP8": GREEN,
    "INT8": BLUE,
    "FP4": ORANGE,
    "INT4": RED,
}
"""Of what people compute in; the rest, such as INT64 positions, is yellow."""

_STYLE: dict[Any, Any] = {  # matplotlib's type of the keys is 300 literals
    "svg.fonttype": "none",  # text stays text: it can be searched and read aloud, and takes a third of the bytes
    "text.parse_math": False,  # names of tensors may hold dollars
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],  # what matplotlib brings, and so what it measures everywhere
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 9.0,
    "axes.titlelocation": "left",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "figure.facecolor": "white",
}

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_LONGEST_NAME = 40
_MOST_TICKS = 7
"""Dates of 16 characters beside each other."""


@dataclass(frozen=True)
class Errors:
    """How large the errors of one output are.

    Attributes:
        output: Which one.
        who: Whose.
        log10_edges: Where the bins begin and end, (N + 1,): log10 of the absolute error.
        counts: How many values each bin holds, (N,).
        exact: How many values have no error.
    """

    output: str
    who: str
    log10_edges: Sequence[float]
    counts: Sequence[int]
    exact: int


@dataclass(frozen=True)
class Magnitudes:
    """What calibration saw of one tensor, and its range.

    Attributes:
        tensor: Which one.
        max: The largest magnitude.
        counts: How many values lie in each of N equal bins from 0 to `max`, (N,).
        amax: The range that was chosen.
        told: What is said of the range.
    """

    tensor: str
    max: float
    counts: Sequence[float]
    amax: float
    told: str


@dataclass(frozen=True)
class Bar:
    """A named amount, in the unit of its chart; p90 (`low`) and p99 (`high`) of a time that is their median."""

    name: str
    amount: float
    colour: str = BLUE
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class LayerBar:
    """A layer of a plan: what it computes in, and its amount of the chart's unit."""

    precision: str
    amount: float


@dataclass(frozen=True)
class Moment:
    """A latency of an earlier or the present plan: when it was measured (`2026-11-21 20:39`), and in ms."""

    when: str
    latency_ms: float


def errors(found: Sequence[Errors]) -> str:
    """Distributions of absolute error, one panel for each output, one line for each of who computes it."""
    outputs = list(dict.fromkeys(each.output for each in found))
    with _figure(len(outputs) * 2.2) as figure:
        for axes, output in zip(_panels(figure, len(outputs)), outputs, strict=True):
            own = [each for each in found if each.output == output]
            used = [index for each in own for index, count in enumerate(each.counts) if count]
            first, last = (min(used), max(used)) if used else (0, 0)
            for each, colour in zip(own, (BLUE, ORANGE, GREEN, RED), strict=False):
                edges = [10.0**edge for edge in each.log10_edges[first : last + 2]]
                exact = f", {each.exact:,} without error" if each.exact else ""
                counts = each.counts[first : last + 1]
                axes.stairs(counts, edges, fill=len(own) == 1, color=colour, label=each.who + exact)
            axes.set_xscale("log")
            _powers(axes.xaxis)
            axes.set_title(_short(output))
            axes.set(xlabel="absolute error (the output's own unit)", ylabel="values")
            axes.yaxis.set_major_formatter(lambda value, _: _amount(value))
            axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, ncols=2)
    return _svg(figure, "errors")


def magnitudes(found: Sequence[Magnitudes]) -> str:
    """Histograms of calibration, one panel for each tensor, with the range that was chosen."""
    with _figure(ceil(len(found) / 2) * 2.0) as figure:
        for axes, each in zip(_panels(figure, len(found), columns=2), found, strict=True):
            edges = [each.max * index / len(each.counts) for index in range(len(each.counts) + 1)]
            axes.stairs(each.counts, edges, fill=True, color=SKY, baseline=0.5)
            axes.axvline(each.amax, color=RED, linewidth=1.4)
            axes.set_yscale("log")
            axes.set_ylim(bottom=0.5)
            axes.set_xlim(0, max(each.max, each.amax) * 1.02)
            _powers(axes.yaxis)
            axes.set_title(f"{_short(each.tensor)}\n{each.told}")
            axes.set(xlabel="magnitude (the tensor's own unit)", ylabel="values")
    return _svg(figure, "magnitudes")


def bars(found: Sequence[Bar], unit: str) -> str:
    """Amounts side by side, the first on top; `unit` is that of the axis, in words."""
    with _figure(0.7 + 0.27 * len(found)) as figure:
        axes = figure.subplots()
        names = [_short(each.name) for each in found]
        places = list(range(len(found)))[::-1]
        axes.barh(places, [each.amount for each in found], 0.7, color=[each.colour for each in found])
        for place, each in zip(places, found, strict=True):
            _amount_beside(axes, each.amount, max(each.amount, 0.0), place)
        axes.set_yticks(places, names)
        axes.margins(x=0.12)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit)
    return _svg(figure, "bars")


def shares(found: Mapping[str, Mapping[str, float]]) -> str:
    """For each row the shares of precisions, which fill it.

    Args:
        found: By row (`MACs`) and precision, amounts of one unit.
    """
    precisions = list(dict.fromkeys(name for row in found.values() for name in row))
    with _figure(0.9 + 0.34 * len(found)) as figure:
        axes = figure.subplots()
        for place, row in zip(range(len(found))[::-1], found.values(), strict=True):
            left, whole = 0.0, sum(row.values())
            for precision, amount in row.items():
                width = 100 * amount / whole
                axes.barh(place, width, 0.7, left, color=colour_of(precision), edgecolor="white", linewidth=0.5)
                if width >= 16:
                    dark = precision in ("INT8", "INT4", "FP8")
                    told = f"{precision} {width:.1f} %"
                    axes.annotate(
                        told, (left + width / 2, place), ha="center", va="center", color="white" if dark else "black"
                    )
                left += width
        axes.set_yticks(range(len(found))[::-1], list(found))
        axes.set_xlim(0, 100)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("share (%)")
        _precision_legend(figure, precisions)
    return _svg(figure, "shares")


def layers(found: Sequence[LayerBar], unit: str) -> str:
    """The layers of a plan in the order in which they run: how much each is, and below it what it computes in."""
    precisions = list(dict.fromkeys(each.precision for each in found))
    with _figure(2.9) as figure:
        axes, strip = figure.subplots(2, 1, sharex=True, height_ratios=[6, 1])
        for precision in precisions:
            own = [(place, each.amount) for place, each in enumerate(found, 1) if each.precision == precision]
            axes.bar([place for place, _ in own], [amount for _, amount in own], 0.85, color=colour_of(precision))
        place = 0.5
        for precision, run in groupby(each.precision for each in found):
            width = len(list(run))
            strip.broken_barh([(place, width)], (0, 1), color=colour_of(precision))
            place += width
        axes.set_ylabel(unit)
        axes.yaxis.set_major_formatter(lambda value, _: _amount(value))
        strip.set(xlabel="layer, in the order in which they run", xlim=(0.5, len(found) + 0.5))
        strip.set_yticks([0.5], ["computes in"])
        strip.grid(visible=False)
        _precision_legend(figure, precisions)
    return _svg(figure, "layers")


def latencies(targets: Sequence[Bar], history: Sequence[Moment]) -> str:
    """Median latencies of the plans of each target, and of this target's plan over time."""
    both = bool(targets) and len(history) > 1
    with _figure(0.8 + 0.35 * len(targets) + (2.4 if both else 0)) as figure:
        panels = iter(_panels(figure, 1 + both, heights=[1 + 0.3 * len(targets), 1.8] if both else None))
        axes = next(panels)
        places = list(range(len(targets)))[::-1]
        axes.barh(places, [each.amount for each in targets], 0.6, color=[each.colour for each in targets])
        for place, each in zip(places, targets, strict=True):
            if each.low is not None and each.high is not None:
                spread = [each.amount, each.low, each.high]
                axes.plot(spread, [place] * 3, color="black", linewidth=1.0, marker="|")
            _amount_beside(axes, each.amount, each.high or each.amount, place)
        axes.set_yticks(places, [_short(each.name) for each in targets])
        axes.margins(x=0.12)
        axes.grid(axis="y", visible=False)
        axes.set_ylim(-0.7, len(targets) - 0.3)
        axes.set_xlabel("latency at opt (ms): median, p90 and p99")
        if both:
            axes = next(panels)
            axes.plot(range(len(history)), [each.latency_ms for each in history], color=BLUE, marker="o")
            marked = range(0, len(history), ceil(len(history) / _MOST_TICKS))
            axes.set_xticks(marked, [history[place].when for place in marked], rotation=20, ha="right")
            axes.set_ylim(0, 1.15 * max(each.latency_ms for each in history))
            axes.set(xlabel="measured (UTC)", ylabel="median latency (ms)")
    return _svg(figure, "latencies")


def colour_of(precision: str) -> str:
    """The colour of what a layer computes in."""
    return PRECISION_COLOURS.get(precision, YELLOW)


@contextmanager
def _figure(height: float) -> Iterator[Figure]:
    """An empty figure of `height` inches and the page's width, to be filled in our style."""
    from matplotlib.figure import Figure

    with _style():
        yield Figure(figsize=(WIDTH, height), layout="constrained")


@contextmanager
def _style(salt: str = "") -> Iterator[None]:
    """Our style, whatever the user's own matplotlibrc says; equal `salt` gives equal ids."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_STYLE, "svg.hashsalt": salt})
        yield


def _panels(figure: Figure, count: int, columns: int = 1, heights: Sequence[float] | None = None) -> list[Axes]:
    """`count` axes in so many columns; a place that is left over stays empty."""
    found: list[Axes] = list(
        figure.subplots(ceil(count / columns), columns, squeeze=False, height_ratios=heights).reshape(-1)
    )
    for axes in found[count:]:
        axes.remove()
    return found[:count]


def _amount_beside(axes: Axes, amount: float, end: float, place: int) -> None:
    axes.annotate(f"{amount:.4g}", (end, place), (4, 0), textcoords="offset points", va="center")


def _precision_legend(figure: Figure, precisions: Sequence[str]) -> None:
    from matplotlib.patches import Patch

    handles = [Patch(color=colour_of(name), label=name) for name in precisions]
    figure.legend(handles=handles, loc="outside upper left", ncols=8, frameon=False)


def _powers(axis: Any) -> None:
    """Marks a logarithmic axis at powers of ten, which matplotlib would write as mathematics."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_major_locator(LogLocator(10, numticks=7))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"10{str(round(log10(value))).translate(_SUPERSCRIPTS)}"))
    axis.set_minor_locator(NullLocator())


def _amount(value: float) -> str:
    """`590 k`."""
    if not value:
        return "0"
    power = min(max(floor(log10(abs(value)) / 3), 0), 4)
    return f"{value / 1000**power:g}{['', ' k', ' M', ' G', ' T'][power]}"


def _short(name: str, most: int = _LONGEST_NAME) -> str:
    """A name that fits: of a long one beginning and end, by which names of layers differ."""
    return name if len(name) <= most else f"{name[: most // 3]}…{name[-(most - most // 3 - 1) :]}"


def _svg(figure: Figure, salt: str) -> str:
    """The figure as an `<svg>` element that takes the width that is there."""
    written = StringIO()
    with _style(salt):
        figure.savefig(written, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    drawn = written.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    # Its rule for joins and caps would hold for the whole page, which has it itself.
    drawn = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", drawn, count=1, flags=re.DOTALL)
    return re.sub(r' (?:width|height)="[^"]*pt"', "", drawn, count=2)
