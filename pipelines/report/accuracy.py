"""How far what was built is from the model as given: what the stage `validate` measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipelines.report import blocks, charts
from pipelines.report.blocks import Block, Cell, Chart, Column, Section, Sentence, Table
from pipelines.report.charts import Errors
from pipelines.report.subject import Subject

MOST_OUTPUTS = 8
"""Charts of more outputs would be a page each; those with the lowest SQNR are shown."""

WHO = {"candidate": "the ONNX it was built from", "engine": "the plan, executed"}

_NUMBERS = (
    ("max_abs_error", "max abs error"),
    ("mean_abs_error", "mean abs error"),
    ("max_relative_error", "max rel. error"),
    ("mean_relative_error", "mean rel. error"),
    ("cosine", "cosine"),
    ("sqnr_db", "SQNR"),
)


def section(subject: Subject) -> Section:
    """Metrics of each output, their errors' distribution, accuracy on labelled data, and the worst batches."""
    found: list[Block] = []
    for record in subject.of("validate"):
        found += _blocks(subject.content(record, "report"), record.metrics)
    return Section("Accuracy", found or [Sentence("No step of the flow compares the plan with the model.")])


def _blocks(report: Mapping[str, Any], summary: Mapping[str, Any]) -> Iterator[Block]:
    reference = report["runtimes"]["reference"]["name"]
    yield Sentence(
        f"{summary['samples']:,} samples of {summary['inputs']} data, against {summary['reference']} ({reference})."
    )
    yield from _overlap(summary.get("overlap") or {})
    yield Table("Every output against the reference", _columns(), list(_rows(report)))
    yield from _accuracy(report)
    yield _distribution(report)
    yield from _worst(report)
    yield from _edges(report)


def _columns() -> list[Column]:
    names = [Column(name, "dB" if key == "sqnr_db" else "", is_number=True) for key, name in _NUMBERS]
    return [Column("output", is_code=True), Column("of"), *names, Column("top-1 agreement", is_number=True)]


def _compared(report: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Who was compared with which reference, and the numbers; the reference that gates read comes first."""
    for who, name in WHO.items():
        if report.get(who):
            yield who, name, report[who]
    for reference, found in report.get("references", {}).items():
        for who, name in WHO.items():
            if isinstance(found.get(who), Mapping):
                yield who, f"{name}, against {reference}", found[who]


def _rows(report: Mapping[str, Any]) -> Iterator[list[Cell]]:
    for _, name, found in _compared(report):
        for output, numbers in found["outputs"].items():
            measured = [blocks.number(numbers.get(key)) for key, _ in _NUMBERS]
            top = blocks.percent((numbers.get("top_k_agreement") or {}).get("1", numbers.get("top1_agreement")))
            yield [blocks.text(output), Cell(name), *measured, top]


def _accuracy(report: Mapping[str, Any]) -> Iterator[Block]:
    rows = []
    for who, name in WHO.items():
        found = (report.get(who) or {}).get("accuracy")
        if found:
            rows += [_accuracy_row(name, found, key) for key in ("reference", "candidate", "drop")]
    if rows:
        columns = (Column("of"), Column("what"), Column("share", is_number=True), Column("95 % interval"))
        yield Table("Accuracy on labelled held-out data", (*columns, Column("samples", is_number=True)), rows)
    yield from _metric(report.get("metric"))


def _metric(judged: Mapping[str, Any] | None) -> Iterator[Block]:
    if not judged:
        return
    numbers = {"reference": "as given", "candidate": "as built", "drop": "drop"}
    columns = (Column("of"), Column("metric"), *(Column(name, is_number=True) for name in numbers.values()))
    rows = [
        [Cell(name), blocks.text(metric), *(blocks.number(each.get(key)) for key in numbers)]
        for who, name in WHO.items()
        for metric, each in (judged.get(who) or {}).items()
    ]
    yield Table(f"The user's own metric, {judged['function']['callable']}", columns, rows)


def _accuracy_row(name: str, found: Mapping[str, Any], key: str) -> list[Cell]:
    words = {"reference": "the model as given", "candidate": "as built", "drop": "drop"}
    interval = Cell(blocks.between(found.get(f"{key}_interval")))
    return [Cell(name), Cell(words[key]), blocks.percent(found.get(key)), interval, blocks.number(found.get("count"))]


def _distribution(report: Mapping[str, Any]) -> Block:
    found = [
        Errors(output, WHO[who], told["log10_edges"], told["counts"], told["exact"])
        for who in WHO
        for output, numbers in sorted((report.get(who) or {"outputs": {}})["outputs"].items(), key=_decibels)
        if (told := numbers.get("abs_error_histogram")) and any(told["counts"])
    ]
    kept = list(dict.fromkeys(each.output for each in found))[:MOST_OUTPUTS]
    shown = [each for each in found if each.output in kept]
    if not shown:
        return Sentence("No chart of errors: no output differs from the reference's anywhere.")
    said = f"How many values of {', '.join(kept)} have an absolute error of which size, both axes labelled."
    return Chart("Distribution of absolute errors", said, lambda: charts.errors(shown))


def _decibels(each: tuple[str, Mapping[str, Any]]) -> float:
    value = each[1].get("sqnr_db")
    return float("inf") if value is None else float(value)


def _worst(report: Mapping[str, Any]) -> Iterator[Block]:
    found = [each for each in report["candidate"].get("worst_batches", ()) if each["max_abs_error"] > 0]
    if found:
        columns = (
            *(Column(name, is_number=True) for name in ("batch", "first sample")),
            *(Column("output", is_code=True), Column("max abs error", is_number=True)),
        )
        yield Table("The batches with the most error for their signal", columns, [_batch(each) for each in found])


def _batch(each: Mapping[str, Any]) -> list[Cell]:
    numbers = [blocks.number(each[key]) for key in ("batch", "first_sample")]
    return [*numbers, blocks.text(each["output"]), blocks.number(each["max_abs_error"])]


def _overlap(found: Mapping[str, Any]) -> Iterator[Block]:
    if found.get("count"):
        said = f"{found['count']} of {found['held_out_samples']} held-out samples were calibrated with, too."
        yield Sentence(f"{said} These say little about other data.", "warning")


def _edges(report: Mapping[str, Any]) -> Iterator[Block]:
    skipped: Sequence[Mapping[str, Any]] = report.get("skipped_edges") or ()
    for each in skipped:
        yield Sentence(f"Not compared at {each['inputs']}: {each['reason']}")
    for kind, each in (report.get("extremes") or {}).items():
        finite = each.get("compared") and each["candidate"].get("finite", True)
        if not finite:
            why = each.get("reason") or each["candidate"].get("reason")
            yield Sentence(f"Inputs that are {kind}, which no gate reads: {why}", "warning")
