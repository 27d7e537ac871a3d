"""Runs a stage in a child process: a crash, an abort or a kill of what it calls is a failed step, never a dead run.

The parent writes `job.json` and starts this module; the child writes JSON lines into a pipe (progress, then the
result) and everything that it or a library prints into the log.
"""

from __future__ import annotations

import errno
import json
import os
import selectors
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, is_dataclass
from functools import partial
from pathlib import Path
from threading import Event
from typing import IO, Any, get_type_hints

from pipelines import repeatable
from pipelines.errors import InterruptedBuildError
from pipelines.orphans import end_with
from stages.stage import Job, Memory, Metrics, Progress, Stage, StageError

# The working directory must not come before trtforge's own packages: many a project has a `conf` of its own.
_START = "import sys; sys.path[:] = [p for p in sys.path if p]; from pipelines.child import main; main(sys.argv[1])"
DEBUG = "TRTFORGE_DEBUG"
"""A variable; where it is set, the child's traceback goes to its log."""

_GRACE_SECONDS = 0.5
_POLL_SECONDS = 0.05
_LOG_LINES = 3
_FULL = (errno.ENOSPC, errno.EDQUOT)
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Limits:
    """When a child is ended that has not ended by itself.

    Attributes:
        time_s: After so long.
        stall_s: After so long without a word of progress; None: never.
        memory_bytes: Once it holds more resident memory, as seen every 50 ms; None: never.
    """

    time_s: float = 3600.0
    stall_s: float | None = None
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Usage:
    """What a child took.

    Attributes:
        peak_bytes: The most resident memory that it held: mapped files count.
        cpu_s: Its processor seconds, and those of what it started.
    """

    peak_bytes: int
    cpu_s: float


@dataclass(frozen=True)
class Result:
    """What came back: metrics, the directory of the outputs, the log, and what it took."""

    metrics: Metrics
    out: Path
    log: Path
    usage: Usage


@dataclass(frozen=True)
class Work:
    """What one child is asked to do, inside `directory`, which is its own; on the GPU of that UUID, if it is given."""

    name: str
    stage: Stage[Any]
    config: Any
    inputs: Mapping[str, Sequence[Path]]
    facts: Mapping[str, Any]
    directory: Path
    limits: Limits = Limits()
    memory: Memory | None = None
    gpu: str | None = None


class _LimitReachedError(Exception):
    """A child has to be ended: `what` it did, and the override that would allow it more."""

    def __init__(self, what: str, override: str) -> None:
        super().__init__(what)
        self.what = what
        self.override = override


@dataclass
class _Watch:
    """What the parent sees of a running child.

    Attributes:
        pid: The child.
        limits: What it is held to.
        started: When it began, on the monotonic clock.
        heard: When it last said something.
        peak_bytes: The most memory that it was seen with.
    """

    pid: int
    limits: Limits
    started: float
    heard: float
    peak_bytes: int = 0

    def look(self) -> None:
        """Raises `_LimitReachedError` where the child is over a limit."""
        now, limits = time.monotonic(), self.limits
        held = _resident_bytes(self.pid)
        self.peak_bytes = max(self.peak_bytes, held)
        if now > self.started + limits.time_s:
            raise _LimitReachedError(f"its time limit of {limits.time_s:g} s", f"time_limit_s={2 * limits.time_s:g}")
        if limits.stall_s is not None and now > self.heard + limits.stall_s:
            raise _LimitReachedError(f"{limits.stall_s:g} s without progress", f"stall_limit_s={2 * limits.stall_s:g}")
        if limits.memory_bytes is not None and held > limits.memory_bytes:
            allowed = f"{limits.memory_bytes / 2**20:,.0f} MiB"
            # `held` is beyond the limit, and the step wanted more yet.
            more = f"memory_limit={2 * held // 2**20 + 1}MiB"
            raise _LimitReachedError(f"it held {held / 2**20:,.0f} MiB of memory; its limit is {allowed}", more)


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):  # it has just ended
        return 0


def log_of(directory: Path) -> Path:
    """Where the log of the child that works in `directory` is."""
    return directory / "log.txt"


def run(work: Work, progress: Progress, stop: Event) -> Result:
    """Runs a stage in a process of its own.

    Args:
        work: What to run.
        progress: Called with what the stage reports.
        stop: Set it, and the child is ended within half a second.

    Raises:
        StageError: The stage failed, crashed, ran out of time, or did not write its outputs.
        OSError: The disk is full.
        InterruptedBuildError: `stop` was set.
    """
    out = work.directory / "out"
    out.mkdir()
    job = work.directory / "job.json"
    job.write_text(json.dumps(_job(work, out)))
    log = log_of(work.directory)
    started = time.monotonic()
    with log.open("wb") as sink:
        process, pipe = _start(work, job, sink)
        watch = _Watch(process.pid, work.limits, started, started)
        with pipe:
            try:
                answer = _listen(process, pipe, progress, stop, watch)
            except _LimitReachedError as over:
                step = work.name.partition("[")[0]
                raise StageError(
                    f"{work.name}: stopped after {over.what}", f"allow it more: steps.{step}.{over.override}"
                ) from None
            finally:
                _end(process)
    metrics = _judge(work, answer, process.returncode, watch, log)
    for name, file in work.stage.outputs.items():
        if not (out / file).is_file():
            raise StageError(f"{work.name}: stage {work.stage.name} wrote no output {name} ({file})", "report this bug")
    return Result(metrics, out, log, Usage(max(watch.peak_bytes, answer["peak_bytes"]), answer["cpu_s"]))


