"""How much each layer alone costs when it is quantized, in the file that the stage `sensitivity` writes.

    {"precision": "int8", "samples": 32, …,
     "layers": {"conv1": {"operator": "Conv", "sqnr_db": 31.2}, …},
     "tensors": {"relu0": {"kind": "activation", "sqnr_db": 38.5, "layers": ["conv1"]}, …}}

A layer's SQNR is that of the model's worst output with this layer quantized and every other in float, a tensor's that
of its own codes; null where nothing changes. Layers are ranked by theirs.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from math import inf, isfinite
from pathlib import Path

from stages.stage import StageError
from stages.wording import listed


def read(path: Path) -> dict[str, float]:
    """The SQNR in dB of each layer, infinite where nothing changes.

    Raises:
        StageError: It is no such file.
    """
    try:
        layers = json.loads(path.read_text(encoding="utf-8"))["layers"]
        return {str(name): _decibels(str(name), each["sqnr_db"]) for name, each in layers.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(
            f"{path}: no table of sensitivity: {error if isinstance(error, ValueError) else repr(error)}",
            "give a sensitivity.json as the stage sensitivity writes it",
        ) from error


def _decibels(name: str, value: object) -> float:
    if value is None:
        return inf
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value):
        raise ValueError(f"{name!r} has sqnr_db {value!r}; allowed: a finite number, or null")
    return float(value)


def worst(table: Mapping[str, float], count: int, min_sqnr_db: float | None) -> list[str]:
    """The `count` layers of the lowest SQNR, and all below `min_sqnr_db`; the lowest first, equals by name."""
    least = -inf if min_sqnr_db is None else min_sqnr_db
    ordered = sorted(table, key=lambda name: (table[name], name))
    return [name for place, name in enumerate(ordered) if place < count or table[name] < least]


def require_layers(table: Collection[str], known: Collection[str]) -> None:
    """Holds the layers of a table to the nodes of the model.

    Raises:
        StageError: One is of another model; names them.
    """
    foreign = sorted(set(table) - set(known))
    if foreign:
        raise StageError(
            f"the table of sensitivity is of another model: no node is called {listed(foreign, 10)}",
            "measure the same file that is quantized",
        )
