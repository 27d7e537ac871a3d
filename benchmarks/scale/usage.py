"""What the processes of a measurement take, read from /proc twice a second; a variable that they inherit marks them."""

from __future__ import annotations

import os
import threading
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

MARK = "TRTFORGE_SCALE"
"""The variable; its value is `<measurement>/<role>`, the role being that of the process that was started with it."""

SECONDS = 0.5
_TICK = os.sysconf("SC_CLK_TCK")
_RUN = b"PREFECT__FLOW_RUN_ID="
_CHILD = b"pipelines.child"

Kind = Literal["server", "database", "worker", "run", "stage"]

_SETTLED_SECONDS = 0.3
"""A process has its parent's variables until it is another program."""


@dataclass
class Process:
    """A process of the measurement.

    Attributes:
        pid: Its id.
        kind: What it is.
        role: What it was started for: `server`, `database`, or a worker's queue.
        job: What a stage's child was told to do.
        own_s: Its processor seconds.
        children_s: Those of the children that it has waited for.
    """

    pid: int
    kind: Kind
    role: str
    job: Path | None = None
    own_s: float = 0.0
    children_s: float = 0.0


@dataclass
class Usage:
    """Watches the processes of a measurement while the block runs.

    Attributes:
        name: The measurement's.
        database: PostgreSQL's first process, whose children overwrite their variables.
        found: All processes so far, by id and when they were started.
        peak_bytes: The most resident memory of all processes of a kind together; shared pages count for each.
    """

    name: str
    database: int | None = None
    found: dict[tuple[int, str], Process] = field(default_factory=dict)
    peak_bytes: dict[Kind, int] = field(default_factory=lambda: defaultdict(int))
    _others: set[tuple[int, str]] = field(default_factory=set)
    _living: list[Process] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Usage:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def living(self, kind: Kind) -> list[Process]:
        """The processes of a kind that lived a moment ago."""
        return [process for process in self._living if process.kind == kind]

    def look(self) -> None:
        """Reads /proc once."""
        living, sizes = [], defaultdict(int)
        for name in os.listdir("/proc"):  # noqa: PTH208 - names alone, hundreds of times a minute
            if name.isdecimal() and (process := self._process(int(name))) is not None:
                living.append(process)
                sizes[process.kind] += _resident_bytes(process.pid)
        self._living = living
        for kind, held in sizes.items():
            self.peak_bytes[kind] = max(self.peak_bytes[kind], held)

    def seconds(self) -> dict[str, float]:
        """Processor seconds so far: of `server`, `database`, `worker` and `run` (their own), and of `stage`.

        The last half second of each process is missing in it, and a stage whose run was killed.
        """
        found: dict[str, float] = defaultdict(float)
        for process in self.found.values():
            if process.kind != "stage":
                found[process.kind] += process.own_s
            if process.kind == "run":
                found["stage"] += process.children_s
        return dict(found)

    def _watch(self) -> None:
        while not self._over.wait(SECONDS):
            self.look()

    def _process(self, pid: int) -> Process | None:
        try:
            stat = _stat(pid)
            if stat[0] == b"Z":
                return None
            this = (pid, stat[19].decode())  # with when it was started, as ids are used again
            if this in self._others:
                return None
            process = self.found.get(this)
            if process is None:
                if time.clock_gettime(time.CLOCK_BOOTTIME) - int(stat[19]) / _TICK < _SETTLED_SECONDS:
                    return None
                process = self._known(pid, int(stat[1]))
                if process is None:
                    self._others.add(this)
                    return None
                self.found[this] = process
        except (OSError, IndexError):  # it has just ended
            return None
        process.own_s, process.children_s = _seconds(stat)
        return process

    def _known(self, pid: int, parent: int) -> Process | None:
        if self.database in (pid, parent):
            return Process(pid, "database", "database")
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        mark = next((each for each in variables if each.startswith(f"{MARK}={self.name}/".encode())), None)
        command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if mark is None or len(command) < 3:
            return None
        role = mark.decode().rpartition("/")[2]
        if role == "server":
            return Process(pid, "server", role)
        if any(_CHILD in part for part in command):
            return Process(pid, "stage", role, Path(os.fsdecode(command[-2])))
        return Process(pid, "run" if any(each.startswith(_RUN) for each in variables) else "worker", role)


def own_and_children_s(pid: int) -> tuple[float, float]:
    """The processor seconds of a process, which has not been waited for, and of the children that it has waited for."""
    return _seconds(_stat(pid))


def _stat(pid: int) -> list[bytes]:
    """What follows the name, which may hold anything: the state is the first of it."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()


def _seconds(stat: Sequence[bytes]) -> tuple[float, float]:
    return (int(stat[11]) + int(stat[12])) / _TICK, (int(stat[13]) + int(stat[14])) / _TICK


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