def _job(work: Work, out: Path) -> dict[str, Any]:
    return {
        "stage": work.stage.name,
        "config": asdict(work.config),
        "inputs": {name: [str(path) for path in paths] for name, paths in work.inputs.items()},
        "facts": dict(work.facts),
        "out": str(out),
        "memory": _memory(work.memory),
        "parent": os.getpid(),
    }


def _memory(memory: Memory | None) -> dict[str, Any] | None:
    return None if memory is None else {"known": [*map(str, memory.known)], "learnt": str(memory.learnt)}


def _start(work: Work, job: Path, sink: IO[bytes]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    reading, writing = os.pipe()
    command = [sys.executable, "-c", _START, str(job)]
    environment = {**os.environ, "TRTFORGE_PIPE": str(writing), "PYTHONUNBUFFERED": "1"}
    if work.gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = work.gpu
    if work.stage.by_address:
        command, environment = repeatable.command(command), repeatable.environment(environment)
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            pass_fds=[writing],
            start_new_session=True,  # the terminal's Ctrl-C is for the parent, which ends the child in good order
            env=environment,
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return process, os.fdopen(reading, "rb", buffering=0)


def _listen(
    process: subprocess.Popen[bytes], pipe: IO[bytes], progress: Progress, stop: Event, watch: _Watch
) -> dict[str, Any]:
    """Passes progress on until the child ends; returns its last word, empty if it said none.

    Raises:
        InterruptedBuildError: `stop` was set.
        _LimitReachedError: The child is over a limit.
    """
    answer: dict[str, Any] = {}
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if stop.is_set():
                raise InterruptedBuildError
            watch.look()
            # Asked before the look: what it said before it ended is then in the pipe. Asked after, its last word would
            # be lost where it came in between, which is long while this thread waits for the interpreter's lock.
            ended = process.poll() is not None
            if not selector.select(0.0 if ended else _POLL_SECONDS):
                if ended:  # a process that it started holds the pipe open
                    break
                continue
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                break
            watch.heard = time.monotonic()
            *lines, rest = (rest + chunk).split(b"\n")
            for message in map(json.loads, lines):
                if "phase" in message:
                    progress(message["phase"], message["fraction"])
                else:
                    answer = message
    while process.poll() is None and not stop.is_set():
        watch.look()
        time.sleep(_POLL_SECONDS / 10)
    return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)  # what it started and left behind


def _judge(work: Work, answer: Mapping[str, Any], code: int, watch: _Watch, log: Path) -> Metrics:
    if "errno" in answer:
        raise OSError(answer["errno"], os.strerror(answer["errno"]), str(work.directory))
    if "error" in answer:
        raise StageError(f"{work.name}: {answer['error']}", answer["next_step"])
    if "metrics" in answer and code == 0:
        return dict(answer["metrics"])
    seconds, death = time.monotonic() - watch.started, _death(code, watch.peak_bytes)
    raise StageError(f"{work.name}: {death} after {seconds:.1f} s{_last_words(log)}", "read its whole log")


def _death(code: int, peak_bytes: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name
    why = f" (out of memory? It held {peak_bytes / 2**20:,.0f} MiB)" if code == -signal.SIGKILL else ""
    return f"its process was killed by {name}{why}"


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"; its log ends: {' | '.join(lines[-_LOG_LINES:])}" if lines else "; its log is empty"


def main(job_path: str) -> None:
    """The child: runs the stage that the job names, and says how it went."""
    job = json.loads(Path(job_path).read_text())
    end_with(job["parent"], signal.SIGKILL)
    from stages import STAGES

    stage, memory = STAGES[job["stage"]], job["memory"]
    with os.fdopen(int(os.environ.pop("TRTFORGE_PIPE")), "w") as pipe:

        def say(message: Mapping[str, Any]) -> None:
            pipe.write(json.dumps(message) + "\n")
            pipe.flush()

        given = Job(
            config=restored(stage.config, job["config"]),
            inputs={name: [Path(path) for path in paths] for name, paths in job["inputs"].items()},
            facts=job["facts"],
            out=Path(job["out"]),
            progress=lambda phase, fraction: say({"phase": phase, "fraction": fraction}),
            memory=memory and Memory([Path(path) for path in memory["known"]], Path(memory["learnt"])),
        )
        run = partial(stage.run, given)
        try:
            metrics = repeatable.in_own_thread(run) if stage.by_address else run()
        except StageError as error:
            say({"error": error.what, "next_step": error.next_step})
            if DEBUG in os.environ:
                traceback.print_exc()
            return
        except OSError as error:
            if error.errno not in _FULL:
                raise
            say({"errno": error.errno})  # the log is on the same disk: no traceback would be in it
            return
        say({"metrics": metrics, **_own_usage()})


def _own_usage() -> dict[str, Any]:
    """As `Usage`. Of this process: `ru_maxrss` would be the parent's where that was larger when it forked."""
    status = Path("/proc/self/status").read_text()
    peak_kib = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))
    return {"peak_bytes": int(peak_kib) * 1024, "cpu_s": round(sum(os.times()[:4]), 3)}


def restored(schema: type[Any], values: Mapping[str, Any]) -> Any:
    """The dataclass that `asdict` made `values` of."""
    types = get_type_hints(schema)
    return schema(
        **{name: restored(types[name], value) if is_dataclass(types[name]) else value for name, value in values.items()}
    )
