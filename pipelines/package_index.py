"""Which versions the package index has, asked through pip: the user's own indexes, proxies and certificates count.

An index that does not answer is no failure: the answer says why nobody knows.
"""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

LIMIT_S = 20.0
"""For all packages together; pip took 2 s for two of them."""

_LAST_LOOK_S = 0.2
"""What a package that was asked with the others has when time is up: it may have answered long before."""

_PIP = ("-m", "pip", "index", "versions", "--disable-pip-version-check", "--no-input", "--no-color")
_PATIENCE = ("--retries", "0", "--timeout", "10")


@dataclass(frozen=True)
class Answer:
    """What the index has of one distribution.

    Attributes:
        versions: Those that this Python can install, the newest first; none where nobody knows.
        reason: Why nobody knows; empty where it is known.
    """

    versions: tuple[str, ...]
    reason: str = ""


def ask(distributions: Sequence[str], limit_s: float = LIMIT_S) -> dict[str, Answer]:
    """What the index has of each of `distributions`, all asked at once.

    Args:
        distributions: Names as the index has them.
        limit_s: Who has not answered by then is not waited for.
    """
    deadline = time.monotonic() + limit_s
    asked: dict[str, subprocess.Popen[str]] = {}
    with ExitStack() as running:
        for name in dict.fromkeys(distributions):
            asked[name] = running.enter_context(_start(name))
            running.callback(asked[name].kill)  # where nobody waits for its answer any more
        return {name: _answer(name, process, deadline, limit_s) for name, process in asked.items()}


def _start(name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *_PIP, *_PATIENCE, name],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _answer(name: str, process: subprocess.Popen[str], deadline: float, limit_s: float) -> Answer:
    try:
        out, err = process.communicate(timeout=max(deadline - time.monotonic(), _LAST_LOOK_S))
    except subprocess.TimeoutExpired:
        return Answer((), f"the package index did not answer within {limit_s:g} s")
    # pip 23.2, which comes with Python 3.11, has no `--json` for it.
    found = re.search(r"^Available versions: (.+)$", out, re.MULTILINE)
    if process.returncode == 0 and found:
        return Answer(tuple(re.sub(r"\.post\d+$", "", version) for version in re.split(r",\s*", found[1].strip())))
    errors = [line.removeprefix("ERROR: ") for line in err.splitlines() if not line.startswith("WARNING: ")]
    said = errors[-1].strip() if errors else f"it ended with {process.returncode}"
    return Answer((), f"pip index versions {name}: {said}")
