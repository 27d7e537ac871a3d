"""Builds a quantized model for every capability, and counts what the plan's own graph reads.

    python -m benchmarks.calibration.plans NAME MODEL CAPABILITY OUT

prints a line of JSON: convolutions and matrix products by what they read, `{"corrltn": {"int8": 53}}`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.models import SUBJECTS
from stages import backends, build, plan_graph
from stages.stage import Job

BACKEND = "tensorrt_rtx"


def built(name: str, model: Path, compute_capability: str, out: Path) -> dict[str, dict[str, int]]:
    """What the plan of `model` for one capability reads."""
    facts: dict[str, Any] = {
        "backend": BACKEND,
        "backend_version": backends.installed_version(BACKEND),
        "compute_capability": compute_capability,
        "gpu": None,
        "platform": "linux_x86_64",
        "profiles": SUBJECTS[name].profile,
        "gpu_here": False,
    }
    build.STAGE.run(Job(build.STAGE.config(), {"onnx": [model]}, facts, out))
    return plan_graph.counts(plan_graph.read(out / build.STAGE.outputs["plan"])[0].operations)


if __name__ == "__main__":
    print(json.dumps(built(sys.argv[1], Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))))
