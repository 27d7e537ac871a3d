"""Whether a plan may be used: what it is, what gates say of it, and what was executed on a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

from artifacts import publications
from pipelines import judging
from pipelines.report import blocks
from pipelines.report.blocks import Cell, Column, Facts, Section, Sentence, Table
from pipelines.report.subject import Subject
from stages import gates
from stages.gates import MEASURED_BY, Gates

SHARES = ("accuracy_drop", "min_top1_agreement")
"""Gates whose numbers are shares."""


def verdict(subject: Subject) -> list[Sentence]:
    """Whether the plan passed, what of it ran on a GPU, and how it was made where it was not simply built."""
    session, target = subject.session, subject.target
    refused = session.reservations(target)
    if refused:
        said = Sentence(f"Refused by its gates: {'; '.join(refused)}", "bad")
    elif session.validated(target):
        asked = any(_asked(subject))
        said = Sentence("Validated, and every gate holds." if asked else "Validated; the flow asks no gate.", "good")
    else:
        said = Sentence("Not validated: no step of the flow has compared it with the model.", "warning")
    return [said, _executed(subject), *_refitted(subject)]


def about(subject: Subject) -> Section:
    """What the plan is, where it came from, and when."""
    record, target = subject.record, subject.target
    made, plan = record.provenance, record.outputs["plan"]
    header = {
        "plan": Cell(f"{blocks.size(plan.bytes).text} ({plan.bytes:,} bytes)"),
        "sha256": Cell(plan.digest),
        "record": Cell(record.key),
        "model": Cell(subject.words[0]),
        "source": blocks.text(made.get("source")),
        "flow": Cell(subject.session.config.flow),
        "target": Cell(f"{target.name}: {target.gpu}, compute capability {target.compute_capability}"),
        "backend": Cell(f"{target.backend} {target.backend_version}"),
        "overrides": Cell(" ".join(map(str, made.get("overrides") or [])) or "none"),
        "made": Cell(f"{made.get('finished', blocks.NOTHING)} on {made.get('host', blocks.NOTHING)}"),
        "by": Cell(f"trtforge {made.get('trtforge')}, Python {made.get('python')}"),
    }
    return Section("The plan", [Facts(header)])


def judged(subject: Subject) -> Section:
    """Each gate that the flow asks: the limit, what was measured, of what, and whether it holds."""
    rows = list(_asked(subject))
    if not rows:
        return Section("Gates", [Sentence("The flow asks no gate: gates.NAME=LIMIT does (docs/flows.md).")])
    columns = (Column("gate"), Column("limit", is_number=True), Column("measured", is_number=True), Column("of"))
    return Section("Gates", [Table("What the flow asks of the plan", (*columns, Column("verdict")), rows)])


def _asked(subject: Subject) -> Iterator[list[Cell]]:
    asked = subject.session.config.gates
    for each in fields(asked):
        limit = getattr(asked, each.name)
        if limit is None:
            continue
        stage = MEASURED_BY.get(each.name)
        if stage is None:
            size = subject.record.outputs["plan"].bytes
            yield _row(each.name, limit, size, "the plan", gates.of_plan(asked, size))
        elif stage == "bench":
            published = judging.baseline(subject.store, subject.session.place(subject.target))
            for record in subject.of(stage):
                refusals = gates.of_bench(Gates(**{each.name: limit}), record.metrics, published)
                yield _row(each.name, limit, record.metrics.get("latency_ms"), "the plan, on its GPU (ms)", refusals)
        else:
            for record in subject.of(stage):
                yield from _judged(asked, each.name, limit, record.metrics)


def _judged(asked: Gates, gate: str, limit: Any, metrics: Mapping[str, Any]) -> Iterator[list[Cell]]:
    name = gate.removeprefix("min_")  # as `stages.validate` calls it
    engine = metrics.get("engine")
    yield _row(gate, limit, metrics.get(name), "the ONNX it was built from", gates.judge(asked, gate, metrics))
    if isinstance(engine, Mapping):
        yield _row(gate, limit, engine.get(name), "the plan, executed", gates.judge(asked, gate, engine, "engine "))


def _row(gate: str, limit: Any, measured: Any, who: str, refusals: list[str]) -> list[Cell]:
    shown = blocks.percent if gate in SHARES else blocks.number
    told = Cell("; ".join(refusals), tone="bad") if refusals else Cell("holds", tone="good")
    return [Cell(gate), shown(limit), shown(measured), Cell(who), told]


def _executed(subject: Subject) -> Sentence:
    """What ran on a GPU, of all that this report has numbers of, and what did not."""
    runs = [record for stage in ("validate", "bench") for record in subject.of(stage)]
    runs += [subject.timed] if subject.timed is not None and subject.timed not in runs else []
    executed = sorted({str(each.fields["stage"]) for each in runs if each.metrics.get("engine_executed") is True})
    others = [each for each in runs if each.metrics.get("engine_executed") is not True]
    if executed and not others:
        return Sentence(f"The plan was executed on a GPU by {' and '.join(executed)}.", "good")
    reasons = sorted({str(each.metrics["reason"]) for each in others if each.metrics.get("reason")})
    names = " or ".join(sorted({str(each.fields["stage"]) for each in others}))
    told = f"The plan was executed on a GPU by {' and '.join(executed)}, but" if executed else "The plan was"
    told += " not executed on a GPU" if not executed else " not"
    told += (f" by {names}" if names else "") + (f": {'; '.join(reasons)}." if reasons else ".")
    if any(each.fields["stage"] == "validate" for each in others):
        told += " Its accuracy is that of ONNX Runtime, on the CPU, with the ONNX that the builder was given."
    return Sentence(told, "warning")


def _refitted(subject: Subject) -> Iterator[Sentence]:
    for record in subject.of("refit"):
        if record.metrics.get("method") == "rebuild":
            yield Sentence(f"Its weights were not refitted, it was rebuilt: {record.metrics.get('reason')}.", "warning")
        else:
            yield Sentence("Its weights were put into a plan that was built before from the same structure.")


def published(subject: Subject) -> Iterator[Sentence]:
    """Whether it is this plan that stands published in its place."""
    place = subject.session.place(subject.target)
    key = subject.store.ref(f"published/{place}")
    record = subject.store.record(key) if key else None
    if record is None:
        yield Sentence("Nothing is published in its place.")
    elif record.outputs.get("plan") == subject.record.outputs["plan"]:
        forced = [move for move in publications.history(subject.store, place).moves if move.key == key and move.reason]
        why = f" Forced or moved by {forced[-1].by}: {forced[-1].reason}." if forced else ""
        yield Sentence(f"Published as {place}.{why}", "warning" if forced else "good")
    else:
        yield Sentence(f"Another plan is published as {place}.", "warning")
