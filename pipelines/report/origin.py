"""What a plan was built from: steps, settings and where each came from, shapes, versions, and what each step took."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import partial
from typing import Any

from artifacts import publications
from artifacts.record import Record
from pipelines.report import blocks, charts
from pipelines.report.blocks import Block, Cell, Chart, Column, Section, Sentence, Table
from pipelines.report.charts import Bar
from pipelines.report.subject import Subject
from stages import STAGES

DATA = "model."


def steps(subject: Subject) -> Section:
    """What each step took and gave, and with which settings."""
    found = [*_surgery(subject), *_profiles(subject), _settings(subject), _versions(subject)]
    return Section("What it was built from", [_steps(subject), *found])


def times(subject: Subject) -> Section:
    """What each step took when it ran."""
    rows = [_time(step, record) for step, record in subject.records]
    columns = (
        *(Column("step"), Column("time", "s", is_number=True), Column("processor time", "s", is_number=True)),
        *(Column("most memory", is_number=True), Column("finished (UTC)"), Column("host")),
    )
    ran = [(step, record) for step, record in subject.records if record.provenance.get("seconds") is not None]
    bars = [Bar(step, float(record.provenance["seconds"])) for step, record in ran]
    said = "; ".join(f"{each.name}: {each.amount:.1f} s" for each in bars)
    chart: list[Block] = []
    if bars:
        chart.append(Chart("Time of each step when it ran", said, partial(charts.bars, bars, "time (s)")))
    told = Sentence("A step that was cached ran earlier, maybe for another flow, and on the host named here.")
    return Section("Build time by step", [*chart, told, Table("Steps", columns, rows), *_builder(subject)])


def published(subject: Subject) -> Section:
    """What the plan's place meant, one after the other."""
    place = subject.session.place(subject.target)
    moves = publications.history(subject.store, place).moves
    if not moves:
        return Section("Published", [Sentence(f"Nothing was ever published as {place}.")])
    columns = (
        *(Column("when (UTC)"), Column("how"), Column("record", is_code=True), Column("by"), Column("reason")),
        Column("gates against it"),
    )
    rows = [
        [
            *(blocks.text(move.at), Cell(move.how), blocks.digest(move.key), blocks.text(move.by)),
            *(blocks.text(move.reason), blocks.text("; ".join(move.gates))),
        ]
        for move in moves
    ]
    return Section("Published", [Table(place, columns, rows)])


def _steps(subject: Subject) -> Block:
    columns = (
        *(Column("step"), Column("stage"), Column("made from"), Column("gave"), Column("size", is_number=True)),
        *(Column("sha256", is_code=True), Column("record", is_code=True)),
    )
    rows = []
    for step, record in subject.records:
        stage = Cell(f"{record.fields['stage']} {record.fields['version']}", "stage and its version")
        for name, blob in record.outputs.items():
            taken = Cell(", ".join(map(str, (record.provenance.get("inputs") or {}).values())))
            gave = [Cell(name), blocks.size(blob.bytes), blocks.digest(blob.digest), blocks.digest(record.key)]
            rows.append([Cell(step), stage, taken, *gave])
    return Table("Steps, and what each took and gave", columns, rows)


def _surgery(subject: Subject) -> Iterator[Block]:
    for record in subject.of("surgery"):
        columns = (Column("pass"), *(Column(name, is_number=True) for name in ("nodes", "after", "bytes", "after")))
        rows = [
            [
                Cell(str(each["pass"])),
                *(blocks.number(each[key]) for key in ("nodes_before", "nodes_after")),
                *(blocks.size(each[key]) for key in ("bytes_before", "bytes_after")),
            ]
            for each in record.metrics.get("passes", ())
        ]
        yield Table("Surgery, pass by pass", columns, rows)


def _profiles(subject: Subject) -> Iterator[Block]:
    profiles: Mapping[str, Any] = subject.record.fields["facts"].get("profiles") or {}
    if not profiles:
        return
    columns = (Column("profile"), Column("input", is_code=True), Column("min"), Column("opt"), Column("max"))
    rows = [
        [Cell(profile), blocks.text(name), *(blocks.text(_shape(ends.get(end))) for end in ("min", "opt", "max"))]
        for profile, inputs in profiles.items()
        for name, ends in inputs.items()
    ]
    yield Table("Optimization profiles", columns, rows)


def _shape(shape: object) -> str:
    return " x ".join(map(str, shape)) or "scalar" if isinstance(shape, list) else ""


def _settings(subject: Subject) -> Block:
    rows = [
        [Cell(step), Cell(path), blocks.text(value), Cell(origin)]
        for step, record in subject.records
        for path, value, origin in settings(step, record)
    ]
    columns = (Column("step"), Column("setting", is_code=True), Column("value", is_code=True), Column("came from"))
    return Table("Settings, and where each came from", columns, rows)


def settings(step: str, record: Record) -> Iterator[tuple[str, Any, str]]:
    """Every setting in the key of a step, and those that somebody gave: path, value, and where it came from."""
    origins = dict(record.provenance.get("origins") or {})
    for name, value in record.fields["config"].items():
        yield name, value, origins.pop(f"steps.{step}.config.{name}", None) or _unsaid(record, name, value)
    for path, origin in origins.items():
        if path.startswith(DATA):
            _, data, name = path.split(".", 2)
            fact = record.fields["facts"].get(data) or {}
            if name in fact:
                yield path, fact[name], origin


def _unsaid(record: Record, name: str, value: Any) -> str:
    """Where a setting came from that nobody gave by its name: `refit: true` sets some of other steps."""
    config = STAGES[record.fields["stage"]].config
    own = next((each.default for each in fields(config) if each.name == name), value)
    return "default" if own == value or isinstance(value, (list, dict)) else "set by another key of the config"


def _versions(subject: Subject) -> Block:
    tools = {tool: version for _, record in subject.records for tool, version in record.fields["tools"].items()}
    named = {subject.target.backend: subject.target.backend_version, **dict(sorted(tools.items()))}
    made = subject.record.provenance
    named |= {"trtforge": str(made.get("trtforge")), "Python": str(made.get("python"))}
    rows = [[Cell(str(name)), Cell(str(version))] for name, version in named.items()]
    return Table("Versions", (Column("package"), Column("version")), rows)


def _time(step: str, record: Record) -> list[Cell]:
    made = record.provenance
    seconds = [blocks.number(made.get(key)) for key in ("seconds", "cpu_s")]
    where = [blocks.text(made.get(key)) for key in ("finished", "host")]
    return [Cell(step), *seconds, blocks.size(made.get("peak_bytes")), *where]


def _builder(subject: Subject) -> Iterator[Block]:
    for record in subject.of("build"):
        seconds = record.metrics.get("seconds") or {}
        if seconds:
            told = ", ".join(f"{name} {float(value):.2f} s" for name, value in seconds.items())
            yield Sentence(f"Of the step build, TensorRT itself took: {told}.")
        if record.metrics.get("without_effect"):
            names = ", ".join(map(str, record.metrics["without_effect"]))
            yield Sentence(f"Settings that have no effect on this backend: {names}.", "warning")
