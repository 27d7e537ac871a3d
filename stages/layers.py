"""Stage `layers`: the report of a plan's layers, `stages.layer_report`, with what a GPU here knows of them.

Where a GPU of the plan is in the machine, TensorRT itself is asked (`stages.engine_layers`): for the layers of a plan
that holds no text of them, and for the time of each. Elsewhere the report is what the plan says, as `build` writes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stages import backends, engine_layers, layer_report, plan
from stages.allowed import require_at_least
from stages.engine_layers import Timing
from stages.stage import Job, Metrics, Stage


@dataclass(frozen=True)
class LayersConfig:
    """How layers are timed where there is a GPU.

    Attributes:
        iterations: Runs that are timed, of which each layer's time is the mean; 0: none is.
        warmup: Runs before these.
    """

    iterations: int = 20
    warmup: int = 5

    def __post_init__(self) -> None:
        require_at_least(self, 0, "iterations", "warmup")


def layers(job: Job[LayersConfig]) -> Metrics:
    """Writes the report of `plan`; of `onnx`, which it was built from, come operators and MACs.

    Returns:
        Metrics: `layers_run` and `precisions` as `layer_report.metrics` gives them, the report's `source`, and the
        `reason` for no layers or no times.

    Raises:
        StageError: The plan is damaged, not for the target, or cannot be executed on the GPU that is there.
    """
    facts = job.facts
    header = plan.read(job.file("plan"))
    plan.check(header, facts["backend"], facts["backend_version"], facts["compute_capability"])
    model = layer_report.model_of(job.inputs.get("onnx"))
    report = layer_report.of_plan(job.file("plan"), model, facts["profiles"])
    if facts["gpu_here"]:
        report = engine_layers.asked(report, job, model, Timing(job.config.iterations, job.config.warmup))
    else:
        report = replace(report, timed_reason=backends.no_gpu(facts["compute_capability"]))
    layer_report.write(report, job.out / layer_report.FILE)
    return {
        **layer_report.metrics(report),
        "source": report.source,
        "reason": report.unread_reason or report.timed_reason,
    }


STAGE = Stage(
    name="layers",
    version=1,
    config=LayersConfig,
    run=layers,
    inputs=("plan",),
    optional=("onnx", "plugins"),
    outputs={"layers": layer_report.FILE},
    facts=("backend", "backend_version", "compute_capability", "gpu_here", "profiles", "machine"),
    tools=("onnx", "onnxruntime", "numpy"),
    uses_gpu=True,
    measures_time=True,
)
