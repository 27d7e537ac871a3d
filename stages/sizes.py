"""Amounts of memory and disk as people write them: `2GiB`, `500 MB`, `1024`."""

from __future__ import annotations

import re
from collections.abc import Mapping

UNITS: Mapping[str, int] = {
    "": 1,
    "B": 1,
    **{f"{prefix}B": 1000**power for power, prefix in enumerate("kMGT", 1)},
    **{f"{prefix}iB": 1024**power for power, prefix in enumerate("KMGT", 1)},
}
"""Bytes of each unit."""

SIZES = "a number and one of " + ", ".join(filter(None, UNITS))
"""What is allowed, in words."""


def size_bytes(text: str | int) -> int | None:
    """The bytes that `text` says, whole ones; None where it says no amount."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([A-Za-z]*)", str(text).strip())
    if match is None or match[2] not in UNITS:
        return None
    return int(float(match[1]) * UNITS[match[2]])
