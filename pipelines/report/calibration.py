"""How a quantized plan got its ranges: histograms and thresholds, the algorithms that were tried, what layers cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

from pipelines.report import blocks, charts
from pipelines.report.blocks import Block, Cell, Chart, Column, Section, Sentence, Table
from pipelines.report.charts import Bar, Magnitudes
from pipelines.report.subject import Subject
from stages import histogram_file
from stages.histograms import Histogram

MOST_HISTOGRAMS = 16
"""So many tensors are drawn: those whose range leaves out the most of their largest magnitude."""

MOST_LAYERS = 25
"""So many layers are drawn, those that cost the most."""

BINS = 64
"""Of a drawn histogram, from 0 to the largest magnitude: 1/32 inch each on paper."""


def section(subject: Subject) -> Section | None:
    """Ranges and sensitivity; None where the plan is not quantized so."""
    found = [*_ranges(subject), *_sensitivity(subject), *_kept(subject)]
    return Section("Quantization", found) if found else None


def _ranges(subject: Subject) -> Iterator[Block]:
    for record in subject.of("ranges"):
        about = subject.content(record, "ranges")
        tensors: Mapping[str, Mapping[str, Any]] = about["tensors"]
        histograms = _histograms(subject)
        yield from _trial(about)
        rows = [_row(name, each, histograms.get(name)) for name, each in tensors.items()]
        yield from _drawn(tensors, histograms)
        yield Table(f"The ranges of {len(rows)} activations", _columns(), rows)


def _histograms(subject: Subject) -> dict[str, Histogram]:
    record = next(subject.of("calibrate"), None)
    return histogram_file.read(subject.path(record, "histograms")).histograms if record is not None else {}


def _columns() -> list[Column]:
    return [
        *(Column("tensor", is_code=True), Column("range (amax)", is_number=True), Column("largest", is_number=True)),
        *(Column("values beyond", is_number=True), Column("chosen by"), Column("samples", is_number=True)),
    ]


def _row(name: str, each: Mapping[str, Any], histogram: Histogram | None) -> list[Cell]:
    numbers = [blocks.number(each.get(key)) for key in ("amax", "max")]
    beyond = blocks.percent(None if histogram is None else _beyond(histogram, float(each["amax"])))
    return [blocks.text(name), *numbers, beyond, blocks.text(each.get("algorithm")), blocks.number(each.get("samples"))]


def _beyond(histogram: Histogram, amax: float) -> float:
    """The share of values that a range clips, to the width of a bin: 1/128 of a magnitude."""
    values, counts = histogram.magnitudes()
    return float(counts[values > amax].sum() / counts.sum()) if counts.sum() else 0.0


def _trial(about: Mapping[str, Any]) -> Iterator[Block]:
    trial = about.get("trial")
    if not trial:
        yield Sentence(f"The ranges were chosen by {about.get('algorithm', 'the user')}; no others were tried.")
        return
    columns = (Column("algorithm"), Column("SQNR", "dB", is_number=True), Column("accuracy", is_number=True))
    rows = [
        [
            Cell(f"{name} (chosen)" if name == about["algorithm"] else name),
            *(blocks.number(each["sqnr_db"]), blocks.percent(each["accuracy"]), blocks.text(each["refused"])),
        ]
        for name, each in trial["scores"].items()
    ]
    by = "accuracy" if trial["by"] == "accuracy" else "SQNR at the outputs"
    caption = f"Algorithms that were tried on {trial['samples']} samples of the {trial['data']} data, by {by}"
    yield Table(caption, (*columns, Column("refused")), rows)


def _drawn(tensors: Mapping[str, Mapping[str, Any]], histograms: Mapping[str, Histogram]) -> Iterator[Block]:
    seen = {name: histograms[name] for name in tensors if name in histograms and histograms[name].max > 0}
    if not seen:
        yield Sentence("No histograms: the ranges were given, or nothing but zeros was seen.")
        return
    order = sorted(seen, key=lambda name: (float(tensors[name]["amax"]) / seen[name].max, name))[:MOST_HISTOGRAMS]
    found = [_magnitudes(name, seen[name], tensors[name]) for name in order]
    some = len(found) < len(seen)
    told = "; ".join(f"{each.tensor}: {each.told}" for each in found)
    which = f": the {len(found)} of {len(seen)} tensors whose ranges leave out the most" if some else ""
    yield Chart(
        f"What calibration saw, and the ranges (vertical lines){which}", told, partial(charts.magnitudes, found)
    )


def _magnitudes(name: str, histogram: Histogram, each: Mapping[str, Any]) -> Magnitudes:
    import numpy as np

    from stages.thresholds import linear_bins

    amax = float(each["amax"])
    counts = linear_bins(histogram).reshape(BINS, -1).sum(axis=1)
    told = f"range {amax:.4g} of {histogram.max:.4g}, {100 * _beyond(histogram, amax):.2g} % beyond"
    return Magnitudes(name, histogram.max, np.round(counts).tolist(), amax, told)


def _sensitivity(subject: Subject) -> Iterator[Block]:
    in_float = {str(name) for record in subject.of("quantize") for name in record.metrics.get("skipped", ())}
    for record in subject.of("sensitivity"):
        table = subject.content(record, "sensitivity")
        layers = sorted(table["layers"].items(), key=lambda each: _decibels(each[1]))
        bars = [
            Bar(f"{name} (kept in float)" if name in in_float else name, each["sqnr_db"], _colour(name in in_float))
            for name, each in layers
            if each["sqnr_db"] is not None
        ][:MOST_LAYERS]
        if bars:
            said = "; ".join(f"{each.name}: {each.amount:.1f} dB" for each in bars)
            unit = "SQNR of the worst output with this layer alone quantized (dB); lower costs more"
            yield Chart("What each layer costs, the worst first", said, partial(charts.bars, bars, unit))
        columns = (Column("layer", is_code=True), Column("operator"), Column("SQNR", "dB", is_number=True), Column(""))
        rows = [
            [blocks.text(name), Cell(each["operator"]), blocks.number(each["sqnr_db"]), _mark(name in in_float)]
            for name, each in layers
        ]
        yield Table(f"Sensitivity of {len(rows)} layers, on {table['samples']} samples", columns, rows)


def _decibels(each: Mapping[str, Any]) -> float:
    return float("inf") if each["sqnr_db"] is None else float(each["sqnr_db"])


def _colour(in_float: bool) -> str:
    return charts.ORANGE if in_float else charts.BLUE


def _mark(in_float: bool) -> Cell:
    return Cell("kept in float" if in_float else "")


def _kept(subject: Subject) -> Iterator[Block]:
    for record in subject.of("keep_float"):
        layers = record.metrics.get("layers") or []
        said = ", ".join(map(str, layers)) if isinstance(layers, list) and layers else "none"
        yield Sentence(f"Layers that the search for the gates keeps in float: {said}.")
