"""Stage `validate`: how far the model that was built is from the model as it was given.

Without a GPU the numbers come from ONNX Runtime on the exact ONNX that the builder was given; with one, the plan itself
is executed too. The report says which.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import backends, batches, network, plan, profiles
from stages.allowed import require_at_least
from stages.comparison import RELATIVE_FLOOR, Comparison
from stages.data import reading
from stages.generated import declared, generate
from stages.gpus import use
from stages.runtimes import Runtime, open_onnx, open_plan, profile_index
from stages.stage import JSON, Job, Metrics, Stage, StageError

if TYPE_CHECKING:
    from stages.batches import Array, Batch, Input


BATCH_SIZE = 32
"""Samples of held-out data a run where `model.holdout.batch_size` says nothing, at most what a profile admits."""


@dataclass(frozen=True)
class ValidateConfig:
    """On what to compare.

    Attributes:
        labels: The name of the label array in the held-out data; None: no accuracy.
        generated_samples: Runs on generated inputs where no held-out data is given, at least one for each shape.
        seed: Of the generated inputs.
    """

    labels: str | None = None
    generated_samples: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        require_at_least(self, 1, "generated_samples")
        require_at_least(self, 0, "seed")


def validate(job: Job[ValidateConfig]) -> Metrics:
    """Runs `reference` and `onnx`, and `plan` where a GPU here can, and compares every output.

    Returns:
        Metrics: the report's `summary`: the worst of each number over the outputs, `inputs` (`held-out`,
        `random` or `generated`), `samples`, `runtime`, `engine_executed`, `reason` of not, and `engine`: the same
        numbers of the engine, or None.

    Raises:
        StageError: Inputs, outputs, labels or data do not fit, an output is not finite, or nothing can run a model.
    """
    _check_labels(job)
    reason = _check_plan(job)
    found = profiles.profiles_of(job.facts["profiles"])
    job.progress("load", None)
    reference, candidate = open_onnx(job.inputs["reference"]), open_onnx(job.inputs["onnx"])
    comparisons = {"the candidate": Comparison("the candidate")}
    with ExitStack() as stack:
        runtimes = {"the candidate": candidate}
        if reason is None:
            use(job.facts["compute_capability"])
            if job.inputs.get("plugins"):
                registry = backends.load(job.facts["backend"]).get_plugin_registry()
                network.load_plugins(registry, job.inputs["plugins"])
            runtimes["the engine"] = stack.enter_context(open_plan(job.file("plan"), job.facts["backend"], found))
            comparisons["the engine"] = Comparison("the engine")
        for batch, labels, done in _feeds(job, reference, found):
            expected = reference.run(batch)
            for who, runtime in runtimes.items():
                comparisons[who].add(expected, runtime.run(batch), labels)
            job.progress("compare", done)
    return _report(job, reference, candidate, comparisons, reason)


def _check_labels(job: Job[ValidateConfig]) -> None:
    if job.config.labels is not None and "holdout" not in job.inputs:
        raise StageError(
            f"validate: labels is {job.config.labels!r}, and there is no held-out data to hold them",
            "give the data: model.holdout.path=…, or leave the labels out: model.holdout.labels=null",
        )


def _check_plan(job: Job[ValidateConfig]) -> str | None:
    """Why the plan is not executed here; None where it is."""
    facts = job.facts
    if not job.inputs.get("plan"):
        return "no plan was given"
    header = plan.read(job.file("plan"))
    plan.check(header, facts["backend"], facts["backend_version"], facts["compute_capability"])
    return None if facts["gpu_here"] else backends.no_gpu(facts["compute_capability"])


def _feeds(
    job: Job[ValidateConfig], reference: Runtime, found: Sequence[profiles.Profile]
) -> Iterator[tuple[Batch, Array | None, float | None]]:
    """Batch, its labels, and the share of all samples that are done with it; None where nobody knows."""
    config = job.config
    if "holdout" not in job.inputs:
        for batch, done in generate(reference.inputs, found, config.generated_samples, config.seed):
            yield batch, None, done
        return
    if found:
        profiles.check(found, declared(reference.inputs))
    size = _batch_size(job.facts["holdout"].get("batch_size") or BATCH_SIZE, reference.inputs, found)
    given, read = reading.opened(job, "holdout", reference.inputs, config.labels, size), 0
    for batch in given:
        labels = batch.pop(config.labels) if config.labels is not None else None
        if found:
            profile_index(found, batch)  # the engine would refuse the others, here or elsewhere
        read += batches.size(batch)
        yield batch, labels, given.share(read)


def _batch_size(asked: int, inputs: Sequence[Input], found: Sequence[profiles.Profile]) -> int:
    """At most what is asked for and a profile admits; where the model has a fixed batch, that."""
    held = profiles.shape_tensors(found)
    fixed = batches.fixed_batch([wanted for wanted in inputs if wanted.name not in held])
    if fixed is not None:
        return fixed
    ends = [[each.max[0] for each in profile.ranges.values() if each.max and not each.values] for profile in found]
    largest = [min(sizes) for sizes in ends if sizes]
    return min([asked, max(largest)]) if largest else asked


def _report(
    job: Job[ValidateConfig],
    reference: Runtime,
    candidate: Runtime,
    comparisons: Mapping[str, Comparison],
    reason: str | None,
) -> Metrics:
    compared, engine = comparisons["the candidate"], comparisons.get("the engine")
    summary: Metrics = {
        "inputs": _kind(job),
        "samples": compared.samples,
        "runtime": candidate.name,
        **compared.summary(),
        "engine_executed": engine is not None,
        "reason": reason,
        "engine": engine.summary() if engine else None,
    }
    report: dict[str, JSON] = {
        "summary": summary,
        "relative_error": f"|candidate - reference| / max(|reference|, {RELATIVE_FLOOR:g})",
        "runtimes": {"reference": _describe(reference), "candidate": _describe(candidate)},
        "candidate": compared.result(),
        "engine": engine.result() if engine else None,
    }
    text = json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    (job.out / "report.json").write_text(text, encoding="utf-8")
    return summary


def _kind(job: Job[ValidateConfig]) -> str:
    if "holdout" not in job.inputs:
        return "generated"
    return "held-out" if job.facts["holdout"].get("random") is None else "random"


def _describe(runtime: Runtime) -> dict[str, JSON]:
    return {"name": runtime.name, "reason": runtime.reason or None}


STAGE = Stage(
    name="validate",
    version=2,
    config=ValidateConfig,
    run=validate,
    inputs=("reference", "onnx"),
    optional=("plan", "holdout", "holdout_source", "plugins"),
    outputs={"report": "report.json"},
    facts=("backend", "backend_version", "compute_capability", "gpu_here", "holdout", "profiles"),
    # onnx and polygraphy too: one may give the numbers where ONNX Runtime cannot, the other runs the engine.
    tools=("onnxruntime", "numpy", "onnx", "polygraphy"),
    uses_gpu=True,
)
