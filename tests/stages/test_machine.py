"""The machine that a time was measured on."""

from __future__ import annotations

from stages.gpus import Gpu
from stages.machine import described


def test_the_machine_is_told_by_its_cpu_its_cores_and_no_gpu_where_none_is() -> None:
    told = described("NVIDIA L4", ())
    assert told["cpu"] and told["gpu"] is None and int(str(told["cores"])) >= 1


def test_of_the_gpus_that_can_the_targets_own_is_the_one() -> None:
    able = [Gpu(name, f"GPU-{name}", "8.9", 1) for name in ("NVIDIA L40S", "NVIDIA L4")]
    assert described("NVIDIA L4", able)["gpu"] == "NVIDIA L4"
    assert described("NVIDIA RTX 4090", able)["gpu"] == "NVIDIA L40S"
