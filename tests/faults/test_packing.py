"""Packing, unpacking and gc are killed, and meet a full and a broken disk, at each of their file operations in turn."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.harness import Faults
from tests.faults.test_every_operation import FAULTS, QUICK, ROOT


@pytest.mark.parametrize(
    "fault", [pytest.param(name, marks=() if name in QUICK else pytest.mark.faults) for name in FAULTS]
)
def test_after_a_fault_at_any_operation_every_object_is_there_whole_or_as_a_delta(
    fault: str, faults_below: Callable[[Path], Faults], quick_path: Path
) -> None:
    faults = faults_below(quick_path)
    shim, control = faults.environment["LD_PRELOAD"], faults.environment["FAULT_CONTROL"]
    arguments = (shim, quick_path, control, *FAULTS[fault])
    command = [sys.executable, "-m", "tests.faults.packing_sweep", *map(str, arguments)]
    environment = {**os.environ, **faults.environment}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 40  # the shim did see them
