"""A server that can be killed, a project that is deployed on it, its workers, and the processes behind a run."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from http import HTTPStatus
from pathlib import Path
from typing import Any

from tests.pipelines.conftest import Forge
from tests.s3 import free_port

CRASHED_AFTER_SECONDS = 40
"""As short as heartbeats of 30 s allow."""

FINAL = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")


class Server:
    """A Prefect server of its own, on loopback, which forgets nothing when it is killed."""

    def __init__(self, home: Path) -> None:
        self._port, self._home = free_port(), home
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def api(self) -> str:
        return f"http://127.0.0.1:{self._port}/api"

    def start(self) -> None:
        """Starts it where it does not run, and waits until it answers."""
        if self._process is not None and self._process.poll() is None:
            return
        quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "DO_NOT_TRACK": "1"}
        # The server's own log tells why it does not start.
        with (self._home / "server.log").open("ab") as log:
            prefect = str(Path(sys.executable).with_name("prefect"))
            self._process = subprocess.Popen(
                [prefect, "server", "start", "--port", str(self._port), "--no-ui"],
                env={**os.environ, "PREFECT_HOME": str(self._home), **quiet},
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        eventually(self._answers, 120)

    def kill(self) -> None:
        """Kills it and all that it has started, as a power cut does."""
        if self._process is not None and self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def ask(self, path: str, **body: Any) -> Any:
        return self._request(path, json.dumps(body).encode())

    def get(self, path: str) -> Any:
        return self._request(path, None)

    def _request(self, path: str, body: bytes | None, limit_s: float = 30) -> Any:
        """Asks again while its database is locked, as Prefect's own client does: SQLite has one writer."""
        deadline = time.monotonic() + limit_s
        while True:
            request = urllib.request.Request(f"{self.api}/{path}", body, {"Content-Type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != HTTPStatus.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                    raise
            time.sleep(0.5)

    def run(self, deployment: str = "trtforge-build/build", **parameters: Any) -> str:
        """The id of a new run of a deployment."""
        found = self.get(f"deployments/name/{deployment}")
        body = {"state": {"type": "SCHEDULED"}, "parameters": parameters}
        made: str = self.ask(f"deployments/{found['id']}/create_flow_run", **body)["id"]
        return made

    def run_of(self, store: Path) -> str:
        """The id of the latest run whose overrides name `store`."""

        def found() -> list[str]:
            runs = self.ask("flow_runs/filter", sort="EXPECTED_START_TIME_DESC")
            return [run["id"] for run in runs if f"store.root={store}" in run["parameters"].get("overrides", [])]

        made: str = eventually(found, 60)[0]
        return made

    def ended(self, run: str, limit_s: float = 120) -> dict[str, Any]:
        """The run, once it has ended."""

        def found() -> dict[str, Any] | None:
            there: dict[str, Any] = self.get(f"flow_runs/{run}")
            return there if there["state_type"] in FINAL else None

        made: dict[str, Any] = eventually(found, limit_s)
        return made

    def steps(self, run: str, needed: str) -> list[tuple[str, str]]:
        """The names of the task runs of a run, in the order of their names, each with that of its state.

        Args:
            needed: How the name of one begins that has to be there; it hears of them a moment after they have ended.
        """
        wanted = {"flow_runs": {"id": {"any_": [run]}}}

        def found() -> list[tuple[str, str]] | None:
            there = [(task["name"], task["state_name"]) for task in self.ask("task_runs/filter", **wanted)]
            is_there = any(name.startswith(needed) for name, _ in there)
            return sorted(there) if is_there and not {"Running", "Pending"} & {state for _, state in there} else None

        made: list[tuple[str, str]] = eventually(found, 30)
        return made

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._home / "server.log").read_text()[-2000:]
        with contextlib.suppress(OSError):
            urllib.request.urlopen(f"{self.api}/health", timeout=2).close()
            return True
        return False


def eventually(found: Callable[[], Any], limit_s: float) -> Any:
    """What `found` returns, once it is true."""
    deadline = time.monotonic() + limit_s
    while not (made := found()):
        assert time.monotonic() < deadline, f"not within {limit_s} s: {inspect.getsource(found).strip()}"
        time.sleep(0.1)
    return made


class Worker:
    """A `trtforge worker`, and what it says."""

    def __init__(self, forge: Forge, *arguments: str) -> None:
        self._said = forge.home / f"worker-{time.monotonic_ns()}.log"
        with self._said.open("wb") as log:
            self.process = forge.start("worker", *arguments, stdout=log, stderr=log)

    @property
    def said(self) -> str:
        return self._said.read_text(errors="replace")

    def stop(self) -> int:
        """Ends it as systemd does; its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.process.wait(30)


@contextlib.contextmanager
def working(forge: Forge, *arguments: str) -> Iterator[Worker]:
    """A worker while the block runs."""
    worker = Worker(forge, *arguments)
    try:
        yield worker
    finally:
        worker.stop()


def frozen_child(store: Path, stage: str, limit_s: float = 90) -> int:
    """The process id of the child in which a run executes `stage`, stopped in the middle of it."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        for pid in pids():
            if _stage(pid, store) == stage and _has_begun(pid):
                os.kill(pid, signal.SIGSTOP)
                return pid
        time.sleep(0.003)
    raise AssertionError(f"nobody ran {stage}")


def _has_begun(pid: int) -> bool:
    """Whether a step's process does its work: a moment after its start it has asked to end with its parent."""
    with contextlib.suppress(OSError):
        return "onnx" in Path(f"/proc/{pid}/maps").read_text()
    return False


def _stage(pid: int, store: Path) -> str:
    """The stage that a process executes for a run of `store`; empty if it does not."""
    with contextlib.suppress(OSError, ValueError):
        job = next((word for word in words(pid) if word.endswith("/job.json") and word.startswith(f"{store}/")), "")
        return str(json.loads(Path(job).read_text())["stage"]) if job else ""
    return ""


def pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").glob("[0-9]*")]


def words(pid: int) -> list[str]:
    """The command line of a process; empty if it has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return []


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def kill(*pids: int) -> None:
    """Kills processes at one moment: none of them sees another end."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)


def processes_of(home: Path) -> dict[int, str]:
    """The processes that work in `home` or below, with their command lines."""
    found = {}
    for pid in pids():
        with contextlib.suppress(OSError):
            here = Path(f"/proc/{pid}/cwd").readlink()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and (here == home or home in here.parents):
                found[pid] = " ".join(words(pid))[:200]
    return found


def all_gone(home: Path, limit_s: float = 30) -> None:
    """Waits until no process works in `home` any more."""
    deadline = time.monotonic() + limit_s
    while left := processes_of(home):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.1)
