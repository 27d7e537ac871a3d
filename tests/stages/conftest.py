"""What tests of several modules share: what the contract tests' process says of a version of TensorRT's bindings."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.stages.stand_in_libraries import make_libraries

ROOT = Path(__file__).parents[2]
BINDINGS = ROOT / ".venv-bindings"


@pytest.fixture(scope="session")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What tests/stages/contract_child.py says of a version: one process each, 5 s."""

    @cache
    def ask(version: str) -> dict[str, Any]:
        directory = tmp_path_factory.mktemp("contract")
        make_libraries(directory, version.partition(".")[0])
        paths = os.pathsep.join([str(BINDINGS / version), str(ROOT)])
        ran = subprocess.run(
            [sys.executable, "-m", "tests.stages.contract_child", directory],
            env={**os.environ, "LD_LIBRARY_PATH": str(directory), "PYTHONPATH": paths},
            capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-3000:]
        return dict(json.loads(ran.stdout.splitlines()[-1]))

    return ask
