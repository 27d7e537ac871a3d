"""The artifact of `calibrate`: one line of JSON, then the bins of each tensor that hold anything, and how many.

    {"format": "trtforge histograms 2", "inputs", "samples", "batches",
     "tensors": [{"name", "low", "high", "bins", "width"}, …]}
    for each tensor, in that order: its bins as uint16, their counts as unsigned integers of `width` bytes

Little endian, tensors by name, `width` the smallest of 1, 2, 4 and 8 that holds the largest count: equal data give
equal bytes. A tensor takes 3 to 10 bytes for each bin in use, as a rule 8 to 20 kB (all 65,536: 640 KiB).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from math import inf
from pathlib import Path
from typing import Any, BinaryIO

from stages.histograms import BINS, Histogram
from stages.stage import StageError

FORMAT = "trtforge histograms 2"
WIDTHS = (1, 2, 4, 8)


@dataclass
class Observed:
    """What a pass over the batches saw.

    Attributes:
        histograms: By tensor.
        samples: How many samples ran.
        batches: In how many runs.
        inputs: What ran, as `stages.data.reading.Batches.kind` has it.
    """

    histograms: dict[str, Histogram]
    samples: int = 0
    batches: int = 0
    inputs: str = "arrays"


def write(observed: Observed, path: Path) -> None:
    """Writes `observed` to `path`."""
    blocks = [(name, histogram, _block(histogram)) for name, histogram in sorted(observed.histograms.items())]
    tensors = [
        {"name": name, **_limits(histogram), "bins": len(block) // (2 + width), "width": width}
        for name, histogram, (width, block) in blocks
    ]
    seen = {"inputs": observed.inputs, "samples": observed.samples, "batches": observed.batches}
    header = {"format": FORMAT, **seen, "tensors": tensors}
    with path.open("wb") as file:
        file.write(json.dumps(header, allow_nan=False).encode() + b"\n")
        for _, _, (_, block) in blocks:
            file.write(block)


def read(path: Path) -> Observed:
    """What `write` wrote.

    Raises:
        StageError: It is another file, or damaged.
    """
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline())
            if header["format"] != FORMAT:
                raise ValueError(f"its format is {header['format']!r}, not {FORMAT!r}")
            histograms = {str(each["name"]): _histogram(each, file) for each in header["tensors"]}
            if file.read(1):
                raise ValueError("it goes on after the last tensor")
            return Observed(histograms, int(header["samples"]), int(header["batches"]), str(header["inputs"]))
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise StageError(f"{path}: no histograms: {error!r}", "give what the stage calibrate wrote") from error


def digest(histogram: Histogram) -> str:
    """sha256 of a histogram, 64 hex digits: equal for equal contents, in whatever order they were counted."""
    width, block = _block(histogram)
    return sha256(json.dumps([_limits(histogram), width]).encode() + block).hexdigest()


def _limits(histogram: Histogram) -> dict[str, float | None]:
    """JSON has no infinity, and an empty histogram no limits."""
    return {
        "low": None if histogram.is_empty else histogram.low,
        "high": None if histogram.is_empty else histogram.high,
    }


def _block(histogram: Histogram) -> tuple[int, bytes]:
    """The width of the counts, and bins and counts as they stand in the file."""
    bins, counts = histogram.sparse()
    most = int(counts.max(initial=0))
    width = next(width for width in WIDTHS if most < 1 << 8 * width)
    return width, bins.astype("<u2").tobytes() + counts.astype(f"<u{width}").tobytes()


def _histogram(entry: Any, file: BinaryIO) -> Histogram:
    import numpy as np

    number, width = int(entry["bins"]), int(entry["width"])
    if not 0 <= number <= BINS or width not in WIDTHS:
        raise ValueError(f"{entry['name']!r} has {number} bins of {width} bytes")
    block = BytesIO(file.read(number * (2 + width)))
    bins = np.frombuffer(block.read(2 * number), "<u2").astype(np.int64)
    counts = np.frombuffer(block.read(), f"<u{width}").astype(np.int64)
    if len(bins) != number or len(counts) != number or (np.diff(bins) <= 0).any() or (counts <= 0).any():
        raise ValueError(f"the bins of {entry['name']!r} are cut short or damaged")
    low, high = (entry["low"], entry["high"]) if number else (inf, -inf)
    return Histogram.from_sparse(bins, counts, float(low), float(high))
