import os
import shutil
import subprocess
import sys

import pytest

from stages.gpus import (
    PRECISIONS,
    Gpu,
    Gpus,
    architecture,
    capabilities,
    capability,
    gpus,
    spelled,
    use,
    why_no_precision,
)
from stages.stage import StageError

HAS_GPU = shutil.which("nvidia-smi") is not None


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_a_machine_without_a_driver_has_no_gpus_and_says_why() -> None:
    here = gpus()
    assert here.found == ()
    assert here.reason


@pytest.mark.skipif(HAS_GPU, reason="this machine has a GPU")
def test_using_a_gpu_that_is_not_here_says_what_is() -> None:
    with pytest.raises(StageError, match=r"no GPU of 8\.9 here: this machine has none"):
        use("8.9")


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU here: the driver API finds none")
def test_the_driver_api_and_nvidia_smi_see_the_same_gpus() -> None:
    query = ["nvidia-smi", "--query-gpu=name,uuid,compute_cap", "--format=csv,noheader"]
    lines = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()
    expected = {tuple(field.strip() for field in line.split(",")) for line in lines}
    assert {(gpu.name, gpu.uuid, gpu.compute_capability) for gpu in gpus().found} == expected
    assert all(gpu.memory_bytes > 1 << 30 for gpu in gpus().found)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU here: the driver API finds none")
def test_the_gpu_of_a_capability_can_be_made_current() -> None:
    code = (
        "from stages.gpus import gpus, use; from cuda.bindings import driver; g = gpus().found[0];"
        "use(g.compute_capability, g.name); print(int(driver.cuCtxGetDevice()[1]))"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.stdout.strip() == "0", child.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_GPU, reason="no GPU here: nothing to hide")
def test_hidden_gpus_are_not_found_and_the_reason_is_cudas() -> None:
    code = "from stages.gpus import gpus; print(gpus())"
    hidden = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=hidden)
    assert "CUDA_ERROR_NO_DEVICE" in child.stdout, child.stderr


def test_gpus_are_found_by_their_exact_capability() -> None:
    l4, a10 = Gpu("NVIDIA L4", "GPU-1", "8.9", 1), Gpu("NVIDIA A10", "GPU-2", "8.6", 1)
    assert Gpus((l4, a10)).of("8.6") == (a10,)
    assert Gpus((l4, a10)).of("8.0") == ()
    assert str(Gpus((l4, a10))) == "NVIDIA L4 (8.9), NVIDIA A10 (8.6)"


@pytest.mark.parametrize(
    ("precision", "lacks", "has"),
    [("bf16", "7.5", "8.0"), ("fp8", "8.6", "8.9"), ("int4", "7.5", "8.0"), ("nvfp4", "8.9", "12.0")],
)
def test_a_precision_begins_at_its_capability(precision: str, lacks: str, has: str) -> None:
    reason = why_no_precision(precision, lacks)
    assert reason and precision in reason and lacks in reason and PRECISIONS[precision] in reason
    assert why_no_precision(precision, has) is None


def test_capabilities_compare_as_numbers() -> None:
    assert capability("12.0") > capability("8.9")


@pytest.mark.parametrize("text", ["89", "sm_89", "8.", "", "8.9.0", "8.x"])
def test_what_is_no_capability_is_refused(text: str) -> None:
    with pytest.raises(StageError, match="is no compute capability"):
        capability(text)


def test_an_unknown_precision_is_answered_with_the_known_ones() -> None:
    with pytest.raises(StageError) as caught:
        why_no_precision("fp15", "8.9")
    assert "fp16" in caught.value.next_step


@pytest.mark.parametrize(
    ("text", "found", "path", "told"),
    [
        ("8.9", ("8.9",), "sm_89", "8.9"),
        ("8.9, 12.0,8.0,8.9", ("8.0", "8.9", "12.0"), "sm_80_89_120", "8.0, 8.9 or 12.0"),
    ],
)
def test_several_capabilities_are_read_once_each_and_lowest_first(
    text: str, found: tuple[str, ...], path: str, told: str
) -> None:
    assert (capabilities(text), architecture(text), spelled(text)) == (found, path, told)


@pytest.mark.parametrize("text", ["8.0,", "8.0,89", "local", "8.0 8.6"])
def test_one_that_is_no_capability_among_several_is_refused(text: str) -> None:
    with pytest.raises(StageError, match="is no compute capability"):
        capabilities(text)


def test_several_capabilities_have_what_the_lowest_of_them_has() -> None:
    assert why_no_precision("bf16", "8.9,8.0") is None
    assert why_no_precision("fp8", "12.0,8.9,8.0") == "fp8 needs compute capability 8.9 or higher, the target has 8.0"


def test_any_gpu_of_several_capabilities_counts() -> None:
    l4, a10 = Gpu("NVIDIA L4", "GPU-1", "8.9", 1), Gpu("NVIDIA A10", "GPU-2", "8.6", 1)
    assert Gpus((l4, a10)).of("8.0,8.6") == (a10,)
    assert Gpus((l4, a10)).of("8.6,8.9") == (l4, a10)
