"""Real processes that take part in a test: they run a few lines of Python and can be killed with -9."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import dedent

ROOT = Path(__file__).parents[2]


@contextmanager
def running(code: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    """A process that runs `code` with `args` in `sys.argv[1:]`; killed at the end, if it still lives."""
    command = [sys.executable, "-c", dedent(code), *map(str, args)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def said(process: subprocess.Popen[str]) -> str:
    """The next line that `process` prints."""
    assert process.stdout
    assert process.stderr
    line = process.stdout.readline().strip()
    assert line, process.stderr.read()
    return line


def output(code: str, *args: object) -> str:
    """What a process that runs `code` to its end prints."""
    with running(code, *args) as process:
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 0, stderr
        return stdout.strip()
