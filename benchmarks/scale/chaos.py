"""Kills workers, the processes of runs, and builders at random, and starts the workers again."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from benchmarks.scale.usage import Process, Usage

WAYS = {"worker": 2, "run": 3, "builder": 3, "worker and run": 2}
"""What is killed -> how often, of all kills."""

_AWAY_SECONDS = (0.0, 10.0)
"""How long a killed worker stays away."""


@dataclass
class Workers:
    """Worker processes, one a queue; each that is not there is started again once it has been away for a while."""

    start: Callable[[str], subprocess.Popen[bytes]]
    queues: tuple[str, ...]
    starts: int = 0
    _running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _back: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tend(self) -> None:
        """Starts those that are due."""
        with self._lock:
            for queue in self.queues:
                process = self._running.get(queue)
                if (process is None or process.poll() is not None) and time.monotonic() >= self._back.get(queue, 0.0):
                    self._running[queue] = self.start(queue)
                    self.starts += 1

    def kill(self, queue: str, away_s: float) -> bool:
        """Kills the worker of a queue, which stays away for so long; False where there is none."""
        with self._lock:
            process = self._running.get(queue)
            if process is None or process.poll() is not None:
                return False
            process.kill()
            process.wait()
            self._back[queue] = time.monotonic() + away_s
            return True

    def end(self) -> None:
        """Ends them as a service manager does."""
        with self._lock:
            for process in self._running.values():
                process.terminate()
            for process in self._running.values():
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            self._running.clear()


@dataclass
class Chaos:
    """Kills something every `mean_s` on average, from `begin` to `end`.

    Attributes:
        seed: Of what is killed, and when; which process that is depends on what runs.
        mean_s: Of an exponential distribution.
        workers: The workers.
        usage: Knows the other processes.
        killed: How often what was.
    """

    seed: int
    mean_s: float
    workers: Workers
    usage: Usage
    killed: Counter[str] = field(default_factory=Counter)
    _over: threading.Event = field(default_factory=threading.Event)

    def begin(self) -> None:
        """Begins to kill."""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Kills no more."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        chance = random.Random(self.seed)  # noqa: S311 - no secret
        while not self._over.wait(chance.expovariate(1 / self.mean_s)):
            way = chance.choices(list(WAYS), list(WAYS.values()))[0]
            queue, away_s, which = chance.choice(self.workers.queues), chance.uniform(*_AWAY_SECONDS), chance.random()
            while not self._over.is_set() and not self._kill(way, queue, away_s, which):
                self._over.wait(0.05)  # there is nothing of the kind at the moment
            self.killed[way] += not self._over.is_set()

    def _kill(self, way: str, queue: str, away_s: float, which: float) -> bool:
        if way == "worker":
            return self.workers.kill(queue, away_s)
        kind = "stage" if way == "builder" else "run"
        self.usage.look()
        victims = [each for each in self.usage.living(kind) if kind == "run" or _builds(each)]
        if way == "worker and run":
            victims = [each for each in victims if each.role == queue]
            return bool(victims) and self.workers.kill(queue, away_s) and all(map(_end, victims))
        return bool(victims) and _end(victims[int(which * len(victims))])


def _builds(process: Process) -> bool:
    try:
        return process.job is not None and json.loads(process.job.read_text())["stage"] == "build"
    except (OSError, ValueError):
        return False  # it has just ended


def _end(process: Process) -> bool:
    try:
        os.kill(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def sweep(usage: Usage, roles: Mapping[str, object]) -> int:
    """Kills what is left of a measurement: runs and stages whose workers are gone. Returns how many there were."""
    usage.look()
    left = [each for kind in ("worker", "run", "stage") for each in usage.living(kind) if each.role in roles]
    for process in left:
        with suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    return len(left)
