import subprocess
import sys

import pytest

from stages import backends
from stages.build_config import REFIT
from stages.gpus import Gpu, Gpus
from stages.stage import StageError

NO_GPU = Gpus((), "no NVIDIA driver")
L4 = Gpus((Gpu("NVIDIA L4", "GPU-0", "8.9", 24 << 30),))


@pytest.mark.parametrize("capability", ["7.5", "8.0", "8.6", "8.9", "12.0", "12.1"])
def test_rtx_builds_for_its_capabilities_on_a_machine_without_a_gpu(capability: str) -> None:
    assert backends.why_not_build("tensorrt_rtx", capability, NO_GPU) is None


def test_rtx_names_its_capabilities_when_asked_for_another() -> None:
    reason = backends.why_not_build("tensorrt_rtx", "9.0", L4)
    assert reason and "9.0" in reason and "7.5, 8.0, 8.6, 8.9, 12.0, 12.1" in reason


def test_tensorrt_builds_only_where_the_targets_gpu_is() -> None:
    assert backends.why_not_build("tensorrt", "8.9", L4) is None
    reason = backends.why_not_build("tensorrt", "9.0", L4)
    assert reason and "no GPU of 9.0 here" in reason and "NVIDIA L4 (8.9)" in reason
    assert "no NVIDIA driver" in (backends.why_not_build("tensorrt", "9.0", NO_GPU) or "")


def test_a_plan_runs_only_on_a_gpu_of_its_own_capability() -> None:
    assert backends.why_not_run("tensorrt_rtx", "8.9", L4) is None
    assert backends.why_not_run("tensorrt_rtx", "8.6", L4) == "no GPU of 8.6 here"
    assert backends.why_not_run("tensorrt", "8.9", NO_GPU) == "no GPU of 8.9 here"


def test_rtx_runs_no_plan_on_a_gpu_that_it_has_no_plans_for() -> None:
    h200 = Gpus((Gpu("NVIDIA H200", "GPU-0", "9.0", 139 << 30),))
    assert "has no plans for 9.0" in (backends.why_not_run("tensorrt_rtx", "9.0", h200) or "")
    assert backends.why_not_run("tensorrt", "9.0", h200) is None


def test_a_refittable_rtx_plan_needs_the_gpu_and_an_ordinary_one_does_not() -> None:
    assert backends.why_not_refittable("tensorrt_rtx", "8.9", L4) is None
    assert "no GPU of 8.9 here" in (backends.why_not_refittable("tensorrt_rtx", "8.9", NO_GPU) or "")


def test_the_installed_version_is_the_whole_one_and_none_for_what_is_not_installed() -> None:
    import tensorrt_rtx

    assert backends.installed_version("tensorrt_rtx") == tensorrt_rtx.__version__
    assert len((backends.installed_version("tensorrt_rtx") or "").split(".")) == 4


@pytest.mark.skipif(backends.installed_version("tensorrt") is not None, reason="tensorrt is installed here")
def test_loading_what_is_not_installed_says_how_to_install_it() -> None:
    with pytest.raises(StageError, match="tensorrt is not installed") as caught:
        backends.load("tensorrt")
    assert "trtforge[tensorrt]" in caught.value.next_step


def test_an_unknown_backend_is_answered_with_the_known_ones() -> None:
    with pytest.raises(StageError) as caught:
        backends.find("tensorrt-rtx")
    assert "tensorrt_rtx, tensorrt" in caught.value.next_step


@pytest.mark.parametrize(
    ("version", "supported"),
    [("10.12.0.36", False), ("10.13.3.9", True), ("10.16.1.11", True), ("11.4.0.106", True), ("12.0.0", False)],
)
def test_tensorrt_is_supported_from_10_13_to_11(version: str, supported: bool) -> None:
    assert (backends.why_not_supported("tensorrt", version) is None) == supported


def test_versions_agree_in_the_numbers_that_both_give() -> None:
    assert backends.same_version("10.3.0", "10.3.0.26")
    assert not backends.same_version("1.7.1.116", "1.7.2.116")


def test_the_refit_flag_came_with_10_14() -> None:
    assert not backends.has_refit_flag("tensorrt", "10.13.3.9")
    assert backends.has_refit_flag("tensorrt", "10.14.1.48") and backends.has_refit_flag("tensorrt_rtx", "1.7.1.116")


def test_what_is_known_of_a_version_is_told_of_all_its_builds_and_of_no_other() -> None:
    assert backends.known_bad("tensorrt", "11.3.0.99", "any") is backends.known_bad("tensorrt", "11.3.1", "named")
    assert backends.known_bad("tensorrt", "11.3", "any") in backends.KNOWN_BAD
    for version, refit in (("11.2.1.2", "any"), ("11.4.0.106", "any"), ("11.3.0.99", "identical")):
        assert backends.known_bad("tensorrt", version, refit) is None
    assert backends.known_bad("tensorrt_rtx", "11.3.0.99", "any") is None


def test_what_is_known_to_go_wrong_is_about_words_of_the_config_and_says_what_to_do() -> None:
    for bad in backends.KNOWN_BAD:
        assert {*bad.refit} <= {*REFIT} - {"none"} and bad.backend in backends.BACKENDS
        assert backends.is_before(bad.since, bad.below) and bad.what and bad.instead


def test_the_stages_that_need_heavy_packages_import_without_them() -> None:
    names = ("build", "refit", "validate", "publish", "gates", "plan", "backends", "gpus")
    heavy = ("numpy", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "polygraphy", "cuda")
    code = f"import sys; sys.modules.update(dict.fromkeys({heavy}));" + ";".join(f"import stages.{n}" for n in names)
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr


def test_rtx_builds_one_plan_for_several_capabilities_and_names_those_that_it_does_not_build_for() -> None:
    assert backends.why_not_build("tensorrt_rtx", "8.0,8.9,12.0", NO_GPU) is None
    assert (backends.why_not_build("tensorrt_rtx", "8.9,9.0,10.0", L4) or "").endswith("not for 9.0, 10.0")


def test_tensorrt_refuses_several_capabilities_with_the_setting_that_does_it() -> None:
    reason = backends.why_not_build("tensorrt", "8.6,8.9", L4) or ""
    assert "not for 8.6 or 8.9 at once" in reason and "hardware_compatibility_level=ampere_plus" in reason


def test_a_plan_for_several_capabilities_runs_on_a_gpu_of_any() -> None:
    assert backends.why_not_run("tensorrt_rtx", "8.6,8.9", L4) is None
    assert backends.why_not_run("tensorrt_rtx", "8.0,8.6,12.0", L4) == "no GPU of 8.0, 8.6 or 12.0 here"
