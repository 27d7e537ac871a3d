"""TensorRT's calibration cache, for users of TensorRT 8 to 10: a text file with the scale of each tensor.

    TRT-101303-EntropyCalibration2
    images: 3c010a14

The first line names the version (8601: 8.6.1; 101303: 10.13.3) and the calibrator. Each other line is a tensor and its
scale, amax / 127, as a big-endian float32 in hex.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Mapping
from math import isfinite

from stages.stage import StageError
from stages.thresholds import LEVELS

HEADER = re.compile(r"TRT-\d+-\w+")
LINE = re.compile(r"(?P<name>.+): *(?P<scale>[0-9a-fA-F]{1,8})")


def is_cache(text: str) -> bool:
    """Whether `text` begins as a calibration cache does."""
    return text.startswith("TRT-")


def parse(text: str) -> dict[str, float]:
    """The range of each tensor of a cache: 127 times its scale.

    Raises:
        ValueError: It is no cache; says which line and what was expected.
    """
    first, *lines = text.splitlines() or [""]
    if not HEADER.fullmatch(first.strip()):
        raise ValueError(f"line 1 is {first!r}; allowed: TRT-VERSION-CALIBRATOR, such as TRT-8601-EntropyCalibration2")
    ranges: dict[str, float] = {}
    for number, line in enumerate(lines, 2):
        if not line.strip():
            continue
        found = LINE.fullmatch(line.strip())
        if found is None:
            raise ValueError(f"line {number} is {line!r}; allowed: TENSOR: the scale as 8 hex digits")
        (scale,) = struct.unpack(">f", bytes.fromhex(found["scale"].zfill(8)))
        if not isfinite(scale) or scale < 0:
            raise ValueError(f"line {number}: the scale of {found['name']!r} is {scale}; allowed: finite, 0 or more")
        if found["name"] in ranges:
            raise ValueError(f"line {number}: {found['name']!r} has a scale already")
        ranges[found["name"]] = scale * LEVELS
    return ranges


def text_of(ranges: Mapping[str, float], version: int) -> str:
    """The cache that holds `ranges`; a tensor of zeros gets the scale 1 / 127, as where it is quantized.

    Args:
        ranges: The amax of each tensor.
        version: TensorRT's, as a number: 8601, 101303.

    Raises:
        StageError: A name has a line break in it, which the format cannot hold.
    """
    broken = [name for name in ranges if len(name.splitlines()) > 1]
    if broken:
        raise StageError(
            f"a calibration cache has a line for each tensor, and the name {broken[0]!r} has a line break",
            "rename the tensor: steps.surgery.config.then=[{pass: rename, tensors: {…}}]",
        )
    lines = [f"{name}: {struct.pack('>f', (amax or 1.0) / LEVELS).hex()}" for name, amax in sorted(ranges.items())]
    return "\n".join([f"TRT-{version}-EntropyCalibration2", *lines]) + "\n"
