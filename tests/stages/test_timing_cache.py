"""Timing caches of TensorRT-RTX's real objects, which hold nothing: what it cannot read is refused, not lost.

What TensorRT makes of them is held against its bindings in test_contract.py.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from stages import build
from stages.build_config import BuildConfig
from stages.stage import Memory, StageError
from stages.timing_cache import Attached, require_taken

ROOT = Path(__file__).parents[2]

ATTACH = """
import json, sys
from pathlib import Path
import tensorrt_rtx as trt
from stages import timing_cache
from stages.builder_log import make_logger
from stages.stage import Memory

home = Path(sys.argv[1])
logger = make_logger(trt)
builder = trt.Builder(logger)

def attached(*known):
    config = builder.create_builder_config()
    memory = Memory([home / name for name in known], home / "learnt")
    found = timing_cache.attach(config, logger, memory, "tensorrt_rtx")
    return timing_cache.write(config, found, memory)

print(json.dumps([attached(), attached("junk")]))
"""


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    """What was written without earlier timings and with a file that holds none, and the log: one process, 1 s."""
    home = tmp_path_factory.mktemp("timings")
    (home / "junk").write_bytes(b"no timing cache" * 20)
    child = subprocess.run(
        [sys.executable, "-c", ATTACH, str(home)], capture_output=True, text=True, cwd=ROOT, timeout=60, check=False
    )
    assert child.returncode == 0, child.stderr[-2000:]
    return json.loads(child.stdout.splitlines()[-1]), child.stderr


def test_a_build_without_earlier_timings_gets_an_empty_cache(ran: tuple[list[dict[str, Any]], str]) -> None:
    empty = ran[0][0]
    assert (empty["merged"], empty["refused"]) == ([], [])
    assert empty["bytes"] > 0


def test_a_file_that_it_cannot_read_is_refused_and_that_is_said_once(ran: tuple[list[dict[str, Any]], str]) -> None:
    (_, junk), log = ran
    assert (junk["merged"], junk["refused"]) == ([], ["junk"])
    own = [line for line in log.splitlines() if "1 of 1 timing caches" in line]
    assert len(own) == 1
    assert own[0].startswith("[WARNING] tensorrt_rtx refuses 1 of 1 timing caches, and builds without: ")
    assert "deserialize" in own[0]


def test_a_build_that_may_time_nothing_needs_timings() -> None:
    none, some = Memory([], Path("learnt")), Memory([Path("cache")], Path("learnt"))
    require_taken(Attached(("cache",), (), ()), some)
    with pytest.raises(StageError, match="there is no timing cache"):
        require_taken(Attached((), (), ()), none)
    with pytest.raises(StageError, match="TensorRT refuses the timing cache"):
        require_taken(Attached((), ("cache",), ()), some)


@pytest.mark.parametrize(
    ("asked", "backend", "found"),
    [
        ({}, "tensorrt", "gpu"),
        ({"error_on_miss": True}, "tensorrt", "gpu"),
        ({"pin_tactics": True}, "tensorrt", "key"),
        ({"disable_timing_cache": True}, "tensorrt", "nothing"),
        ({"optimization_level": 0}, "tensorrt", "nothing"),
        ({}, "tensorrt_rtx", "nothing"),
        ({"pin_tactics": True}, "tensorrt_rtx", "nothing"),
    ],
)
def test_a_build_shares_its_timings_with_its_gpu_or_keeps_them_for_its_plan(
    asked: dict[str, Any], backend: str, found: str
) -> None:
    assert build.remembers(BuildConfig(**asked), {"backend": backend}) == found
