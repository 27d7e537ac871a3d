"""`trtforge worker`: takes the runs of this machine's queues, one for each GPU, and those that any machine can do.

Each GPU has a Prefect worker process of its own, which takes one run at a time and sees no other GPU; one more takes
the queue `cpu`, and sees none. The workers' names say what stands behind them: host, queue, GPU and backend versions.
No Prefect here: the workers are processes of Prefect's own command line.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from artifacts.errors import RemoteError, StoreError
from artifacts.remote import Remote
from conf.compose import compose
from conf.errors import ConfigError, suggest
from pipelines import announced
from pipelines.deployments import CPU, GPU_QUEUES, POOL
from pipelines.errors import EngineError
from pipelines.orphans import end_with
from pipelines.prefect_settings import OFFLINE
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
    """The worker processes of this machine.

    Attributes:
        places: What they serve.
        versions: Backend, in short -> its installed version.
        pool: The work pool.
        run_once: Whether each ends after one look for runs.
        remote: Where others find them that send steps to their queues; None where they take whole builds only.
    """

    places: Sequence[Place]
    versions: Mapping[str, str]
    pool: str = POOL
    run_once: bool = False
    remote: Remote | None = None
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _stopping: bool = False

    def run(self) -> None:
        """Starts them, and comes back when they have ended: on Ctrl-C, or each after one look with `run_once`.

        Raises:
            RemoteError: The remote cannot be used.
            EngineError: One ended by itself; the others are stopped, as whoever watches this process starts it anew.
        """
        asked = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._stop) for number in asked}
        try:
            for place in self.places:
                if self.remote:
                    announced.announce(self.remote, announced.own(place.name(self.versions), place.queue, place.gpu))
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
            # A worker that nobody watches takes runs unseen. There are no threads yet.
            preexec_fn=partial(end_with, os.getpid(), signal.SIGTERM),
        )

    def _command(self, place: Place) -> list[str]:
        command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", self.pool]
        command += ["--work-queue", place.queue, "--limit", str(place.runs), "--name", place.name(self.versions)]
        return [*command, "--run-once"] if self.run_once else command

    def _stop(self, number: int, frame: FrameType | None) -> None:
        # The loop ends them: a signal may come while one is being started, and is in no list yet.
        self._stopping = True

    def _end(self) -> None:
        if self.remote:
            with suppress(RemoteError):  # the server finds out, too: it hears no heartbeats any more
                for place in self.places:
                    announced.withdraw(self.remote, place.name(self.versions))
        for process in self._processes:
            process.terminate()  # nothing, where it has ended
        deadline = time.monotonic() + STOP_SECONDS
        for process in self._processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def places(here: Gpus, cpu_runs: int = 1, queues: Sequence[str] = ()) -> list[Place]:
    """What this machine can serve: each of its GPUs, and the queue `cpu`.

    Args:
        here: Its GPUs.
        queues: Further queues, whose runs see no GPU: TensorRT-RTX builds for a GPU that is elsewhere.
        cpu_runs: Runs of the queue `cpu` at once; each uses all cores, as far as its steps can.

    Raises:
        ConfigError: There is no queue for a GPU here, or none of such a name.
    """
    for queue in queues:
        if queue not in GPU_QUEUES:
            raise ConfigError(f"--queue {queue}: there is no such queue", suggest(queue, GPU_QUEUES))
    found = [Place(architecture(gpu.compute_capability), gpu) for gpu in here.found]
    for place in found:
        if place.queue not in GPU_QUEUES:
            raise ConfigError(
                f"there is no queue for {Gpus(here.found)}: TensorRT does not build for {place.queue}",
                "leave it out with CUDA_VISIBLE_DEVICES=GPU-…",
            )
    found += [Place(queue) for queue in dict.fromkeys(queues)]
    return [*found, *([Place(CPU, runs=cpu_runs)] if cpu_runs else [])]


def own_remote() -> Remote | None:
    """The remote of a run that is told no other; None where there is none.

    Raises:
        ConfigError: It names none that there could be.
    """
    config = compose([], []).store
    try:
        return Remote(config.remote, config.remote_limit_s) if config.remote else None
    except StoreError as error:
        raise ConfigError(error.what, error.next_step) from error


def installed() -> dict[str, str]:
    """Backend, in short -> its installed version."""
    found = {name: backends.installed_version(name) for name in backends.BACKENDS}
    return {backends.find(name).short: version for name, version in found.items() if version}


def report(workers: Workers, here: Gpus) -> list[str]:
    """What stands ready, in lines for stderr."""
    versions = ", ".join(f"{name} {version}" for name, version in workers.versions.items()) or "no backend"
    lines = [f"worker of pool {workers.pool} on {socket.gethostname()}, {Path.cwd()}: {versions}"]
    for place in workers.places:
        gpu = place.gpu
        shown = f"{gpu.name} ({gpu.compute_capability}), {gpu.uuid}" if gpu else "no GPU is needed"
        lines.append(f"queue {place.queue}: {shown}, {place.runs} at once")
    if not here.found:
        lines.append(f"no GPU: {here.reason}")
    lines.append(
        f"steps that others send come through {workers.remote.url}"
        if workers.remote
        else "steps that others send are not taken: TRTFORGE_REMOTE names no remote"
    )
    return lines


def _talkative() -> dict[str, str]:
    """A service's log is all that it says: Prefect's lines are shown, unless the user has chosen."""
    levels = {"PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO", "PREFECT_LOGGING_INTERNAL_LEVEL": "ERROR"}
    return {name: level for name, level in levels.items() if os.environ.get(name) == OFFLINE[name]}
