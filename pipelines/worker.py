"""`trtforge worker`: takes the runs of this machine's queues, one for each GPU, and those that any machine can do.

Each GPU has a Prefect worker process of its own, which takes one run at a time and sees no other GPU; one more takes
the queue `cpu`, and sees none. The workers' names say what stands behind them: host, queue, GPU and backend versions.
No Prefect here: the workers are processes of Prefect's own command line.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from conf.errors import ConfigError
from pipelines.deployments import CPU, GPU_QUEUES, POOL
from pipelines.errors import EngineError
from pipelines.prefect_server import OFFLINE
from stages import backends
from stages.gpus import Gpu, Gpus, architecture

STOP_SECONDS = 10.0
"""How long a worker may take to end its runs and itself; with nothing to end it takes half a second."""

_LOOK_SECONDS = 0.2


@dataclass(frozen=True)
class Place:
    """What one worker process serves.

    Attributes:
        queue: Of the work pool.
        gpu: The one that its runs see; None for the queue `cpu`.
        runs: How many at once.
    """

    queue: str
    gpu: Gpu | None = None
    runs: int = 1

    @property
    def environment(self) -> Mapping[str, str]:
        """What its runs get: a GPU by its UUID, which stays the same whatever order the driver lists them in."""
        return {"CUDA_VISIBLE_DEVICES": self.gpu.uuid if self.gpu else ""}

    def name(self, versions: Mapping[str, str]) -> str:
        """The worker's name on the server; two of one name would be one to it."""
        shown = [socket.gethostname(), self.queue]
        if self.gpu:
            # Prefect refuses these four in names.
            shown += [self.gpu.name.translate({ord(sign): "-" for sign in "/%&<>"}), self.gpu.uuid]
        return " ".join([*shown, *(f"{name}-{version}" for name, version in versions.items())])

    def document(self) -> dict[str, Any]:
        """What is reported at the start."""
        gpu = self.gpu
        told = {"name": gpu.name, "uuid": gpu.uuid, "compute_capability": gpu.compute_capability} if gpu else None
        return {"queue": self.queue, "gpu": told, "runs": self.runs}


@dataclass
class Workers:
    """The worker processes of this machine."""

    places: Sequence[Place]
    versions: Mapping[str, str]
    pool: str = POOL
    run_once: bool = False
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _stopping: bool = False

    def run(self) -> None:
        """Starts them, and comes back when they have ended: on Ctrl-C, or each after one look with `run_once`.

        Raises:
            EngineError: One ended by itself; the others are stopped, as whoever watches this process starts it anew.
        """
        asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._stop) for number in asked}
        try:
            for place in self.places:
                self._processes.append(self._start(place))
            ended = self._first_to_end()
        finally:
            self._end()
            for number, handler in before.items():
                signal.signal(number, handler)
        if ended is None:
            return
        queue = self.places[self._processes.index(ended)].queue
        raise EngineError(
            f"the worker of the queue {queue} ended with {ended.returncode}",
            "its own lines above say why; then start `trtforge worker` again",
        )

    def _first_to_end(self) -> subprocess.Popen[bytes] | None:
        """Waits for one that ends and should not; None when asked to stop, or when all have ended as they should."""
        while not self._stopping:
            codes = [process.poll() for process in self._processes]
            for process, code in zip(self._processes, codes, strict=True):
                if code is not None and (code != 0 or not self.run_once):
                    return process
            if None not in codes:
                return None
            time.sleep(_LOOK_SECONDS)
        return None

    def _start(self, place: Place) -> subprocess.Popen[bytes]:
        # Their own session: Ctrl-C in the terminal reaches them once, through this process; twice would mean by force.
        return subprocess.Popen(
            self._command(place),
            env={**os.environ, **_talkative(), **place.environment},
            stdout=sys.stderr,
            start_new_session=True,
            preexec_fn=partial(_die_with, os.getpid()),  # there are no threads yet
        )

    def _command(self, place: Place) -> list[str]:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", self.pool]
        command += ["--work-queue", place.queue, "--limit", str(place.runs), "--name", place.name(self.versions)]
        return [*command, "--run-once"] if self.run_once else command

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # The loop ends them: a signal may come while one is being started, and is in no list yet.
        self._stopping = True

    def _end(self) -> None:
        for process in self._processes:
            process.terminate()  # nothing, where it has ended
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def places(here: Gpus, cpu_runs: int = 1) -> list[Place]:
    """What this machine can serve: each of its GPUs, and the queue `cpu`.

    Args:
        here: Its GPUs.
        cpu_runs: Runs of the queue `cpu` at once; each uses all cores, as far as its steps can.

    Raises:
        ConfigError: There is no queue for a GPU here.
    """
    found = [Place(architecture(gpu.compute_capability), gpu) for gpu in here.found]
    for place in found:
        if place.queue not in GPU_QUEUES:
            raise ConfigError(
                f"there is no queue for {Gpus(here.found)}: TensorRT does not build for {place.queue}",
                "leave it out with CUDA_VISIBLE_DEVICES=GPU-…",
            )
    return [*found, *([Place(CPU, runs=cpu_runs)] if cpu_runs else [])]


def installed() -> dict[str, str]:
    """Backend, in short -> its installed version."""
    found = {name: backends.installed_version(name) for name in backends.BACKENDS}
    return {backends.find(name).short: version for name, version in found.items() if version}


def report(workers: Workers, here: Gpus) -> list[str]:
    """What stands ready, in lines for stderr."""
    versions = ", ".join(f"{name} {version}" for name, version in workers.versions.items()) or "no backend"
    lines = [f"worker of pool {workers.pool} on {socket.gethostname()}, {Path.cwd()}: {versions}"]
    for place in workers.places:
        shown = f"{place.gpu.name} ({place.gpu.compute_capability}), {place.gpu.uuid}" if place.gpu else "any machine's"
        lines.append(f"queue {place.queue}: {shown}, {place.runs} at once")
    if not here.found:
        lines.append(f"no queue of a GPU: {here.reason}")
    return lines


def _talkative() -> dict[str, str]:
    """A service's log is all that it says: Prefect's lines are shown, unless the user has chosen."""
    level = "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"
    return {level: "INFO"} if os.environ.get(level) == OFFLINE[level] else {}


def _die_with(parent: int) -> None:
    """Has the kernel end this process when its parent dies: a worker that nobody watches takes runs unseen."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGTERM)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
