"""What `bench` says of a plan, and of ONNX Runtime where no GPU can execute it.

What it asks of TensorRT: test_bench_contract.py. That its times are right: test_gpu_timing.py.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from stages import gates
from stages.allowed import NotAllowedError
from stages.bench import BenchConfig, bench
from stages.gates import Gates
from stages.stage import Job, StageError
from tests.stages.stage_runs import PROFILE, classifier, facts, model, save
from tests.stages.stand_ins import header

VERSION = "11.4.0.106"
SHORT = BenchConfig(warmup_iterations=1, warmup_ms=0, iterations=5, duration_ms=0, threads=1)


def benched(out: Path, onnx_file: Path, config: BenchConfig = SHORT, profiles: Any = PROFILE) -> dict[str, Any]:
    """What the stage answers of a plan whose GPU is not here."""
    (out / "model.plan").write_bytes(header(VERSION))
    given = facts(backend="tensorrt", backend_version=VERSION, profiles=profiles)
    return bench(Job(config, {"onnx": [onnx_file], "plan": [out / "model.plan"]}, given, out))


def low(path: Path) -> Path:
    """A sum in bfloat16, which ONNX Runtime has no kernel for."""
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(ml_dtypes.bfloat16))
    nodes = [
        helper.make_node("Cast", ["x"], ["l"], to=kind),
        helper.make_node("MatMul", ["l", "l"], ["s"]),
        helper.make_node("Cast", ["s"], ["y"], to=TensorProto.FLOAT),
    ]
    return save(model(nodes, {"x": [4, 4]}, {"y": [4, 4]}), path)


def test_without_a_gpu_onnx_runtime_is_timed_on_the_cpu_and_nobody_is_told_otherwise(tmp_path: Path) -> None:
    metrics = benched(tmp_path, classifier(tmp_path / "model.onnx"))
    assert metrics["engine_executed"] is False and metrics["reason"] == "no GPU of 8.9 here"
    assert metrics["runtime"].startswith("onnxruntime 1.") and metrics["runtime"].endswith(" CPU")
    assert metrics["host_latency_ms"] > 0 and metrics["cpu"]
    of_the_plan = ("latency_ms", "round_trip_ms", "inferences_per_s", "samples_per_s", "gpu", "clocks")
    assert {metrics[name] for name in of_the_plan} == {None}
    assert json.loads((tmp_path / "times.json").read_text()) == [], "nothing means what trtexec's names mean"
    report = json.loads((tmp_path / "bench.json").read_text())
    assert report["summary"] == metrics and report["measured"]["how"]["threads"] == 1
    assert [(p["point"], p["samples"], p["shapes"]["x"][0]) for p in report["points"]] == [
        ("min", 1, 1), ("opt", 4, 4), ("max", 8, 8),
    ]  # fmt: skip
    opt = report["points"][1]["runs"]
    assert [run["host_ms"]["p50"] for run in opt] == [metrics["host_latency_ms"]]
    assert opt[0]["host_ms"]["count"] == opt[0]["throughput"][0]["inferences"] == 5


def test_a_time_of_the_cpu_passes_no_gate_of_latency(tmp_path: Path) -> None:
    metrics = benched(tmp_path, classifier(tmp_path / "model.onnx"))
    assert metrics["host_latency_ms"] < 1e6
    (refusal,) = gates.of_bench(Gates(latency_ms=1e6), metrics, None)
    assert "latency_ms was not measured" in refusal and "no GPU of 8.9 here" in refusal


def test_what_onnx_runtime_cannot_run_is_not_timed_and_says_why(tmp_path: Path) -> None:
    metrics = benched(tmp_path, low(tmp_path / "model.onnx"), profiles={})
    assert metrics["runtime"] is None and metrics["host_latency_ms"] is None
    assert metrics["reason"].startswith("no GPU of 8.9 here, and ONNX Runtime's CPU provider cannot run the model: ")
    assert json.loads((tmp_path / "bench.json").read_text())["points"] == []


def test_a_plan_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.plan").write_bytes(header("10.13.3.9"))
    inputs = {"onnx": [classifier(tmp_path / "model.onnx")], "plan": [tmp_path / "model.plan"]}
    given = facts(backend="tensorrt", backend_version=VERSION, profiles=PROFILE)
    with pytest.raises(StageError, match=r"plan was built by tensorrt 10\.13\.3\.9, the target takes 11\.4"):
        bench(Job(SHORT, inputs, given, tmp_path))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"points": ["mid"]}, "points: got 'mid'; allowed: min, opt, max, or PROFILE. before one of them"),
        ({"points": []}, "points: got []"),
        ({"streams": [0]}, "streams: got 0; allowed: 1 to 64"),
        ({"streams": []}, "streams: got []"),
        ({"iterations": 0}, "iterations: got 0; allowed: 1 to 10000"),
        ({"warmup_iterations": 10001}, "warmup_iterations: got 10001"),
        ({"duration_ms": -1.0}, "duration_ms: got -1.0"),
        ({"threads": -1}, "threads: got -1"),
    ],
)
def test_a_config_that_measures_nothing_cannot_be_made(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(NotAllowedError) as caught:
        replace(SHORT, **wrong)
    assert str(caught.value).startswith(said)
