"""What runs inside a plan: its layers, and what they compute in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial

from pipelines import layers as reading
from pipelines.layers import in_macs
from pipelines.report import blocks, charts
from pipelines.report.blocks import Block, Cell, Chart, Column, Section, Sentence, Table
from pipelines.report.charts import LayerBar
from pipelines.report.subject import Subject
from stages.layer_report import Layer, ProfileLayers, Report

_COUNTED = {"layers": "layers", "products": "products", "macs": "MACs", "weight_bytes": "weights", "ms": "time"}


def section(subject: Subject) -> Section:
    """Of each profile the shares of its precisions, its layers in order, and what no layer names."""
    plan = reading.Plan(subject.path(subject.record, "plan"), subject.record)
    asked = next(subject.of("layers"), None)  # of a flow that has the step, which a GPU has timed
    report = Report.of(subject.content(asked, "layers")) if asked else reading.report_of(plan, subject.store)
    said: list[Block] = [Sentence(text) for text in (report.unread_reason, report.model_reason) if text]
    return Section("Layers and precision", [*said, *_profiles(report)])


def _profiles(report: Report) -> Iterator[Block]:
    for read in report.profiles:
        title = f"profile {read.profile}" if read.profile else "the plan's profile"
        yield _precisions(read, title)
        yield from _charts(read, title)
        yield _layers(read, title)
        yield from _unplaced(read)
    if report.profiles and report.timed_reason:
        yield Sentence(f"No layer has a time: {report.timed_reason}.")


def _precisions(read: ProfileLayers, title: str) -> Block:
    columns = [Column("computes in"), *(Column(name, is_number=True) for name in _COUNTED.values())]
    counts = read.precisions
    sums = {key: sum(getattr(each, key) or 0 for each in counts.values()) for key in _COUNTED}
    rows = [
        [Cell(name), *(_count(key, getattr(count, key), sums[key]) for key in _COUNTED)]
        for name, count in counts.items()
    ]
    return Table(f"What {title} computes in", columns, rows)


def _count(key: str, value: float | None, whole: float) -> Cell:
    if value is None:
        return Cell(blocks.NOTHING)
    shown = {"macs": _macs, "weight_bytes": blocks.size, "ms": _ms}.get(key, blocks.number)(value)
    share = f" ({100 * value / whole:.1f} %)" if whole and key in ("macs", "weight_bytes", "ms") else ""
    return Cell(shown.text + share, shown.full)


def _macs(value: object) -> Cell:
    return Cell(in_macs(value), f"{value:,} MACs") if isinstance(value, int) else Cell(blocks.NOTHING)


def _ms(value: object) -> Cell:
    return Cell(f"{value:.4f} ms", repr(value)) if isinstance(value, float) else Cell(blocks.NOTHING)


def _charts(read: ProfileLayers, title: str) -> Iterator[Block]:
    rows: dict[str, Mapping[str, float]] = {}
    for key, name in _COUNTED.items():
        amounts = {p: float(value) for p, count in read.precisions.items() if (value := getattr(count, key))}
        if amounts:
            rows[name] = amounts
    if not rows:
        return
    told = "; ".join(f"{name}: {_in_words(row)}" for name, row in rows.items())
    yield Chart(f"Shares of precisions, {title}", told, partial(charts.shares, rows))
    timed = any(layer.ms is not None for layer in read.layers)
    if not timed and not any(layer.macs for layer in read.layers):
        yield Sentence("No chart of single layers: no layer has a known number of multiply-accumulates, or a time.")
        return
    bars = [LayerBar(each.precision, (each.ms if timed else each.macs) or 0.0) for each in read.layers]
    unit = "time (ms)" if timed else "MACs at opt"
    said = f"{unit} of each of {len(bars)} layers in the order in which they run, and what each computes in."
    yield Chart(f"Layers in order, {title}", said, partial(charts.layers, bars, unit))


def _in_words(row: Mapping[str, float]) -> str:
    whole = sum(row.values())
    return ", ".join(f"{name} {100 * amount / whole:.1f} %" for name, amount in row.items())


def _layers(read: ProfileLayers, title: str) -> Block:
    columns = (
        *(Column("", is_number=True), Column("layer", is_code=True), Column("computes in")),
        *(Column("MACs", is_number=True), Column("weights", is_number=True), Column("time", "ms", is_number=True)),
        *(Column("reads"), Column("writes"), Column("ONNX nodes", is_code=True)),
    )
    rows = [_layer(place, layer) for place, layer in enumerate(read.layers, 1)]
    return Table(f"The {len(rows)} layers of {title}, in order", columns, rows)


def _layer(place: int, layer: Layer) -> list[Cell]:
    types = [blocks.text(" ".join(dict.fromkeys(each))) for each in (layer.reads, layer.writes)]
    macs = _macs(layer.macs) if layer.macs else Cell("?" if layer.macs is None else blocks.NOTHING)
    held = blocks.size(layer.weight_bytes) if layer.weight_bytes else Cell(blocks.NOTHING)
    names = [blocks.number(place), blocks.text(layer.name or layer.kind), Cell(layer.precision)]
    return [*names, macs, held, blocks.number(layer.ms), *types, blocks.text(" ".join(layer.nodes))]


def _unplaced(read: ProfileLayers) -> Iterator[Block]:
    for name, macs in read.unplaced.items():
        yield Sentence(f"No layer names the product {name} ({in_macs(macs)} MACs).")
    if read.uncounted:
        yield Sentence(f"MACs not known, since a shape is not: {', '.join(read.uncounted)}.")
