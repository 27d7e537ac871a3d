"""Plans that are built, executed, refitted and refused on a real GPU, by either backend.

docs/gpu-testing.md says how to run these; without a GPU each is skipped, with the reason.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from stages import backends, plan
from stages.build_config import BuildConfig
from stages.gpus import use
from stages.knobs import KNOBS
from stages.refit import RefitConfig
from tests.stages.knob_values import configured
from tests.stages.on_gpu import facts_here, gpu_for, on_gpu, plan_of
from tests.stages.shape_tensors import ranges, shaper
from tests.stages.stage_runs import PROFILE, classifier, model, parts, run_stage, save

pytestmark = pytest.mark.gpu

PLUGINS = """
void *const *getCreators(int *count) { *count = 0; return 0; }
void setLoggerFinder(void *finder) { (void)finder; }
"""
TWO = {
    "large": {"x": {"min": [16, 4, 8, 8], "opt": [32, 4, 8, 8], "max": [64, 4, 8, 8]}},
    "small": {"x": {"min": [1, 4, 8, 8], "opt": [1, 4, 8, 8], "max": [2, 4, 8, 8]}},
}
OTHER_HARDWARE = {"default_device_type", "dla_core", "layer_device_types", "engine_capability", "safety_scope"}
OTHER_HARDWARE |= {"remote_auto_tuning_config", "runtime_platform", "preview_features.multidevice_runtime_10_16"}
OTHER_HARDWARE |= {f"memory_pools.dla_{name}" for name in ("managed_sram", "local_dram", "global_dram")}
"""Knobs for what most machines with a GPU lack: there the build may say so, and may not crash."""


def executed(reference: Path, onnx: Path, directory: Path, given: dict[str, Any]) -> dict[str, Any]:
    """What validation says of the plan in `directory`, executed here."""
    inputs = {"reference": reference, "onnx": onnx, "plan": directory / "model.plan"}
    answer, log = run_stage("validate", directory / "validated", inputs, given=given)
    assert "metrics" in answer, (answer, log[-2000:])
    assert answer["metrics"]["engine_executed"] is True
    return dict(answer["metrics"])


@on_gpu("tensorrt", "tensorrt_rtx")
def test_a_plan_is_built_executed_and_compared(backend: str, tmp_path: Path) -> None:
    path, given = classifier(tmp_path / "model.onnx"), facts_here(backend, PROFILE)
    answer, log = plan_of(path, given, tmp_path)
    assert answer.get("metrics", {}).get("backend_version") == given["backend_version"], (answer, log[-2000:])
    assert plan.read(tmp_path / "model.plan").backend == backend
    assert executed(path, path, tmp_path, given)["engine"]["cosine"] > 0.999


@on_gpu("tensorrt", "tensorrt_rtx")
def test_a_plan_in_float16_is_executed_and_compared(backend: str, tmp_path: Path) -> None:
    exact, half = classifier(tmp_path / "exact.onnx"), classifier(tmp_path / "half.onnx", np.float16)
    given = facts_here(backend, PROFILE)
    answer, log = plan_of(half, given, tmp_path)
    assert "metrics" in answer, (answer, log[-2000:])
    assert executed(exact, half, tmp_path, given)["engine"]["cosine"] > 0.999


@on_gpu("tensorrt", "tensorrt_rtx")
def test_batches_go_to_the_profile_that_takes_them(backend: str, tmp_path: Path) -> None:
    path, given = classifier(tmp_path / "model.onnx"), facts_here(backend, TWO)
    answer, log = plan_of(path, given, tmp_path)
    assert "metrics" in answer, (answer, log[-2000:])
    metrics = executed(path, path, tmp_path, given)
    assert metrics["samples"] >= 64 and metrics["engine"]["cosine"] > 0.999


@on_gpu("tensorrt", "tensorrt_rtx")
def test_inputs_that_hold_a_shape_are_given_to_the_engine(backend: str, tmp_path: Path) -> None:
    path, given = shaper(tmp_path / "model.onnx"), facts_here(backend, {"default": ranges()})
    answer, log = plan_of(path, given, tmp_path)
    assert "metrics" in answer, (answer, log[-2000:])
    assert executed(path, path, tmp_path, given)["engine"]["cosine"] > 0.999


def refitted(
    plan: Path, onnx: Path, out: Path, given: dict[str, Any], patterns: Sequence[str] = ()
) -> tuple[dict[str, Any], str]:
    """What a refit of `plan` with the weights of `onnx`, or those that fit, answers, and its log; it does not build."""
    inputs = {"plan": plan, **parts(onnx, out.with_suffix(".parts"), patterns)}
    return run_stage("refit", out, inputs, RefitConfig(fallback="fail"), given)


@on_gpu("tensorrt", "tensorrt_rtx")
@pytest.mark.parametrize("mode", ["any", "identical", "named"])
def test_weights_are_put_into_a_plan(backend: str, mode: str, tmp_path: Path) -> None:
    """That came without them: with `identical` the same are put in, with `named` those of the last layer."""
    noise = 0.0 if mode == "identical" else 0.5
    old, new = (classifier(tmp_path / f"{name}.onnx", batch=1, noise=n) for name, n in (("old", 0.0), ("new", noise)))
    given, patterns = facts_here(backend), ["g"] if mode == "named" else []
    config = BuildConfig(refit=mode, refittable_weights=patterns, strip_plan=True)
    onnx = old if mode == "identical" else parts(old, tmp_path / "old.parts", patterns)["structure"]
    answer, log = plan_of(onnx, given, tmp_path / "built", config)
    assert answer.get("metrics", {}).get("refittable") is True, (answer, log[-2000:])
    answer, log = refitted(tmp_path / "built/model.plan", new, tmp_path / "refitted", given, patterns=patterns)
    assert answer.get("metrics", {}).get("method") == "refit", (answer, log[-2000:])
    assert answer["metrics"]["compared"]["difference"] <= answer["metrics"]["compared"]["allowed"]
    assert answer["metrics"]["weights"] >= (1 if mode == "named" else 2)
    assert executed(new, new, tmp_path / "refitted", given)["engine"]["cosine"] > 0.999


@on_gpu("tensorrt", "tensorrt_rtx")
def test_a_refitted_plan_can_be_refitted_again(backend: str, tmp_path: Path) -> None:
    given = facts_here(backend)
    if not backends.has_refit_flag(backend, given["backend_version"]):
        pytest.skip(f"{backend} {given['backend_version']} has no SerializationFlag.INCLUDE_REFIT")
    models = [classifier(tmp_path / f"{noise}.onnx", batch=1, noise=noise) for noise in (0.0, 0.3, 0.6)]
    plan_of(models[0], given, tmp_path / "0", BuildConfig(refit="any"))
    for number, onnx in enumerate(models[1:], 1):
        answer, log = refitted(tmp_path / f"{number - 1}/model.plan", onnx, tmp_path / str(number), given)
        assert answer.get("metrics", {}).get("method") == "refit", (answer, log[-2000:])
    assert executed(models[2], models[2], tmp_path / "2", given)["engine"]["cosine"] > 0.999


@on_gpu("tensorrt", "tensorrt_rtx")
def test_weights_that_the_plan_does_not_take_are_noticed_by_what_it_computes(backend: str, tmp_path: Path) -> None:
    """The plan takes the kernel alone, and keeps a matrix that the new model has not."""
    old, new = (classifier(tmp_path / f"{noise}.onnx", batch=1, noise=noise) for noise in (0.0, 0.5))
    given = facts_here(backend)
    answer, log = plan_of(old, given, tmp_path / "built", BuildConfig(refit="named", refittable_weights=["w"]))
    assert answer.get("metrics", {}).get("refittable") is True, (answer, log[-2000:])
    answer, _ = refitted(tmp_path / "built/model.plan", new, tmp_path / "refitted", given)
    assert "computes something else than the model: output 'logits' differs by" in answer["what"]
    assert not [*(tmp_path / "refitted").iterdir()]


@on_gpu("tensorrt", "tensorrt_rtx")
def test_an_ordinary_plan_takes_no_other_weights(backend: str, tmp_path: Path) -> None:
    path, given = classifier(tmp_path / "model.onnx", batch=1), facts_here(backend)
    plan_of(path, given, tmp_path / "built")
    answer, _ = refitted(tmp_path / "built/model.plan", path, tmp_path / "out", given)
    assert "it was built without refit" in answer["what"]


@on_gpu("tensorrt")
@pytest.mark.parametrize("path", [knob.path for knob in KNOBS])
def test_every_knob_of_the_version_builds_a_plan_that_runs(backend: str, path: str, tmp_path: Path) -> None:
    given = facts_here(backend, PROFILE)
    if not next(knob for knob in KNOBS if knob.path == path).tensorrt.has(given["backend_version"]):
        pytest.skip(f"{backend} {given['backend_version']} has no {path}")
    (tmp_path / "mine.c").write_text(PLUGINS)
    library = tmp_path / "libmine.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "mine.c"], check=True)
    onnx = classifier(tmp_path / "model.onnx")
    answer, log = plan_of(onnx, given, tmp_path, configured(path), plugins=library)
    if path in OTHER_HARDWARE and "what" in answer:
        assert answer["next"], answer
        return
    assert "metrics" in answer, (answer, log[-2000:])
    if path not in OTHER_HARDWARE and not configured(path).refittable and path != "require_user_allocation":
        assert executed(onnx, onnx, tmp_path, given)["engine"]["cosine"] > 0.999


@on_gpu("tensorrt", "tensorrt_rtx")
def test_a_plan_that_was_cut_off_is_refused_in_words(backend: str, tmp_path: Path) -> None:
    path, given = classifier(tmp_path / "model.onnx"), facts_here(backend, PROFILE)
    plan_of(path, given, tmp_path)
    whole = (tmp_path / "model.plan").read_bytes()
    (tmp_path / "model.plan").write_bytes(whole[: len(whole) // 2])
    inputs = {"reference": path, "onnx": path, "plan": tmp_path / "model.plan"}
    answer, _ = run_stage("validate", tmp_path / "out", inputs, given=given)
    assert "plan" in answer["what"] and answer["next"]


@pytest.fixture
def full_gpu() -> Iterator[None]:
    """All but 64 MiB of the GPU's memory belongs to this process."""
    from cuda.bindings import driver

    use(gpu_for("tensorrt").compute_capability)
    _, free_bytes, _ = driver.cuMemGetInfo()
    code, held = driver.cuMemAlloc(free_bytes - (64 << 20))
    assert code == driver.CUresult.CUDA_SUCCESS
    yield
    driver.cuMemFree(held)


@on_gpu("tensorrt")
def test_a_build_on_a_gpu_whose_memory_is_taken_says_so(backend: str, full_gpu: None, tmp_path: Path) -> None:
    matrix = np.random.default_rng(0).standard_normal((8192, 8192)).astype(np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    onnx = save(model([node], {"x": [8192, 8192]}, {"y": [8192, 8192]}, {"w": matrix}), tmp_path / "model.onnx")
    answer, log = plan_of(onnx, facts_here(backend), tmp_path)
    assert re.search("out of (device )?memory", answer.get("what", "")), (answer, log[-2000:])
