from pathlib import Path

import pytest

from stages.gpus import gpus
from tests.stages.stage_runs import classifier, conv, facts, run_stage


def built(tmp_path: Path) -> Path:
    run_stage("build", tmp_path / "built", {"onnx": conv(tmp_path / "old.onnx")})
    return tmp_path / "built" / "model.plan"


def test_without_a_gpu_the_plan_is_built_again_from_the_new_weights(tmp_path: Path) -> None:
    new = classifier(tmp_path / "new.onnx", batch=1)
    answer, _ = run_stage("refit", tmp_path / "refitted", {"plan": built(tmp_path), "onnx": new})
    metrics = answer["metrics"]
    assert metrics["method"] == "rebuild" and metrics["reason"] == "no GPU of 8.9 here"
    assert metrics["refittable"] is False

    run_stage("build", tmp_path / "ordinary", {"onnx": new})
    rebuilt = (tmp_path / "refitted" / "model.plan").read_bytes()
    assert rebuilt == (tmp_path / "ordinary" / "model.plan").read_bytes()


def test_a_rebuild_takes_its_own_build_config(tmp_path: Path) -> None:
    new = classifier(tmp_path / "new.onnx", batch=1)
    code = {"build": {"tf32": False}, "fallback": "rebuild"}
    answer, _ = run_stage("refit", tmp_path / "out", {"plan": built(tmp_path), "onnx": new}, code)
    assert answer["metrics"]["method"] == "rebuild"
    run_stage("build", tmp_path / "tf32", {"onnx": new})
    assert (tmp_path / "out" / "model.plan").read_bytes() != (tmp_path / "tf32" / "model.plan").read_bytes()


def test_without_a_gpu_and_without_fallback_it_fails_and_says_where_it_can_run(tmp_path: Path) -> None:
    inputs = {"plan": built(tmp_path), "onnx": tmp_path / "old.onnx"}
    answer, _ = run_stage("refit", tmp_path / "out", inputs, {"fallback": "fail"})
    assert answer["what"] == "the plan cannot be refitted here: no GPU of 8.9 here"
    assert "fallback: rebuild" in answer["next"]


def test_a_plan_for_another_target_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    inputs = {"plan": built(tmp_path), "onnx": tmp_path / "old.onnx"}
    answer, _ = run_stage("refit", tmp_path / "out", inputs, given=facts("8.6"))
    assert "plan was built for sm_89, the target is sm_86" in answer["what"]
    assert not (tmp_path / "out" / "model.plan").exists()


def test_a_claim_of_a_gpu_that_is_not_here_is_refused(tmp_path: Path) -> None:
    if gpus().of("8.9"):
        pytest.skip("this machine has a GPU of 8.9")
    inputs = {"plan": built(tmp_path), "onnx": tmp_path / "old.onnx"}
    answer, _ = run_stage("refit", tmp_path / "out", inputs, given=facts(gpu_here=True))
    assert "no GPU of 8.9 here" in answer["what"]
