"""Runs a module of this package in a process of its own, and stops it where it takes too much memory or time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

MAX_BYTES = 8 * 2**30
MAX_SECONDS = 900.0
_POLL_SECONDS = 0.02


def run(module: str, *arguments: str, max_bytes: int = MAX_BYTES, max_seconds: float = MAX_SECONDS) -> dict[str, Any]:
    """What the process printed as its last line, in JSON; or `failed`, why it did not, and `peak`, what it had taken.

    Args:
        module: In this package.
        arguments: Its own.
        max_bytes: Of resident memory.
        max_seconds: Of wall time.
    """
    command = [sys.executable, "-W", "ignore", "-m", f"{__package__}.{module}", *arguments]
    peak, killed, started = 0, "", time.monotonic()
    with TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            peak = max(peak, _resident(process.pid))
            if peak > max_bytes:
                killed = f"killed at {peak / 2**30:.1f} GB"
            elif time.monotonic() - started > max_seconds:
                killed = f"stopped after {max_seconds:.0f} s"
            if killed:
                process.kill()
            time.sleep(_POLL_SECONDS)
        log.seek(0)
        output = log.read()
    if killed or process.returncode:
        return {"failed": killed or _reason(output, process.returncode), "peak": peak}
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def _resident(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):  # it has just ended
        return 0


def _reason(output: str, code: int) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return f"exit code {code}: {lines[-1][:200]}" if lines else f"exit code {code}"
