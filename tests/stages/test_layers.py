"""The stage `layers` where no GPU executes the plan; with one: test_layers_contract.py, test_layers_on_gpu.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stages import layers
from stages.allowed import NotAllowedError
from stages.layers import LayersConfig
from stages.stage import Job, StageError
from tests.stages.stage_runs import PROFILE, classifier, facts, run_stage


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("built")
    run_stage("build", out, {"onnx": classifier(out / "net.onnx")}, given=facts(profiles=PROFILE))
    return out


def job(built: Path, out: Path, capability: str = "8.9", **others: Any) -> Job[LayersConfig]:
    inputs = {"plan": [built / "model.plan"], "onnx": [built / "net.onnx"]}
    return Job(LayersConfig(), inputs, facts(capability, PROFILE, **others), out)


def test_the_report_is_the_one_that_the_build_kept_but_for_why_nothing_was_timed(built: Path, tmp_path: Path) -> None:
    metrics = layers.layers(job(built, tmp_path))
    own, kept = (json.loads((path / "layers.json").read_text()) for path in (tmp_path, built))
    assert own.pop("timed_reason") == metrics["reason"] == "no GPU of 8.9 here"
    assert kept.pop("timed_reason").startswith("not asked for")
    assert own == kept
    assert (metrics["source"], metrics["precisions"]["FP32"]["macs"]) == ("plan", 1.0)
    assert metrics["layers_run"] == len(own["profiles"][0]["layers"]) > 1


def test_a_plan_for_another_target_is_refused(built: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="built for sm_89, the target is sm_120"):
        layers.layers(job(built, tmp_path, "12.0"))


@pytest.mark.parametrize("name", ["iterations", "warmup"])
def test_a_number_of_runs_is_not_negative(name: str) -> None:
    with pytest.raises(NotAllowedError, match=name):
        LayersConfig(**{name: -1})
