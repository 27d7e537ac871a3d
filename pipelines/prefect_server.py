"""The temporary Prefect server, for whoever has named no lasting one. Nothing here imports Prefect.

Prefect would start such a server itself. That takes an import of 3 s before the server's process begins, and holds its
caller until it answers; here the process is there after milliseconds, and who needs it waits for it.
"""

from __future__ import annotations

import http.client
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from pipelines.errors import EngineError
from pipelines.flow_run import FINAL
from pipelines.prefect_settings import STARTUP_LIMIT
from pipelines.server_api import Plain

_EPHEMERAL = {
    # What Prefect gives a temporary server of its own.
    "PREFECT_UI_ENABLED": "0",
    "PREFECT__SERVER_EPHEMERAL": "1",
    "PREFECT__SERVER_FINAL": "1",
    # Why it does not start is in its log, which goes to a file.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "ERROR",
}

_HOST = "127.0.0.1"
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception): ")
"""The line of a traceback that says what was raised."""

_one_at_a_time = threading.Lock()
_running: TemporaryServer | None = None


class TemporaryServer:
    """A Prefect server on a free port of loopback, which ends with this process, however that ends.

    Attributes:
        api: What asks it.

    Raises:
        OSError: It cannot be started.
    """

    def __init__(self) -> None:
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the server is
        with socket.socket() as listening:
            # Handed over open, so that nobody takes the port in between; and who connects early is kept waiting.
            listening.bind((_HOST, 0))
            listening.listen(64)
            self.api = Plain(f"http://{_HOST}:{listening.getsockname()[1]}/api")
            self._process = self._start(listening.fileno())
        # The shell reads until the pipe's other end is gone, which the kernel sees to when this process dies.
        watch = ["/bin/sh", "-c", 'read -r line; kill "$0"', str(self._process.pid)]
        self._guard = subprocess.Popen(watch, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    def wait(self) -> None:
        """Waits until it answers.

        Raises:
            EngineError: It has ended, or does not answer in time.
        """
        limit_s = float(os.environ[STARTUP_LIMIT])
        try:
            status, _ = self.api.answer("GET", "/health", seconds=limit_s)
        except (OSError, http.client.HTTPException) as error:
            what = f"no answer in {limit_s:g} s" if isinstance(error, TimeoutError) else self._last_words()
            raise EngineError(f"the temporary Prefect server does not start: {what}") from error
        if status != http.HTTPStatus.OK:
            raise EngineError(f"the temporary Prefect server does not start: it answers {status}")

    def has_recorded(self, task_runs: Sequence[str], seconds: float) -> bool:
        """Whether it has written within so many seconds that these have ended."""
        asked = {"task_runs": {"id": {"any_": list(task_runs)}, "state": {"type": {"any_": FINAL}}}}
        deadline = time.monotonic() + seconds
        try:
            while (left := deadline - time.monotonic()) > 0:
                status, found = self.api.answer("POST", "/task_runs/count", asked, left)
                if status == http.HTTPStatus.OK and json.loads(found) == len(task_runs):
                    return True
                time.sleep(0.02)  # 503: its database is locked for a moment
        except (OSError, http.client.HTTPException):
            pass  # it has ended, or the time has
        return False

    def end(self) -> None:
        """Ends it; of what it has heard, that is lost which it has not written yet."""
        self._process.terminate()

    def _start(self, listening: int) -> subprocess.Popen[bytes]:
        prefect = find_spec("prefect")
        directory = str(Path(prefect.origin).parents[1]) if prefect and prefect.origin else ""
        command = [
            sys.executable, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app",
            "--app-dir", directory, "--fd", str(listening), "--log-level", "error", "--lifespan", "on",
        ]  # fmt: skip
        # A session of its own: what a terminal sends on Ctrl-C is for the build, which ends its server last.
        return subprocess.Popen(
            command, env=os.environ | _EPHEMERAL, pass_fds=[listening], start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
        )  # fmt: skip

    def _last_words(self) -> str:
        deadline = time.monotonic() + 1.0  # its sockets are closed a moment before it is gone
        while self.alive and time.monotonic() < deadline:
            time.sleep(0.01)
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        causes = [line for line in lines if _EXCEPTION.match(line)] or [line for line in lines if line.strip()]
        said = f": {causes[-1].strip()}" if causes else ""
        return f"exit code {self._process.poll()}{said}"


def start() -> TemporaryServer:
    """The temporary server of this process, which does not answer yet where it has just been started.

    Raises:
        OSError: It cannot be started.
    """
    global _running
    with _one_at_a_time:
        if _running is None or not _running.alive:
            _running = TemporaryServer()
        return _running


def has_recorded(task_runs: Sequence[str], seconds: float) -> bool:
    """Whether the temporary server of this process has written within so many seconds that these have ended."""
    return _running is not None and _running.has_recorded(task_runs, seconds)


def stop() -> None:
    """Ends the temporary server of this process, if there is one."""
    if _running is not None:
        _running.end()
