"""The command line on a machine with a GPU: `targets=[local]`, by either backend.

docs/gpu-testing.md says how to run these; without a GPU each is skipped, with the reason.
"""

from __future__ import annotations

import pytest

from stages.gpus import why_no_precision
from tests.stages.on_gpu import gpu_for, on_gpu

pytestmark = pytest.mark.gpu

FLOWS = {"fp32": "fp32", "fp16": "fp16", "bf16": "bf16", "int8": "int8", "fp8": "fp8"}
"""Flows, and the precision that each needs."""


def local(backend, *others):
    """The overrides for the GPU that the backend can build for and run on."""
    capability = gpu_for(backend).compute_capability
    return (f"backend={backend}", "targets=[local]", f"targets.local.compute_capability='{capability}'", *others)


@on_gpu("tensorrt", "tensorrt_rtx")
@pytest.mark.parametrize("flow", FLOWS)
def test_a_flow_ends_with_a_plan_that_was_executed_here(backend, flow, forge):
    if reason := why_no_precision(FLOWS[flow], gpu_for(backend).compute_capability):
        pytest.skip(reason)
    ran = forge.build(*local(backend, f"flow={flow}"))
    assert ran.code == 0, ran.err
    (plan,) = ran.document["plans"]
    assert plan["backend"] == backend and plan["validated"]
    metrics = ran.step("validate", "local")["metrics"]
    assert metrics["engine_executed"] is True and metrics["engine"]["cosine"] > 0.99
    assert {*forge.build(*local(backend, f"flow={flow}")).states().values()} == {"cached"}


@on_gpu("tensorrt", "tensorrt_rtx")
def test_the_flow_refit_puts_weights_into_the_plan_here(backend, forge):
    ran = forge.build(*local(backend, "flow=refit"))
    assert ran.code == 0, ran.err
    assert ran.step("refit", "local")["metrics"]["method"] == "refit"
    assert ran.step("validate", "local")["metrics"]["engine"]["cosine"] > 0.999


@on_gpu("tensorrt")
def test_of_two_backends_each_target_is_built_by_its_own(backend, forge):
    others = ("flow=fp32", "targets=[local,portable]", "targets.portable.backend=tensorrt_rtx")
    ran = forge.build(*local(backend)[:1], *others)
    assert ran.code == 0, ran.err
    assert {plan["target"]: plan["backend"] for plan in ran.document["plans"]} == {
        "local": "tensorrt",
        "portable": "tensorrt_rtx",
    }


@on_gpu("tensorrt", "tensorrt_rtx")
def test_ctrl_c_ends_a_build_on_the_gpu(backend, forge, child_of, interrupt):
    arguments = local(backend, "flow=fp32", "steps.build.config.optimization_level=5")
    build = forge.start("build", "runner=local", *arguments)
    child_of(build, "build")
    code, seconds = interrupt(build)
    assert code == 130 and seconds < 2
