"""A build is killed, and meets a full disk, a spent quota and a broken disk, at each of its file operations in turn."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import KILL, Faults

ROOT = Path(__file__).parents[2]

FAULTS = {
    "killed": (KILL, "once"),
    "full disk": (errno.ENOSPC, "onwards"),
    "broken disk": (errno.EIO, "once"),
    "full for a moment": (errno.ENOSPC, "once"),
    "quota spent": (errno.EDQUOT, "onwards"),
    "quota spent for a moment": (errno.EDQUOT, "once"),
    "broken disk for good": (errno.EIO, "onwards"),
    "suddenly read-only": (errno.EROFS, "onwards"),
}
QUICK = ("killed",)
SHARES = 2
"""The operations of a real build are dealt out to so many tests, which run side by side."""

Sweep = Callable[..., int]


@pytest.fixture
def sweep(faults_below: Callable[[Path], Faults], quick_path: Path) -> Sweep:
    """Makes all operations of a build, or a share of them, go wrong; returns how many there were."""

    def run(build: str, fault: str, share: int = 0, shares: int = 1) -> int:
        faults = faults_below(quick_path)
        shim, control = faults.environment["LD_PRELOAD"], faults.environment["FAULT_CONTROL"]
        arguments = (build, shim, quick_path, control, *FAULTS[fault], share, shares)
        command = [sys.executable, "-m", "tests.faults.sweep", *map(str, arguments)]
        environment = {**os.environ, **faults.environment}
        ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
        found = json.loads(ran.stdout)
        assert found["bad"] == [], ran.stderr
        return int(found["operations"])

    return run


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=() if name in QUICK else pytest.mark.faults) for name in FAULTS]
)
def test_after_a_fault_at_any_operation_all_is_whole_and_the_next_build_repairs_it(fault: str, sweep: Sweep) -> None:
    assert sweep("small", fault) > 200  # the shim did see them


@pytest.mark.faults
@pytest.mark.parametrize("fault", ["killed", "full disk", "broken disk", "full for a moment"])
def test_a_build_with_a_remote_leaves_store_and_remote_whole(fault: str, sweep: Sweep) -> None:
    assert sweep("shared", fault) > 300


@pytest.mark.faults
@pytest.mark.parametrize("share", range(SHARES))
def test_the_real_command_line_and_its_children_lose_nothing_when_killed(share: int, sweep: Sweep) -> None:
    assert sweep("real", "killed", share, SHARES) > 150
