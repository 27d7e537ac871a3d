"""What the tests that need a GPU share: with which backend they can run here, and if not, why."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stages import backends
from stages.build_config import BuildConfig
from stages.gpus import Gpu, gpus
from tests.stages.stage_runs import facts, run_stage

HERE = gpus()


def why_not(backend: str) -> str | None:
    """Why no GPU of this machine can be built for and run on with the backend; None where one can."""
    if not HERE.found:
        return f"no GPU here: {HERE.reason}"
    if backends.installed_version(backend) is None:
        return f"{backend} is not installed"
    reasons = {gpu: backends.why_not_run(backend, gpu.compute_capability, HERE) for gpu in HERE.found}
    return None if None in reasons.values() else "; ".join(str(reason) for reason in reasons.values())


def on_gpu(*names: str) -> Any:
    """Runs a test for each of the backends that can; the others are skipped, with the reason."""
    marks = {name: pytest.mark.skipif(bool(why_not(name)), reason=str(why_not(name))) for name in names}
    return pytest.mark.parametrize("backend", [pytest.param(name, marks=marks[name]) for name in names])


def gpu_for(backend: str) -> Gpu:
    """The first GPU that the backend can build for and run on."""
    able = (gpu for gpu in HERE.found if backends.why_not_run(backend, gpu.compute_capability, HERE) is None)
    return next(able)


def facts_here(backend: str, profiles: Any = None, **others: Any) -> dict[str, Any]:
    """Of that GPU."""
    found = gpu_for(backend)
    given = {"backend": backend, "backend_version": backends.installed_version(backend), "gpu_here": True}
    name = None if backends.find(backend).portable_across_capability else found.name
    return facts(found.compute_capability, profiles, **given, gpu=name, **others)


def plan_of(
    onnx: Path, given: Mapping[str, Any], out: Path, config: BuildConfig | None = None, **inputs: Path
) -> tuple[dict[str, Any], str]:
    """What a build of `onnx` answers, and its log; the plan is `out / "model.plan"`."""
    return run_stage("build", out, {"onnx": onnx, **inputs}, config, dict(given))
