"""What `make bench-overhead` measures of a process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from benchmarks.overhead import taken

BALLAST = "held = bytearray({own} << 20); import subprocess, sys, time; {more}; time.sleep(0.2)"


def test_the_memory_of_a_command_is_its_own_and_not_its_childrens(tmp_path: Path) -> None:
    child = "subprocess.run([sys.executable, '-c', 'held = bytearray(300 << 20)'], check=True)"
    took = taken([sys.executable, "-c", BALLAST.format(own=100, more=child)], os.sched_getaffinity(0), tmp_path / "log")
    assert 100 << 20 < took.peak_bytes < 200 << 20
    assert took.seconds > 0.2


def test_a_command_runs_on_the_cores_it_is_given(tmp_path: Path) -> None:
    before = os.sched_getaffinity(0)
    one = {min(before)}
    taken([sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"], one, tmp_path / "log")
    assert (tmp_path / "log").read_text().strip() == str(one)
    assert os.sched_getaffinity(0) == before


def test_a_command_that_fails_ends_the_benchmark_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="it broke"):
        taken([sys.executable, "-c", "raise SystemExit('it broke')"], os.sched_getaffinity(0), tmp_path / "log")
