"""Plans that are timed on a real GPU, by either backend.

docs/gpu-testing.md says how to run these; without a GPU each is skipped, with the reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.bench import BenchConfig
from stages.machine import described
from tests.stages.on_gpu import facts_here, gpu_for, on_gpu, plan_of
from tests.stages.shape_tensors import ranges, shaper
from tests.stages.stage_runs import PROFILE, classifier, run_stage

pytestmark = pytest.mark.gpu

SHORT = BenchConfig(warmup_ms=50, duration_ms=100, streams=[1, 2])


def timed(backend: str, onnx: Path, profiles: Any, out: Path, config: BenchConfig = SHORT) -> dict[str, Any]:
    """The report on a plan of `onnx`, built and timed here."""
    given = facts_here(backend, profiles, machine=described("", [gpu_for(backend)]))
    answer, log = plan_of(onnx, given, out)
    assert "metrics" in answer, (answer, log[-2000:])
    inputs = {"onnx": onnx, "plan": out / "model.plan"}
    answer, log = run_stage("bench", out / "timed", inputs, config, given)
    assert "metrics" in answer, (answer, log[-2000:])
    assert answer["metrics"]["engine_executed"] is True and answer["metrics"]["latency_ms"] > 0
    return dict(json.loads((out / "timed/bench.json").read_text()))


@on_gpu("tensorrt", "tensorrt_rtx")
def test_a_plan_is_timed_at_each_point_in_every_way(backend: str, tmp_path: Path) -> None:
    report = timed(backend, classifier(tmp_path / "model.onnx"), PROFILE, tmp_path)
    assert [point["point"] for point in report["points"]] == ["min", "opt", "max"]
    for point in report["points"]:
        assert point["cuda_graph"]["captured"] or point["cuda_graph"]["reason"]
        for run in point["runs"]:
            assert 0 < run["gpu_ms"]["p50"] <= run["gpu_ms"]["p90"] <= run["gpu_ms"]["p99"]
            assert run["host_ms"]["p50"] > 0 and all(rate["inferences_per_s"] > 0 for rate in run["throughput"])
    times = json.loads((tmp_path / "timed/times.json").read_text())
    assert len(times) == report["points"][1]["runs"][1]["latency_ms"]["count"]


@on_gpu("tensorrt")
def test_a_small_network_is_captured_as_a_graph_that_is_given_faster_than_its_calls(
    backend: str, tmp_path: Path
) -> None:
    report = timed(backend, classifier(tmp_path / "model.onnx"), PROFILE, tmp_path, BenchConfig(points=["opt"]))
    (point,) = report["points"]
    assert point["cuda_graph"] == {"captured": True, "reason": None}
    given = {run["launch"]: run["enqueue_ms"]["p50"] for run in point["runs"] if run["inputs"] == "device"}
    assert given["graph"] < given["enqueue"]


@on_gpu("tensorrt", "tensorrt_rtx")
def test_a_plan_that_takes_shapes_is_timed_with_their_values(backend: str, tmp_path: Path) -> None:
    report = timed(backend, shaper(tmp_path / "model.onnx"), {"default": ranges()}, tmp_path)
    assert [point["point"] for point in report["points"]] == ["min", "opt", "max"]
