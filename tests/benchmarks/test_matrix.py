"""The matrix of real models: what is run for a cell, what the page says of it, and the page that is there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from benchmarks.matrix import FLOWS, PAGE, ROWS, Cell, Row, measured, page, targets, unbuildable
from benchmarks.models import SUBJECTS

CELL = re.compile(r"\[\d+\]|\d+\.\d MB, \d+\.\d s(, \d+ of \d+)?")


def sections(text: str) -> dict[str, list[str]]:
    """The lines below each heading."""
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], (part.splitlines() for part in parts[2::2]), strict=True))


def table(lines: Sequence[str]) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines if line.startswith("|")]


def of(*names: str) -> dict[str, list[str]]:
    return {capability: [name] for capability, name in zip(("7.5", "8.9", "9.0"), names, strict=True)}


class Trtforge:
    """Answers as the command line does: h100 and t4 are refused; and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, arguments: Sequence[str]) -> tuple[int, Mapping[str, Any]]:
        verb, names = arguments[0], next((each for each in arguments if each.startswith("targets=")), arguments[1])
        self.asked.append(f"{verb} {names}")
        if "h100" in names:
            return 4, {"error": "no one here can build h100"}
        if "t4" in names:
            return 2, {"error": "target t4: no float32 matrices on 7.5"}
        if verb == "inspect":
            return 0, {"provenance": {"cpu_s": 1.3}}
        metrics = {"plan_bytes": 2_500_000, "quantized_asked": 54, "quantized_kept": 53}
        shared = {"step": "surgery", "target": None, "state": "cached", "error": None, "metrics": {}}
        built = {"step": "build", "target": "l4", "state": "built", "key": "ab12", "error": None}
        built["metrics"] = metrics
        broken = {**built, "target": "a10", "state": "failed", "error": "build[a10]: it is too big", "metrics": {}}
        return 0, {"steps": [shared, built, broken]}


def test_a_target_that_is_refused_keeps_no_other_from_being_built() -> None:
    command = Trtforge()
    assert measured(Row("resnet50", "int8"), ["t4", "l4", "a10"], command) == {
        "t4": Cell(reason="target t4: no float32 matrices on 7.5"),
        "l4": Cell(2_500_000, 1.3, 54, 53),
        "a10": Cell(reason="build[a10]: it is too big"),
    }
    assert "build targets=[l4,a10]" in command.asked


def test_what_is_built_for_no_model_is_asked_once() -> None:
    assert unbuildable(["t4", "l4", "h100"], Trtforge()) == {"h100": Cell(reason="no one here can build h100")}


def test_the_page_says_of_a_cell_how_big_how_long_and_how_much_is_kept_or_why_there_is_none() -> None:
    never, no_memory = Cell(reason="not for 9.0"), Cell(reason="build: no memory")
    cells = {
        Row("digits", "fp32"): {"t4": no_memory, "l4": Cell(1_000_000, 0.04), "h100": never},
        Row("digits", "int8"): {
            "t4": Cell(reason="build: all in float"),
            "l4": Cell(2_000_000, 1.26, 7, 6),
            "h100": never,
        },
    }
    found = sections(page(cells, of("t4", "l4", "h100"), "TensorRT-RTX 1.7"))
    assert table(found["digits"]) == [
        ["", "7.5: t4", "8.9: l4"],
        ["---", "---", "---"],
        ["fp32", "[1]", "1.0 MB, 0.0 s"],
        ["int8", "[2]", "2.0 MB, 1.3 s, 6 of 7"],
    ]
    assert "- h100: not for 9.0" in found["Targets without plans"]
    assert found["Why not"] == ["", "1. build: no memory", "2. build: all in float"]


def test_every_target_that_is_shipped_stands_in_the_matrix_of_this_tree() -> None:
    text = PAGE.read_text()
    for names in targets().values():
        for name in names:
            assert re.search(rf"\b{name}\b", text), name


@pytest.mark.parametrize("name", SUBJECTS)
def test_each_model_has_a_line_for_each_precision_and_each_number_has_a_reason(name: str) -> None:
    found = sections(PAGE.read_text())
    head, _, *rows = table(found[SUBJECTS[name].title])
    assert [row[0] for row in rows] == [row.title for row in ROWS if row.model == name]
    assert {row[0] for row in rows} >= {*FLOWS}
    reasons = {line.split(". ")[0] for line in found["Why not"] if line}
    for row in rows:
        assert len(row) == len(head)
        for cell in row[1:]:
            assert CELL.fullmatch(cell), cell
            assert not cell.startswith("[") or cell.strip("[]") in reasons
