"""What TensorRT itself says of a plan's layers on a GPU, by either backend.

docs/gpu-testing.md says how to run these; without a GPU each is skipped, with the reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages.build_config import BuildConfig
from tests.stages.on_gpu import facts_here, on_gpu, plan_of
from tests.stages.stage_runs import PROFILE, classifier, run_stage

pytestmark = pytest.mark.gpu


def report(backend: str, out: Path, config: BuildConfig | None = None) -> dict[str, Any]:
    onnx, given = classifier(out / "net.onnx"), facts_here(backend, PROFILE)
    plan_of(onnx, given, out, config)
    answer, log = run_stage("layers", out / "layers", {"plan": out / "model.plan", "onnx": onnx}, given=given)
    assert "metrics" in answer, f"{answer}\n{log[-2000:]}"
    found: dict[str, Any] = json.loads((out / "layers/layers.json").read_text())
    return found


@on_gpu("tensorrt")
def test_the_inspector_tells_of_types_and_nodes_and_the_profiler_of_times(backend: str, tmp_path: Path) -> None:
    found = report(backend, tmp_path, BuildConfig(profiling_verbosity="detailed"))
    assert (found["source"], found["unread_reason"], found["timed_reason"]) == ("engine", None, None)
    (profile,) = found["profiles"]
    nodes = {node for layer in profile["layers"] for node in layer["nodes"]}
    assert {"conv0", "gemm0"} <= nodes
    assert "?" not in {layer["precision"] for layer in profile["layers"] if layer["product"]}
    assert sum(layer["ms"] or 0 for layer in profile["layers"]) > 0


@on_gpu("tensorrt_rtx")
def test_the_plans_own_layers_have_times_or_it_is_said_why_not(backend: str, tmp_path: Path) -> None:
    found = report(backend, tmp_path)
    assert found["source"] == "plan"
    times = [layer["ms"] for layer in found["profiles"][0]["layers"] if layer["ms"] is not None]
    assert times or "calls otherwise" in found["timed_reason"]
