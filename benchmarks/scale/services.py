"""The server, its database and the workers: real processes on loopback, in a directory of the measurement's own."""

from __future__ import annotations

import http
import json
import os
import pwd
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scale.usage import MARK, own_and_children_s

UNPRIVILEGED = "nobody"
"""PostgreSQL refuses to run as root."""

_QUIET = {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_COLORS": "false"}
_TRIES = 6
_COMPLAINTS = (
    *("sqlite3.OperationalError: database is locked", "Encountered error during state validation"),
    *("Failed in consume_loop", "will be moved to the dead letter queue", "TimeoutError"),
)
_ROWS = ("flow_run", "task_run", "flow_run_state", "task_run_state", "events", "event_resources", "log", "artifact")


def free_port() -> int:
    """A port of loopback that nobody has at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Api:
    """A Prefect server's API, as far as it is asked here.

    Attributes:
        url: Its address.
        busy: How often it was too busy to answer, and was asked again as Prefect's own client does.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.busy = 0

    def get(self, path: str) -> Any:
        """The answer to a GET."""
        return self._ask(urllib.request.Request(f"{self.url}/{path}"))  # noqa: S310 - loopback

    def post(self, path: str, **body: Any) -> Any:
        """The answer to a POST."""
        headers = {"Content-Type": "application/json"}
        return self._ask(urllib.request.Request(f"{self.url}/{path}", json.dumps(body).encode(), headers))  # noqa: S310

    def all(self, what: str, **body: Any) -> list[Any]:
        """What a filter finds, however many pages that are."""
        found: list[Any] = []
        while page := self.post(f"{what}/filter", limit=200, offset=len(found), **body):
            found += page
        return found

    def _ask(self, request: urllib.request.Request) -> Any:
        for left in reversed(range(_TRIES)):
            try:
                with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 - loopback
                    return json.loads(answer.read() or b"null")
            except urllib.error.HTTPError as error:
                if error.code != http.HTTPStatus.SERVICE_UNAVAILABLE or not left:
                    raise
                self.busy += 1
                time.sleep(2.0)
        raise AssertionError("the last try returns or raises")


class Sqlite:
    """A file, as Prefect has it by default."""

    process = None

    def __init__(self, home: Path) -> None:
        self._file = home / "prefect.db"

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        return f"sqlite+aiosqlite:///{self._file}"

    def size_bytes(self) -> int:
        """What it takes of the disk."""
        return sum(path.stat().st_size for path in self._file.parent.glob("prefect.db*"))

    def rows(self) -> dict[str, int]:
        """Table -> its rows, of those that grow."""
        with sqlite3.connect(f"file:{self._file}?mode=ro", uri=True, timeout=60) as connection:
            counted = ((name, connection.execute(f"SELECT count(*) FROM {name}").fetchone()) for name in _ROWS)  # noqa: S608
            return {name: row[0] for name, row in counted}

    def end(self) -> None:
        """Nothing was started."""


class Postgresql:
    """A cluster with the defaults of its installation, on a port of loopback.

    Raises:
        subprocess.CalledProcessError: It cannot be made; PostgreSQL's own lines say why.
    """

    def __init__(self, home: Path) -> None:
        nobody = pwd.getpwnam(UNPRIVILEGED)
        self._user = {"user": nobody.pw_uid, "group": nobody.pw_gid} if os.geteuid() == 0 else {}
        self._home = Path(tempfile.mkdtemp(prefix="trtforge-scale-"))  # `home` may lie where nobody else may look
        self._port = free_port()
        if self._user:
            shutil.chown(self._home, UNPRIVILEGED)
        run = {"cwd": self._home, "check": True, "stdout": subprocess.DEVNULL, **self._user}
        subprocess.run(["initdb", "-D", "data", "-U", "prefect", "--auth=trust", "-E", "UTF8"], **run)
        with (home / "postgresql.log").open("wb") as log:
            command = ["postgres", "-D", "data", "-p", str(self._port), "-k", str(self._home), "-h", "127.0.0.1"]
            self.process = subprocess.Popen(command, cwd=self._home, stdout=log, stderr=log, **self._user)
        deadline = time.monotonic() + 60
        while subprocess.run(self._psql("postgres", "CREATE DATABASE prefect"), capture_output=True).returncode:
            if time.monotonic() > deadline:
                raise TimeoutError(f"PostgreSQL does not start: {home / 'postgresql.log'}")
            time.sleep(0.3)

    @property
    def url(self) -> str:
        """For SQLAlchemy."""
        return f"postgresql+asyncpg://prefect@127.0.0.1:{self._port}/prefect"

    def size_bytes(self) -> int:
        """What it takes of the disk."""
        return int(self._ask("SELECT pg_database_size('prefect')"))

    def rows(self) -> dict[str, int]:
        """Table -> its rows, of those that grow."""
        return {name: int(self._ask(f"SELECT count(*) FROM {name}")) for name in _ROWS}  # noqa: S608

    def end(self) -> None:
        """Ends its processes."""
        self.process.send_signal(signal.SIGINT)  # disconnects everybody
        self.process.wait(30)
        shutil.rmtree(self._home)

    def _ask(self, question: str) -> str:
        return subprocess.run(self._psql("prefect", question), capture_output=True, text=True, check=True).stdout

    def _psql(self, database: str, question: str) -> list[str]:
        there = ["-h", "127.0.0.1", "-p", str(self._port), "-U", "prefect"]
        return ["psql", "-X", "-t", "-A", *there, "-c", question, database]


DATABASES = {"sqlite": Sqlite, "postgresql": Postgresql}


class Server:
    """A Prefect server with an empty database, which answers once this is made.

    Raises:
        TimeoutError: It does not answer in two minutes; its log says why.
    """

    def __init__(self, name: str, home: Path, database: str) -> None:
        home.mkdir()
        self.database = DATABASES[database](home)
        port = free_port()
        self.api = Api(f"http://127.0.0.1:{port}/api")
        own = {"PREFECT_HOME": str(home), "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database.url}
        command = [str(Path(sys.executable).with_name("prefect")), "server", "start", "--port", str(port), "--no-ui"]
        self._log = home / "server.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, env=variables({**own, MARK: f"{name}/server"}), stdout=log, stderr=log, start_new_session=True
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                self.api.get("health")
                return
            except OSError as error:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    raise TimeoutError(f"the server does not start: {self._log}") from error
                time.sleep(0.2)

    def complaints(self) -> dict[str, int]:
        """What went wrong for the server itself, by its log -> how often."""
        said = self._log.read_text(errors="replace")
        return {what: said.count(what) for what in _COMPLAINTS if what in said}

    def end(self) -> None:
        """Ends the server, then its database."""
        self.process.terminate()
        self.process.wait(60)
        self.database.end()


@dataclass(frozen=True)
class Machine:
    """A machine that builds, as far as one directory is one: a store of its own.

    Attributes:
        name: The measurement's.
        home: Where its runs start; its store is there.
        api: The server's address.
        remote: What the machines share.
    """

    name: str
    home: Path
    api: str
    remote: str

    @property
    def store(self) -> Path:
        """Its store."""
        return self.home / "store"

    def variables(self, role: str) -> dict[str, str]:
        """The environment of its processes."""
        own = {"PREFECT_API_URL": self.api, "PREFECT_HOME": str(self.home / "prefect"), MARK: f"{self.name}/{role}"}
        return variables({**own, "TRTFORGE_STORE": str(self.store), "TRTFORGE_REMOTE": self.remote})

    def worker(self, queue: str) -> subprocess.Popen[bytes]:
        """Starts a worker of one queue, as `trtforge worker` starts those of its GPUs; its lines are in a log."""
        command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", "trtforge"]
        command += ["--work-queue", queue, "--limit", "1", "--name", f"{self.home.name} {queue}"]
        with (self.home / f"{queue}.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.home, env=self.variables(queue), stdout=log, stderr=log, start_new_session=True
            )

    def trtforge(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the command line there, without Prefect."""
        return subprocess.run(
            _trtforge(arguments), cwd=self.home, env=self.variables("here"), capture_output=True, text=True
        )

    def seconds_of(self, *arguments: str) -> tuple[float, float]:
        """Runs the command line there, which succeeds. Returns its own processor seconds, and its children's."""
        process = subprocess.Popen(_trtforge(arguments), cwd=self.home, env=self.variables("here"))
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # until it is waited for, /proc knows
        took = own_and_children_s(process.pid)
        if process.wait():
            raise subprocess.CalledProcessError(process.returncode, process.args)
        return took


def _trtforge(arguments: Sequence[str]) -> list[str]:
    return [sys.executable, "-W", "ignore", "-m", "pipelines", *arguments]


def variables(own: Mapping[str, str]) -> dict[str, str]:
    """This environment without what is set for another Prefect or store, and with `own`."""
    ours = ("PREFECT_", "TRTFORGE_", "PYTHONDONTWRITEBYTECODE")
    plain = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return {**plain, **_QUIET, **own}
