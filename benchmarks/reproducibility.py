"""How many plans of the real models have the same bytes whenever they are built: `make reproducibility`.

    python -m benchmarks.reproducibility --work DIR                all of them
    python -m benchmarks.reproducibility --work DIR digits/fp32    only these, each MODEL/FLOW

Every row of the matrix is built four times for one target by the command line, each time in a directory of its own,
whose name is longer than the one before. Steps before `build` run once, so that all four answer one question. Exits
with 1 where the weights of two plans differ.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import Any

from benchmarks.matrix import ROWS, SAMPLES, Row, trtforge
from benchmarks.models import write_configs
from stages import plan

ROUNDS = 4
TARGET = "l4"
"""Of 8.9, the lowest capability that has every precision of the matrix."""

WEIGHTS = "THGW"
WITHOUT_VALIDATION = ("~steps.validate", "~steps.publish")


@dataclass(frozen=True)
class Compared:
    """What the plans of one key have in common.

    Attributes:
        plans: How many different ones there are.
        weights: How many different weight sections.
        differing_bytes: The most bytes in which two plans of one size differ.
        sizes: How many different sizes.
    """

    plans: int
    weights: int
    differing_bytes: int
    sizes: int


def compared(paths: Sequence[Path]) -> Compared:
    """Compares plans of TensorRT-RTX that were built from one key."""
    contents = {sha256(content).digest(): content for content in (path.read_bytes() for path in paths)}
    pairs = [(one, other) for one, other in combinations(contents.values(), 2) if len(one) == len(other)]
    return Compared(
        len(contents),
        len({_weights(path) for path in paths}),
        max((sum(a != b for a, b in zip(one, other, strict=True)) for one, other in pairs), default=0),
        len({len(content) for content in contents.values()}),
    )


def _weights(path: Path) -> bytes:
    [section] = [section for section in plan.read(path).sections if section.tag == WEIGHTS]
    return sha256(plan.content(path, section)).digest()


def built(row: Row, work: Path) -> list[Path] | str:
    """The plans of `ROUNDS` builds of one key, or why there are none."""
    given = [f"model={row.model}", f"flow={row.flow}", f"targets=[{TARGET}]", *row.overrides, *WITHOUT_VALIDATION]
    code, document = trtforge(work)(["build", *given, "~steps.build"])
    if code:
        return _reason(document)
    found: dict[Path, str] = {}
    for place in _rounds(work):
        code, document = trtforge(place)(["build", *given])
        if code:
            return _reason(document)
        step = next(step for step in document["steps"] if step["step"] == "build")
        assert step["state"] == "built", "the plan was there before it was built"
        found[Path(step["outputs"]["plan"]["path"])] = step["key"]
    assert len(set(found.values())) == 1, f"{row}: not one question but {len(set(found.values()))}"
    return list(found)


def _rounds(work: Path) -> Iterator[Path]:
    """Directories with the config and the store of `work`, in which no plan was built yet."""
    for number in range(ROUNDS):
        place = work / ("round" + "-again" * 3 * number)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        (place / "config").symlink_to(work / "config")
        # What the store keeps is never written to again; its indexes are, and are made anew.
        (place / "store").mkdir()
        for kept in ("objects", "records"):
            shutil.copytree(work / "store" / kept, place / "store" / kept, copy_function=os.link)
        yield place


def _reason(document: Mapping[str, Any]) -> str:
    failed = [step["error"] for step in document.get("steps", ()) if step["error"]]
    return str(failed[0] if failed else document["error"])


def main() -> int:
    """Builds, compares, prints; 1 where weights differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {f"{row.model}/{row.flow}" for row in ROWS}
    parser.add_argument("rows", nargs="*", metavar="MODEL/FLOW", help=f"out of {', '.join(sorted(names))}; none: all")
    parser.add_argument("--work", type=Path, required=True, help="keeps models, data and stores")
    asked = parser.parse_args()
    if unknown := set(asked.rows) - names:
        parser.error(f"not in the matrix: {', '.join(sorted(unknown))}")
    work = asked.work.resolve()
    rows = [row for row in ROWS if not asked.rows or f"{row.model}/{row.flow}" in asked.rows]
    (work / "config").mkdir(parents=True, exist_ok=True)
    write_configs(dict.fromkeys(row.model for row in rows), work / "config", SAMPLES)
    results = {}
    for row in rows:
        plans = built(row, work)
        if isinstance(plans, str):
            print(f"{row.model} {row.title}: no plan: {plans}", flush=True)
            continue
        results[row] = compared(plans)
        print(f"{row.model} {row.title}: {_told(results[row])}", flush=True)
    same = sum(found.plans == 1 for found in results.values())
    unlike = [row for row, found in results.items() if found.weights > 1]
    print(f"{same} of {len(results)} have the same bytes in {ROUNDS} builds; weights differ in {len(unlike)}")
    return 1 if unlike or not results else 0


def _told(found: Compared) -> str:
    if found.plans == 1:
        return "the same bytes"
    sizes = "" if found.sizes == 1 else f", {found.sizes} sizes"
    weights = "the same weights" if found.weights == 1 else f"{found.weights} DIFFERENT WEIGHTS"
    return f"{found.plans} plans{sizes}, up to {found.differing_bytes} bytes differ, {weights}"


if __name__ == "__main__":
    sys.exit(main())
