"""The machine that a time was measured on, as far as the time depends on it."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from stages.gpus import Gpu
from stages.stage import JSON

_CPUINFO = Path("/proc/cpuinfo")
_FIRST_BYTES = 4096
"""Of `/proc/cpuinfo`, which the kernel makes as it is read: all of 128 processors takes milliseconds."""


def described(wanted: str, able: Sequence[Gpu]) -> dict[str, JSON]:
    """The fact `machine`: the CPU's model, how many of its cores this process may use, and the GPU's name.

    Args:
        wanted: The target's GPU.
        able: The GPUs here that can execute the target's plans: if none is the target's own, the first is taken.
    """
    names = [gpu.name for gpu in able]
    return {"cpu": cpu(), "cores": cores(), "gpu": wanted if wanted in names else next(iter(names), None)}


def platform_name() -> str:
    """The fact `platform`: the operating system and CPU that plans built here are for, such as `linux_x86_64`."""
    return f"{sys.platform}_{platform.machine()}"


@cache
def cpu() -> str:
    """The CPU's model as the kernel calls it; its architecture where the kernel gives no name."""
    try:
        with _CPUINFO.open("rb") as file:
            text = file.read(_FIRST_BYTES).decode(errors="replace")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names and names[0] else platform.machine()


def cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0))
