"""How fast a plan is: what the stage `bench` measured, of it, of other targets' plans and of earlier ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from artifacts.record import Record
from pipelines.report import blocks, charts
from pipelines.report.blocks import Block, Cell, Chart, Column, Section, Sentence, Table
from pipelines.report.charts import BLUE, SKY, Bar, Moment
from pipelines.report.subject import Subject

MOST_MOMENTS = 20
"""So many of the latest measurements are drawn."""

_PERCENTILES = ("p50", "p90", "p99")


def section(subject: Subject) -> Section:
    """The plan's own times, and a chart of all plans of the model and flow that were executed on a GPU."""
    return Section("Latency", [*_own(subject), *_chart(subject), *_all(subject.timings)])


def _own(subject: Subject) -> Iterator[Block]:
    record = subject.timed
    if record is None:
        yield Sentence("Nobody has timed this plan: `trtforge bench` does.")
        return
    report = subject.content(record, "report")
    summary = report["summary"]
    where = f"on {record.provenance.get('host')}, {record.provenance.get('finished')}"
    if summary["engine_executed"]:
        yield Sentence(f"{summary['runtime']} on {summary['gpu']}, measured {where}.")
    else:
        yield Sentence(f"The plan was not timed: {summary['reason']}.", "warning")
        if summary["runtime"]:
            runtime = f"{summary['runtime']} on {summary['cpu']}"
            yield Sentence(f"In its place, {where}: {runtime}. This is no time of the plan.")
    if report["points"]:
        what = "The plan on its GPU" if summary["engine_executed"] else "ONNX Runtime on the CPU, not the plan"
        yield Table(what, _columns(), [_row(point, run) for point in report["points"] for run in point["runs"]])


def _columns() -> list[Column]:
    first = [Column("point"), Column("samples", is_number=True), Column("launch"), Column("inputs")]
    names = [f"{where} {percentile}" for where in ("GPU", "host") for percentile in _PERCENTILES]
    times = [Column(name, "ms", is_number=True) for name in names]
    return [*first, *times, Column("inferences/s", is_number=True), Column("samples/s", is_number=True)]


def _row(point: Mapping[str, Any], run: Mapping[str, Any]) -> list[Cell]:
    name = f"{point['profile']}.{point['point']}" if point["profile"] else point["point"]
    times = [
        blocks.number((run.get(where) or {}).get(each)) for where in ("gpu_ms", "host_ms") for each in _PERCENTILES
    ]
    best = max(run["throughput"], key=lambda rate: float(rate["inferences_per_s"]))
    rates = [blocks.number(best[each]) for each in ("inferences_per_s", "samples_per_s")]
    return [Cell(name), blocks.number(point["samples"]), Cell(run["launch"]), Cell(run["inputs"]), *times, *rates]


def _chart(subject: Subject) -> Iterator[Block]:
    executed = [each for each in subject.timings if _is_number(each.metrics.get("latency_ms"))]
    if not executed:
        reasons = sorted({str(each.metrics["reason"]) for each in subject.timings if each.metrics.get("reason")})
        why = f" ({'; '.join(reasons)})" if reasons else ""
        yield Sentence(f"No chart of latency: no plan of this model and flow was timed on a GPU{why}.")
        return
    latest = {_target(each): each for each in executed}  # the last of each target wins
    own = subject.target.name
    bars = [_bar(subject, name, each, own) for name, each in sorted(latest.items())]
    before = [each for each in executed if _target(each) == own][-MOST_MOMENTS:]
    history = [Moment(_when(each), float(each.metrics["latency_ms"])) for each in before]
    said = "; ".join(f"{each.name}: {each.amount:.4g} ms" for each in bars)
    title = "Median latency of each target's plan, and of this one's before" if len(history) > 1 else ""
    draw = partial(charts.latencies, bars, history)
    yield Chart(title or "Median latency of each target's plan", said, draw)


def _bar(subject: Subject, name: str, record: Record, own: str) -> Bar:
    spread = _spread(subject.content(record, "report")["points"])
    told = f"{name} ({record.metrics.get('gpu')})"
    return Bar(told, float(record.metrics["latency_ms"]), BLUE if name == own else SKY, *spread)


def _spread(points: Sequence[Mapping[str, Any]]) -> tuple[float | None, float | None]:
    """p90 and p99 of the runs that `latency_ms` is the median of; of several profiles those of the slowest."""
    runs = [
        run["gpu_ms"]
        for point in points
        if point["point"] == "opt"
        for run in point["runs"]
        if (run["launch"], run["inputs"]) == ("enqueue", "device") and "gpu_ms" in run
    ]
    slowest = max(runs, key=lambda run: float(run["p50"]), default=None)
    return (float(slowest["p90"]), float(slowest["p99"])) if slowest else (None, None)


def _all(timings: Sequence[Record]) -> Iterator[Block]:
    if len(timings) < 2:
        return
    columns = (
        *(Column("measured (UTC)"), Column("target"), Column("plan", is_code=True), Column("on")),
        *(Column("latency of the plan", "ms", is_number=True), Column("ONNX Runtime on the CPU", "ms", is_number=True)),
    )
    yield Table("Every time that was measured of this model and flow", columns, [_listed(each) for each in timings])


def _listed(record: Record) -> list[Cell]:
    metrics = record.metrics
    plan = blocks.digest(str(record.fields["inputs"].get("plan", "")))
    on = blocks.text(metrics.get("gpu") or metrics.get("cpu"))
    times = [blocks.number(metrics.get(key)) for key in ("latency_ms", "host_latency_ms")]
    return [Cell(_when(record)), Cell(_target(record)), plan, on, *times]


def _target(record: Record) -> str:
    return str(record.provenance.get("target"))


def _when(record: Record) -> str:
    return str(record.provenance.get("finished", blocks.NOTHING))[:16].replace("T", " ")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
