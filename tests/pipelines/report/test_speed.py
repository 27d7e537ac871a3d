"""Latency in a report: a chart where a GPU measured, and else the reason."""

from __future__ import annotations

import pytest

from artifacts.store import Store
from pipelines import bench
from pipelines.report import speed, summary
from pipelines.report.blocks import Chart, Sentence, Table
from pipelines.report.subject import timings
from tests.pipelines.report.conftest import DECIMAL_MS, keep_times, opened, subject_of, timed


def of(kind, section):
    return [block for block in section.blocks if isinstance(block, kind)]


def words(section):
    return " ".join(sentence.text for sentence in of(Sentence, section))


def test_a_plan_that_nobody_timed_has_no_chart_and_is_told_how_to_get_one(subject):
    section = speed.section(subject)
    assert not of(Chart, section)
    assert not of(Table, section)
    assert "`trtforge bench`" in words(section)


@pytest.fixture(scope="module")
def records(root, subject):
    """Times of an earlier plan for the L4, of its plan now, and of that for the A10, in no order."""
    store = Store(root)
    other = subject_of(subject.session, "a10")
    now = keep_times(store, subject, "2026-03-01T10:00:00+00:00")
    a10 = keep_times(store, other, "2026-02-01T10:00:00+00:00", 2.0)
    before = keep_times(store, subject, "2026-01-01T10:00:00+00:00", 1.5, "a" * 64)
    return before, a10, now


def test_times_are_found_in_the_order_of_time(root, records):
    found = [record.key for record in timings(opened(root))]
    assert [key for key in found if key in {each.key for each in records}] == [each.key for each in records]


def test_the_chart_has_every_target_and_the_plans_before(subject, records):
    (chart,) = of(Chart, speed.section(timed(subject, records)))
    median = DECIMAL_MS[1]
    assert chart.description == f"a10 (NVIDIA L4): {2 * median:.4g} ms; l4 (NVIDIA L4): {median:.4g} ms"
    drawn = chart.draw()
    assert "2026-01-01 10:00" in drawn
    assert "2026-03-01 10:00" in drawn
    assert "2026-02-01 10:00" not in drawn  # the A10's is no plan before this one


def test_the_plans_own_times_are_a_table(subject, records):
    own, every = of(Table, speed.section(timed(subject, records)))
    cells = {column.heading: cell.text for column, cell in zip(own.columns, own.rows[0], strict=True)}
    assert (cells["point"], cells["GPU p50 (ms)"]) == ("default.opt", f"{DECIMAL_MS[1]:.4g}")
    assert len(every.rows) == 3


def test_times_of_onnx_runtime_are_told_as_such_and_not_drawn(built):
    short = {"points": "[opt]", "warmup_ms": 0, "warmup_iterations": 1, "duration_ms": 1, "iterations": 3}
    overrides = [f"++steps.bench.config.{name}={value}" for name, value in short.items()]
    ran = built("bench", "-q", "targets=[l4]", *overrides)
    assert ran.code == 0, ran.err
    section = speed.section(subject_of(opened(built.store, "targets=[l4]")))
    assert "The plan was not timed: no GPU of 8.9 here." in words(section)
    assert "onnxruntime" in words(section)
    assert "This is no time of the plan." in words(section)
    (table,) = of(Table, section)
    assert table.caption == "ONNX Runtime on the CPU, not the plan"
    assert not of(Chart, section)
    assert "no plan of this model and flow was timed on a GPU (no GPU of 8.9 here)" in words(section)
    # A gate of latency that nobody could measure does not hold.
    step = bench.with_step(["targets=[l4]", *overrides], [])
    judged = summary.judged(
        subject_of(opened(built.store, *step, "gates.latency_ms=1", "gates.latency_regression=1.05"))
    )
    verdicts = {row[0].text: row[-1].text for row in judged.blocks[0].rows}
    assert list(verdicts) == ["latency_ms", "latency_regression"]
    assert all(f"the gate {name} asks for" in told for name, told in verdicts.items())
