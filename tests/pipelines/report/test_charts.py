"""The charts: axes with units, names as they are, and the same bytes for the same numbers."""

from __future__ import annotations

import random
from xml.etree import ElementTree

import matplotlib
import pytest

from pipelines.report import charts
from pipelines.report.charts import Bar, Errors, LayerBar, Magnitudes, Moment

ODD = "blocks.$x^2$<&>_0"

DRAWN = {
    "errors": lambda: charts.errors([Errors(ODD, "the plan", [-3, -2, -1, 0], [1, 20_000, 3], 5)]),
    "magnitudes": lambda: charts.magnitudes([Magnitudes(ODD, 6.0, [900, 30, 1], 4.5, "range 4.5 of 6")]),
    "bars": lambda: charts.bars([Bar(ODD, 3.5), Bar("other", 1.0)], "time (s)"),
    "shares": lambda: charts.shares({ODD: {"FP32": 1.0, "INT8": 3.0}}),
    "layers": lambda: charts.layers([LayerBar("FP32", 0), LayerBar("INT8", 4e6)], "MACs at opt"),
    "latencies": lambda: charts.latencies([Bar(ODD, 0.3, low=0.31, high=0.4)], [Moment("1", 0.4), Moment("2", 0.3)]),
}

AXES = {
    "errors": {"absolute error (the output's own unit)", "values"},
    "magnitudes": {"magnitude (the tensor's own unit)", "values"},
    "bars": {"time (s)"},
    "shares": {"share (%)"},
    "layers": {"MACs at opt", "layer, in the order in which they run"},
    "latencies": {"latency at opt (ms): median, p90 and p99", "measured (UTC)", "median latency (ms)"},
}


def texts(svg):
    root = ElementTree.fromstring(svg)  # noqa: S314 - our own
    return [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("kind", DRAWN)
def test_every_axis_says_what_it_shows(kind):
    assert AXES[kind] <= set(texts(DRAWN[kind]()))


@pytest.mark.parametrize("kind", [kind for kind in DRAWN if kind != "layers"])
def test_a_name_stands_as_it_is(kind):
    assert any(ODD in text for text in texts(DRAWN[kind]()))


def test_equal_numbers_give_equal_bytes_whatever_the_user_prefers():
    before = {kind: draw() for kind, draw in DRAWN.items()}
    random.seed(7)
    with matplotlib.rc_context({"font.size": 30, "svg.fonttype": "path", "savefig.transparent": True}):
        assert {kind: draw() for kind, draw in DRAWN.items()} == before
        assert matplotlib.rcParams["font.size"] == 30


@pytest.mark.parametrize("kind", DRAWN)
def test_a_chart_takes_the_width_that_is_there_and_fetches_nothing(kind):
    head, _, rest = DRAWN[kind]().partition(">")
    assert "viewBox" in head
    assert "width=" not in head
    assert "http" not in rest
    assert "<style" not in rest


def test_powers_of_ten_are_written_as_such():
    assert "10⁻²" in texts(DRAWN["errors"]())
    assert "20 k" in texts(DRAWN["errors"]())


def test_a_row_of_shares_is_full():
    found = texts(charts.shares({"MACs": {"FP32": 1.0, "INT8": 3.0}}))
    assert {"FP32 25.0 %", "INT8 75.0 %"} <= set(found)


def test_a_long_name_keeps_both_ends():
    name = "model.encoder.layer.11.attention.output.dense.weight_dequantized"
    found = texts(charts.bars([Bar(name, 1.0)], "time (s)"))
    assert any("…" in text and text.startswith("model.enc") and text.endswith("_dequantized") for text in found)


def test_a_long_history_has_dates_that_can_be_read():
    history = [Moment(f"day {day}", 0.3) for day in range(20)]
    found = texts(charts.latencies([Bar("l4", 0.3)], history))
    assert 5 <= sum(text.startswith("day ") for text in found) <= 7


def test_one_measurement_is_no_history():
    assert "measured (UTC)" not in texts(charts.latencies([Bar("l4", 0.3)], [Moment("1", 0.4)]))
