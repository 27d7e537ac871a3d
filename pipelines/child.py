"""Runs a stage in a child process: a crash, an abort or a kill of what it calls is a failed step, never a dead run.

The parent writes `job.json` and starts this module; the child writes JSON lines into a pipe (progress, then the
result) and everything that it or a library prints into the log.
"""

from __future__ import annotations

import ctypes
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
from pathlib import Path
from threading import Event
from typing import IO, Any, get_type_hints

from pipelines.errors import InterruptedBuildError
from stages.stage import Job, Metrics, Progress, Stage, StageError

# The working directory must not come before trtforge's own packages: many a project has a `conf` of its own.
_START = "import sys; sys.path[:] = [p for p in sys.path if p]; from pipelines.child import main; main(sys.argv[1])"
DEBUG = "TRTFORGE_DEBUG"
"""A variable; where it is set, the child's traceback goes to its log."""

_GRACE_SECONDS = 0.5
_POLL_SECONDS = 0.05
_LOG_LINES = 3


@dataclass(frozen=True)
class Result:
    """What came back: metrics, the directory of the outputs and the log."""

    metrics: Metrics
    out: Path
    log: Path


@dataclass(frozen=True)
class Work:
    """What one child is asked to do, inside `directory`, which is its own."""

    name: str
    stage: Stage[Any]
    config: Any
    inputs: Mapping[str, Sequence[Path]]
    facts: Mapping[str, Any]
    directory: Path
    time_limit_s: float


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
        InterruptedBuildError: `stop` was set.
    """
    out = work.directory / "out"
    out.mkdir()
    job = work.directory / "job.json"
    job.write_text(json.dumps(_job(work, out)))
    log = log_of(work.directory)
    started = time.monotonic()
    with log.open("wb") as sink:
        process, pipe = _start(job, sink)
        with pipe:
            try:
                answer = _listen(process, pipe, progress, stop, started + work.time_limit_s)
            finally:
                _end(process)
    metrics = _judge(work, answer, process.returncode, time.monotonic() - started, log)
    for name, file in work.stage.outputs.items():
        if not (out / file).is_file():
            raise StageError(f"{work.name}: stage {work.stage.name} wrote no output {name} ({file})", "report this bug")
    return Result(metrics, out, log)


def _job(work: Work, out: Path) -> dict[str, Any]:
    return {
        "stage": work.stage.name,
        "config": asdict(work.config),
        "inputs": {name: [str(path) for path in paths] for name, paths in work.inputs.items()},
        "facts": dict(work.facts),
        "out": str(out),
        "parent": os.getpid(),
    }


def _start(job: Path, sink: IO[bytes]) -> tuple[subprocess.Popen[bytes], IO[bytes]]:
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _START, str(job)],
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            pass_fds=[writing],
            start_new_session=True,  # the terminal's Ctrl-C is for the parent, which ends the child in good order
            env={**os.environ, "TRTFORGE_PIPE": str(writing), "PYTHONUNBUFFERED": "1"},
        )
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    return process, os.fdopen(reading, "rb", buffering=0)


def _listen(
    process: subprocess.Popen[bytes], pipe: IO[bytes], progress: Progress, stop: Event, deadline: float
) -> dict[str, Any] | None:
    """Passes progress on until the child ends; returns its last word, or None if it said none."""
    answer: dict[str, Any] | None = None
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if stop.is_set():
                raise InterruptedBuildError
            if time.monotonic() > deadline:
                return {"late": True}
            if not selector.select(_POLL_SECONDS):
                if process.poll() is not None:  # a process that it started holds the pipe open
                    break
                continue
            chunk = os.read(pipe.fileno(), 1 << 16)
            if not chunk:
                break
            *lines, rest = (rest + chunk).split(b"\n")
            for message in map(json.loads, lines):
                if "phase" in message:
                    progress(message["phase"], message["fraction"])
                else:
                    answer = message
    while process.poll() is None and not stop.is_set() and time.monotonic() < deadline:
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


def _judge(work: Work, answer: dict[str, Any] | None, code: int, seconds: float, log: Path) -> Metrics:
    if answer is not None and "late" in answer:
        raise StageError(
            f"{work.name}: stopped after its time limit of {work.time_limit_s:g} s",
            f"allow it more: steps.{work.name.partition('[')[0]}.time_limit_s={2 * work.time_limit_s:g}",
        )
    if answer is not None and "error" in answer:
        raise StageError(f"{work.name}: {answer['error']}", answer["next_step"])
    if answer is not None and "metrics" in answer and code == 0:
        return dict(answer["metrics"])
    raise StageError(f"{work.name}: {_death(code)} after {seconds:.1f} s{_last_words(log)}", "read its whole log")


def _death(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code}"
    name = signal.Signals(-code).name
    why = " (out of memory?)" if code == -signal.SIGKILL else ""
    return f"its process was killed by {name}{why}"


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return f"; its log ends: {' | '.join(lines[-_LOG_LINES:])}" if lines else "; its log is empty"


def main(job_path: str) -> None:
    """The child: runs the stage that the job names, and says how it went."""
    job = json.loads(Path(job_path).read_text())
    _die_with(job["parent"])
    from stages import STAGES

    stage = STAGES[job["stage"]]
    with os.fdopen(int(os.environ.pop("TRTFORGE_PIPE")), "w") as pipe:

        def say(message: Mapping[str, Any]) -> None:
            pipe.write(json.dumps(message) + "\n")
            pipe.flush()

        try:
            metrics = stage.run(
                Job(
                    config=restored(stage.config, job["config"]),
                    inputs={name: [Path(path) for path in paths] for name, paths in job["inputs"].items()},
                    facts=job["facts"],
                    out=Path(job["out"]),
                    progress=lambda phase, fraction: say({"phase": phase, "fraction": fraction}),
                )
            )
        except StageError as error:
            say({"error": error.what, "next_step": error.next_step})
            if DEBUG in os.environ:
                traceback.print_exc()
            return
        say({"metrics": metrics})


def restored(schema: type[Any], values: Mapping[str, Any]) -> Any:
    """The dataclass that `asdict` made `values` of."""
    types = get_type_hints(schema)
    return schema(
        **{name: restored(types[name], value) if is_dataclass(types[name]) else value for name, value in values.items()}
    )


def _die_with(parent: int) -> None:
    """Has the kernel kill this process when its parent dies, however that comes about."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)
