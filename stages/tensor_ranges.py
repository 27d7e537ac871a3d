"""The range of each tensor, in the files that hold it: `ranges.json`, which people edit, and a TensorRT cache.

    {"algorithm": "mse", …, "tensors": {"images": {"amax": 0.98, "max": 1.0, "algorithm": "mse", "samples": 256,
                                                   "histogram": "5f0c…"}}}

Of a tensor's entry only `amax` must be given: the magnitude that INT8's largest code stands for.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from stages import calibration_cache
from stages.stage import StageError
from stages.wording import listed


@dataclass(frozen=True)
class TensorRange:
    """What is known about the range of one tensor.

    Attributes:
        amax: The magnitude that INT8's largest code stands for; 0 for a tensor of zeros.
        max: The largest magnitude seen; None where nobody looked.
        algorithm: What chose `amax`; `given` where the user did.
        samples: How many samples were seen.
        histogram: sha256 of what was seen, 64 hex digits.
    """

    amax: float
    max: float | None = None
    algorithm: str = "given"
    samples: int | None = None
    histogram: str | None = None


def read(path: Path) -> dict[str, TensorRange]:
    """The ranges in a `ranges.json` or a TensorRT calibration cache, recognized by its content.

    Raises:
        StageError: It is neither, or a range is no magnitude.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if calibration_cache.is_cache(text):
            return {name: TensorRange(amax) for name, amax in calibration_cache.parse(text).items()}
        return {name: _entry(name, entry) for name, entry in json.loads(text)["tensors"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(
            f"{path}: no ranges: {error if isinstance(error, ValueError) else repr(error)}",
            "give a ranges.json as the stage ranges writes it, or a TensorRT calibration cache",
        ) from error


def _entry(name: str, entry: Mapping[str, Any]) -> TensorRange:
    unknown = sorted(entry.keys() - TensorRange.__dataclass_fields__.keys())
    if unknown:
        raise ValueError(f"{name!r} has {', '.join(unknown)}; allowed: {', '.join(TensorRange.__dataclass_fields__)}")
    magnitudes = {"amax": entry["amax"], **({"max": entry["max"]} if entry.get("max") is not None else {})}
    for key, value in magnitudes.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not isfinite(value) or value < 0:
            raise ValueError(f"{name!r} has {key} {value!r}; allowed: a finite number, 0 or more")
    return TensorRange(**entry)


def require_match(given: Collection[str], wanted: Collection[str], known: Collection[str], next_step: str) -> None:
    """Holds the tensors that have a range to those of the graph.

    Args:
        given: The tensors with a range.
        wanted: Those that carry Q/DQ: each needs one.
        known: All tensors of the graph.
        next_step: What to do about it.

    Raises:
        StageError: One is missing, or of another graph; names them.
    """
    missing = [name for name in wanted if name not in given]
    foreign = sorted(set(given) - set(known))
    if missing or foreign:
        found = (_some("no range for", missing), _some("no tensor for the range of", foreign))
        raise StageError(f"the ranges are of another model: {'; '.join(filter(None, found))}", next_step)


def _some(what: str, names: list[str]) -> str:
    return f"{what} {listed(names, 10)}" if names else ""
