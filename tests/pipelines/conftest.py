"""Runs of the real command line, each in a directory and a store of its own."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.pipelines import forks
from tests.pipelines.forks import COMMAND

READ_AT_A_START = ("PYTHON", "LD_", "TMPDIR")
"""Variables of the loader and the interpreter, which a fork is too late for."""


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)

    def states(self) -> dict[str, str]:
        """`build[l4]` -> `built`"""
        steps = self.document["steps"]
        return {f"{s['step']}[{s['target']}]" if s["target"] else s["step"]: s["state"] for s in steps}

    def step(self, name: str, target: str | None = None) -> Any:
        return next(s for s in self.document["steps"] if (s["step"], s["target"]) == (name, target))


@dataclass
class Forge:
    """The command line in a working directory of its own."""

    home: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        return self.home / ".trtforge"

    @property
    def variables(self) -> dict[str, str]:
        """The environment that it runs with."""
        # Importing our modules sets the last of these in this process; whoever starts trtforge has it not.
        ours = ("PREFECT_", "TRTFORGE_", "DO_NOT_TRACK")
        plain = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return {**plain, "PREFECT_HOME": str(self.home / "prefect"), **self.environment}

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        return subprocess.Popen(
            [str(COMMAND), *arguments],
            cwd=self.home,
            env=self.variables,
            text=True,
            start_new_session=True,
            **{**pipes, **options},
        )

    def __call__(self, *arguments: str) -> Ran:
        if not any(name.startswith(READ_AT_A_START) for name in self.environment):
            return Ran(*forks.run(arguments, self.home, self.variables))
        process = self.start(*arguments)
        out, err = process.communicate(timeout=240)
        return Ran(process.returncode, out, err)

    def build(self, *overrides: str) -> Ran:
        """`trtforge build --json` without an engine around it."""
        return self("build", "--json", "runner=local", *overrides)

    def status(self, *overrides: str) -> Ran:
        return self("status", "--json", *overrides)

    def records(self) -> set[str]:
        return {path.stem for path in (self.store / "records").glob("*.json")}


@pytest.fixture
def forge(tmp_path: Path) -> Forge:
    """A command line with an empty store."""
    return Forge(tmp_path)


@pytest.fixture(scope="session")
def default_home(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """Where a build with no override ran, once for all test processes: its store, and `build.json`, what it said."""
    own = tmp_path_factory.getbasetemp()
    home = (own if worker_id == "master" else own.parent) / "default"
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (home / "build.json").exists():
            ran = Forge(home).build()
            assert ran.code == 0, ran.err
            (home / "build.json").write_text(ran.out)
    return home


@pytest.fixture(scope="session")
def default_build(default_home: Path) -> Ran:
    """The build with no override, in an empty store."""
    return Ran(0, (default_home / "build.json").read_text(), "")


@pytest.fixture(scope="session")
def default_store(default_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store after it, a copy for each test process: who looks into a store may write into its index."""
    return Path(shutil.copytree(Forge(default_home).store, tmp_path_factory.mktemp("store") / "store", symlinks=True))


@pytest.fixture
def built(tmp_path: Path, default_store: Path) -> Forge:
    """A command line whose store holds the default build already."""
    shutil.copytree(default_store, tmp_path / ".trtforge", symlinks=True)
    return Forge(tmp_path)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The API's address of a real Prefect server, which takes 3 % of a core while nobody asks it.

    One for each test process: who uses it is of `xdist_group("prefect")`.
    """
    with prefect_server(tmp_path_factory.mktemp("prefect"), {}, "--no-ui") as address:
        yield f"{address}/api"


@contextmanager
def prefect_server(home: Path, variables: Mapping[str, str], *options: str) -> Iterator[str]:
    """The address of a Prefect server whose database is in `home`, for as long as the block runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_UI_API_URL": f"{address}/api",
        **variables,
    }
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("prefect")), "server", "start", "--port", str(port), *options],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"{address}/api/health", timeout=1)
                break
            except OSError:
                assert time.monotonic() < deadline and process.poll() is None, "the server does not start"
                time.sleep(0.2)
        yield address
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


@pytest.fixture
def child_of() -> Iterator[Callable[[subprocess.Popen[str], str], int]]:
    """Waits for the child process in which a running build executes a stage, and returns its process id."""

    def find(build: subprocess.Popen[str], stage: str) -> int:
        deadline = time.monotonic() + 60
        while build.poll() is None and time.monotonic() < deadline:
            for entry in Path("/proc").glob("[0-9]*"):
                if _runs(entry, build.pid, stage):
                    return int(entry.name)
            time.sleep(0.005)
        told = build.communicate()[1] if build.poll() is not None else "it still runs"
        raise AssertionError(f"the build never ran {stage}: {told}")

    yield find


def _runs(entry: Path, parent: int, stage: str) -> bool:
    try:
        arguments = (entry / "cmdline").read_bytes().split(b"\0")
        own_parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
        job = Path(arguments[-2].decode()) if len(arguments) > 2 else Path()
        return own_parent == parent and job.name == "job.json" and json.loads(job.read_text())["stage"] == stage
    except (OSError, ValueError, IndexError):
        return False  # it has just ended


@pytest.fixture
def interrupt() -> Callable[[subprocess.Popen[str]], tuple[int, float]]:
    """Presses Ctrl-C: the signal goes to the whole group, as a terminal sends it. Returns exit code and seconds."""

    def press(process: subprocess.Popen[str]) -> tuple[int, float]:
        started = time.monotonic()
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=30)
        return process.returncode, time.monotonic() - started

    return press
