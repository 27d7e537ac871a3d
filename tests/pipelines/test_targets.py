"""A target that lacks what a step makes is refused by name, before a model is even read."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from conf.schema import Backend, Config, Target
from pipelines import targets
from pipelines.errors import CannotBuildError
from stages import STAGES, backends
from stages.gpus import PRECISIONS, Gpu, Gpus
from tests.pipelines.planning import plan, question

REFUSED = [
    (["flow=bf16", "targets=[t4]"], "step cast asks for bf16; target t4: bf16 needs compute capability 8.0"),
    (["flow=fp16", "targets=[t4]", "steps.cast.config.layers={*conv*: bf16}"], "step cast asks for bf16; target t4"),
    (["flow=int4_weights", "targets=[t4]"], "step quantize asks for int4; target t4"),
    (["flow=nvfp4_weights", "targets=[l4]"], "step quantize asks for nvfp4; target l4: nvfp4 needs"),
    (["flow=int8", "steps.quantize.config.precision=fp8", "targets=[a10]"], "step quantize asks for fp8; target a10"),
    (
        ["flow=fp8", "targets=[portable]"],
        "target portable: fp8 needs compute capability 8.9 or higher, the target has 8.0",
    ),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED)
def test_a_precision_that_a_target_lacks_is_refused_before_anything_runs(
    overrides: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, overrides)
    assert words in caught.value.what
    assert not list(tmp_path.glob("records/*"))


def test_the_targets_that_have_it_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, ["flow=nvfp4_weights", "targets=[l4,rtx5090,a10]"])
    assert "target l4: nvfp4 needs compute capability 10.0 or higher, the target has 8.9" in caught.value.what
    assert "target a10: nvfp4" in caught.value.what
    assert "targets=[rtx5090]" in caught.value.next_step
    assert "these have it: dgx_spark, rtx5090, rtx_pro_6000" in caught.value.next_step  # RTX builds for no b200
    assert "b200" not in caught.value.next_step


@pytest.mark.parametrize(
    "overrides",
    [
        ["flow=fp16", "targets=[t4]"],
        ["flow=int8_fp16", "targets=[t4,a100]"],
        ["flow=nvfp4_weights", "targets=[rtx5090]"],
    ],
)
def test_what_a_target_has_is_planned(overrides: list[str], tmp_path: Path) -> None:
    assert plan(tmp_path, overrides).nodes


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_asks_for_precisions_that_the_table_of_gpus_knows(name: str) -> None:
    stage = STAGES[name]
    if name not in ("publish", "keep_float"):  # their configs have no defaults
        assert set(stage.precisions(stage.config())) <= set(PRECISIONS)


@pytest.mark.parametrize("flow", ["int8", "fp32"])
def test_float32_products_where_the_backend_has_none_are_refused_by_target_and_node(flow: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, [f"flow={flow}", "targets=[t4,l4]"])
    assert f"flow {flow}: target t4: tensorrt_rtx multiplies no float32 matrices on 7.5" in caught.value.what
    assert "node_linear (Gemm)" in caught.value.what
    assert "flow=int8_fp16" in caught.value.next_step and "targets=[l4]" in caught.value.next_step


def test_a_plan_for_7_5_and_others_has_the_limits_of_7_5(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"target l4: tensorrt_rtx multiplies no float32 matrices on 7\.5"):
        plan(tmp_path, ["flow=fp32", "targets=[l4]", "targets.l4.compute_capability='8.9,7.5'"])


def test_what_a_pass_may_take_out_is_left_to_the_builder(tmp_path: Path) -> None:
    extract = "steps.surgery.config.then=[{pass: extract, outputs: [relu]}]"
    assert plan(tmp_path, ["flow=fp32", "targets=[t4]", extract]).nodes


# One plan for several capabilities


def test_a_plan_for_several_has_all_of_them_in_its_key_and_in_its_place(tmp_path: Path) -> None:
    session = plan(tmp_path, ["targets=[portable]"])
    build = next(node for node in session.nodes if node.step == "build")
    assert question(session, build)["facts"]["compute_capability"] == "8.0,8.6,8.9,12.0,12.1"  # type: ignore[index]
    assert session.targets[0].architecture == "sm_80_86_89_120_121"


@pytest.mark.parametrize("text", ["8.9,8.6", "8.6, 8.9,8.6"])
def test_however_it_is_written_it_is_one_target(text: str) -> None:
    assert Target("l4", "NVIDIA L4", text).compute_capability == "8.6,8.9"


def test_what_is_no_capability_is_refused_with_its_key() -> None:
    with pytest.raises(ConfigError, match=r"targets\.l4\.compute_capability: got '8\.9,89'; allowed: such as"):
        compose(["targets=[l4]", "targets.l4.compute_capability='8.9,89'"])


def test_tensorrt_refuses_several_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "installed_version", lambda name: "10.13.3.9")
    with pytest.raises(CannotBuildError, match=r"portable: tensorrt builds for the GPU it runs on, not for 8\.0, 8\.6"):
        plan(tmp_path, ["targets=[portable]", "backend=tensorrt"])


# The GPU of this machine

A10, L4 = Gpu("NVIDIA A10", "GPU-1", "8.6", 24 << 30), Gpu("NVIDIA L4", "GPU-2", "8.9", 23 << 30)


def local(
    monkeypatch: pytest.MonkeyPatch, here: Gpus, gpu: str = "local", compute_capability: str = "local"
) -> tuple[targets.BuildTarget, list[str]]:
    """The target `local` on a machine with these GPUs, and what was noted."""
    monkeypatch.setattr(targets, "gpus_here", lambda: here)
    notes: list[str] = []
    asked = Config(targets={"local": Target("local", gpu, compute_capability)}, backend=Backend("tensorrt_rtx"))
    (target,) = targets.resolve(asked, notes.append)
    return target, notes


def test_local_is_the_gpu_that_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    target, notes = local(monkeypatch, Gpus((L4, L4)))
    assert (target.gpu, target.compute_capability, target.memory_bytes) == ("NVIDIA L4", "8.9", 23 << 30)
    assert not notes


def test_of_several_kinds_local_takes_the_first_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    target, (note,) = local(monkeypatch, Gpus((A10, L4)))
    assert target.gpu == "NVIDIA A10"
    assert "NVIDIA A10 (8.6) is taken, and NVIDIA L4 (8.9) is here too" in note
    assert "targets.local.compute_capability" in note and "CUDA_VISIBLE_DEVICES" in note


def test_local_takes_the_gpu_of_the_capability_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    target, notes = local(monkeypatch, Gpus((A10, L4)), compute_capability="8.9")
    assert (target.gpu, target.compute_capability, notes) == ("NVIDIA L4", "8.9", [])


@pytest.mark.parametrize(
    ("here", "asked", "words"),
    [
        (Gpus((), "no NVIDIA driver is loaded"), {}, "no GPU to ask: no NVIDIA driver is loaded"),
        (Gpus((A10,)), {"compute_capability": "8.9"}, "there is no 8.9 here: NVIDIA A10 (8.6)"),
        (Gpus((A10,)), {"gpu": "NVIDIA L4"}, "there is no NVIDIA L4 (local) here: NVIDIA A10 (8.6)"),
    ],
)
def test_local_without_such_a_gpu_says_what_is_here(
    here: Gpus, asked: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CannotBuildError) as caught:
        local(monkeypatch, here, **asked)
    assert words in caught.value.what


@pytest.mark.skipif(backends.installed_version("tensorrt") is not None, reason="tensorrt is installed here")
def test_targets_that_no_one_can_build_for_one_reason_are_told_together() -> None:
    with pytest.raises(CannotBuildError, match=r"can build a10, l4: tensorrt is not installed \(pip install "):
        targets.resolve(compose(["backend=tensorrt", "targets=[a10,l4]"]))
