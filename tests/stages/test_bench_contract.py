"""What `bench` asks of TensorRT to time a plan, held against the real bindings of several versions.

The processes are those of test_contract.py, where a call that no test reaches fails too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.stages import bench_contract
from tests.stages.stage_runs import VERSION as RTX
from tests.stages.stand_in_libraries import make_libraries
from tests.stages.test_contract import BINDINGS, VERSIONS

ROOT = Path(__file__).parents[2]
ABSENT = pytest.mark.skipif(not BINDINGS.is_dir(), reason="the bindings are not here: make bindings")

pytestmark = pytest.mark.parametrize(
    "version",
    [
        *(pytest.param(each, marks=[ABSENT, pytest.mark.xdist_group(f"contract {each}")]) for each in VERSIONS),
        pytest.param(RTX, marks=pytest.mark.xdist_group("bench of rtx")),
    ],
)


@pytest.fixture(scope="module")
def of_rtx(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/stages/bench_contract.py says of TensorRT-RTX's own bindings: one process, 3 s."""
    directory = tmp_path_factory.mktemp("rtx")
    make_libraries(directory, "1")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.stages.bench_contract", directory / "out"],
        env={**os.environ, "LD_LIBRARY_PATH": str(directory)},
        capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    return dict(json.loads(ran.stdout.splitlines()[-1]))


@pytest.fixture
def told(version: str, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What becomes of each case with the version."""
    if version == RTX:
        return dict(request.getfixturevalue("of_rtx"))
    return dict(request.getfixturevalue("answers")(version)["bench"])


def test_a_plan_is_made_ready_and_run_in_the_order_that_tensorrt_wants(told: Any) -> None:
    answer = told[""]
    assert answer.get("error") is None
    first = [answer["calls"].index(call) for call in bench_contract.ORDER]
    assert first == sorted(first)


def test_every_profile_is_timed_at_each_of_its_ends_with_its_own_number(told: Any) -> None:
    points = told[""]["bench.json"]["points"]
    named = [(point["profile"], point["point"], point["samples"]) for point in points]
    assert named == [("large", "min", 8), ("large", "opt", 16), ("large", "max", 32),
                     ("small", "min", 1), ("small", "opt", 2), ("small", "max", 8)]  # fmt: skip


def test_a_point_is_timed_from_either_memory_as_calls_and_as_a_graph_in_one_stream_and_more(told: Any) -> None:
    for point in told[""]["bench.json"]["points"]:
        assert point["cuda_graph"] == {"captured": True, "reason": None}
        ways = [(run["launch"], run["inputs"]) for run in point["runs"]]
        assert ways == [(launch, inputs) for launch in ("enqueue", "graph") for inputs in ("device", "pinned")]
        for run in point["runs"]:
            rates = [(rate["streams"], rate["inferences"]) for rate in run["throughput"]]
            assert rates == [(1, 3), (2, 6)]
            assert ("h2d_ms" in run, "d2h_ms" in run) == (run["inputs"] == "pinned",) * 2
            assert run["host_ms"]["count"] == run["gpu_ms"]["count"] == 3


def test_what_comes_back_is_what_the_engine_made_of_the_inputs(told: Any) -> None:
    """The stand-in gives the input back: buffers, addresses and both copies are right."""
    assert told[""]["same"].count(True) >= 6 * 2
    assert all(told["uncaptured"]["same"][2:4])


def test_the_metrics_that_gates_read_are_those_of_the_plan(version: str, told: Any) -> None:
    answer = told[""]
    assert answer["engine_executed"] is True and answer["reason"] is None and answer["gpu"] == "NVIDIA L4"
    runs = [p["runs"][0] for p in answer["bench.json"]["points"] if p["point"] == "opt"]
    assert answer["latency_ms"] == max(run["gpu_ms"]["p50"] for run in runs) > 0
    assert answer["host_latency_ms"] is None and answer["runtime"].endswith(f" {version}")
    assert answer["clocks"]["sm_mhz"] is None and "NVML" in answer["clocks"]["unread"]


def test_single_inferences_are_told_as_trtexec_tells_them(told: Any) -> None:
    times = told[""]["times.json"]
    assert len(times) == 3
    names = ["startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs",
             "startD2hMs", "endD2hMs", "h2dMs", "computeMs", "d2hMs", "latencyMs"]  # fmt: skip
    assert [list(each) for each in times] == [names] * 3
    for each in times:
        assert each["latencyMs"] == pytest.approx(each["h2dMs"] + each["computeMs"] + each["d2hMs"], abs=1e-5)
        assert each["computeMs"] == pytest.approx(each["endComputeMs"] - each["startComputeMs"], abs=1e-5)
    assert all(one["startEnqMs"] < other["startEnqMs"] for one, other in pairwise(times))


def test_where_no_graph_can_be_captured_the_reason_is_told_and_calls_are_timed(told: Any) -> None:
    (point, _) = told["uncaptured"]["bench.json"]["points"]
    assert point["cuda_graph"]["captured"] is False
    assert "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED" in point["cuda_graph"]["reason"]
    assert {run["launch"] for run in point["runs"]} == {"enqueue"}


def test_an_input_of_a_format_that_pads_is_as_large_as_the_format_wants(told: Any) -> None:
    answer = told["vectorized"]
    assert answer.get("error") is None and answer["same"][0] is False, "32 channels in, 4 out"


def test_what_tensorrt_reads_and_writes_on_the_host_is_not_copied(told: Any) -> None:
    answer = told["on host"]
    assert answer.get("error") is None and "IExecutionContext.set_input_shape" not in answer["calls"]


@pytest.mark.parametrize("case", bench_contract.FAILS)
def test_what_tensorrt_does_not_do_is_an_error_of_the_benchmark(case: str, told: Any) -> None:
    answer = told[case]
    assert bench_contract.FAILS[case] in answer["error"] and "times.json" not in answer


def test_nothing_of_tensorrt_is_held_once_a_benchmark_returns_or_fails(told: Any) -> None:
    assert {name: each["held"] for name, each in told.items() if each["held"]} == {}
