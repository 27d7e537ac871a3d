"""The shim that counts file operations and makes one of them go wrong, as Python sees it."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
from collections.abc import Mapping
from pathlib import Path

KILL = -1
SIZE = 4096


class _Control(ctypes.Structure):
    _fields_ = (
        ("count", ctypes.c_long),
        ("at", ctypes.c_long),
        ("action", ctypes.c_long),
        ("onwards", ctypes.c_long),
        ("what", ctypes.c_char * 240),
    )


def compiled(directory: Path) -> Path:
    """The shim, compiled into `directory`."""
    shim = directory / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", shim, source, "-ldl"], check=True)
    return shim


class Faults:
    """The faults of all processes that run with `environment`: what goes wrong below `root`, and when."""

    def __init__(self, shim: Path, root: Path, control: Path) -> None:
        if not control.exists():
            control.write_bytes(bytes(SIZE))
        self.environment: Mapping[str, str] = {
            "LD_PRELOAD": str(shim),
            "FAULT_ROOT": str(root),
            "FAULT_CONTROL": str(control),
        }
        with control.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), SIZE)
        self._control = _Control.from_buffer(self._memory)

    def arm(self, at: int, action: int, onwards: bool = False) -> None:
        """From now on operation number `at` goes wrong: `KILL`, or it fails with an errno; with `onwards` all after."""
        self._control.what = b""
        self._control.action, self._control.onwards, self._control.count = action, onwards, 0
        self._control.at = at

    def disarm(self) -> None:
        """Nothing goes wrong any more."""
        self._control.at = 0

    @property
    def count(self) -> int:
        """Operations since `arm`."""
        return int(self._control.count)

    @property
    def struck(self) -> str:
        """What went wrong: `rename objects/ab/cdef…`; empty if nothing did."""
        return bytes(self._control.what).decode(errors="replace")
