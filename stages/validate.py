"""Stage `validate`: how far the model that was built is from the model as it was given.

Without a GPU the numbers come from ONNX Runtime on the exact ONNX that the builder was given; with one, the plan itself
is executed too. The report says which. What both are held against is one reference or several (`stages.references`);
the first is the one that the summary, and with it the gates, are about.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stages import backends, batches, network, onnx_file, overlap, plan, profiles, references
from stages.allowed import require, require_at_least
from stages.comparison import Comparison
from stages.data import reading
from stages.generated import declared, generate, generate_edges, generate_extremes
from stages.gpus import use
from stages.metrics import RELATIVE_FLOOR
from stages.runtimes import Runtime, open_onnx, open_plan, profile_index
from stages.stage import JSON, Job, Metrics, Stage, StageError
from stages.study import CANDIDATE, ENGINE, REFERENCE, Feed, Outputs, Study, key

if TYPE_CHECKING:
    from stages.batches import Input
    from stages.overlap import Overlap

BATCH_SIZE = 32
"""Samples of held-out data a run where `model.holdout.batch_size` says nothing, at most what a profile admits."""


@dataclass(frozen=True)
class ValidateConfig:
    """On what to compare, and with what.

    Attributes:
        references: What to hold the model against, each one of `onnx` (the model as it was given), `torch` (the torch
            module itself), `golden` (`model.holdout.golden`) and `against`; gates read the first. Null: `against` and
            `golden` where they are given, else `onnx`.
        against: An earlier plan or another model: `published` (the plan that stands published in this place), the name
            of a plan or a key as `ls` prints them, or an ONNX file.
        labels: The name of the label array in the held-out data; None: no accuracy.
        top_k: For which k, beside 1, to say how far the k largest values of each row agree; those below the size of a
            row.
        generated_samples: Runs on generated inputs where no held-out data is given, at least one for each shape.
        seed: Of the generated inputs.
    """

    references: list[str] | None = None
    against: str | None = None
    labels: str | None = None
    top_k: list[int] = field(default_factory=lambda: [1, 5])
    generated_samples: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        given = self.references
        known = given is None or (bool(given) and set(given) <= set(references.WORDS) and len(set(given)) == len(given))
        require(known, "references", given, f"some of {', '.join(references.WORDS)}, each once, or null")
        require(all(k >= 1 for k in self.top_k), "top_k", self.top_k, "numbers from 1 on")
        require_at_least(self, 1, "generated_samples")
        require_at_least(self, 0, "seed")


def validate(job: Job[ValidateConfig]) -> Metrics:
    """Runs the references and `onnx`, and `plan` where a GPU here can, and compares every output.

    Returns:
        Metrics: the report's `summary`: the worst of each number over the outputs, `inputs` (`held-out`,
        `random` or `generated`), `samples`, `runtime`, `engine_executed`, `reason` of not, and `engine`: the same
        numbers of the engine, or None; `reference`, the first, and `references`: the same of all others; `metric`
        and `metric_drop`: what the user's own function says; `overlap`: what calibration and held-out data share.

    Raises:
        StageError: Inputs, outputs, labels or data do not fit, an output is not finite, or nothing can run a model.
    """
    _check_labels(job)
    reason = _check_plan(job)
    found = profiles.profiles_of(job.facts["profiles"])
    job.progress("load", None)
    names = references.chosen(job, job.config.references)
    if job.facts["gpu_here"] and any(job.inputs.get(name) for name in ("plan", "against_plan")):
        _prepare_gpu(job)
    with ExitStack() as stack:
        given = {name: references.opened(job, name, found, stack) for name in names}
        inputs = given["onnx"].inputs if "onnx" in given else _inputs(job)
        models = {CANDIDATE: open_onnx(job.inputs["onnx"])}
        if reason is None:
            models[ENGINE] = stack.enter_context(open_plan(job.file("plan"), job.facts["backend"], found))
        scratch = Path(stack.enter_context(TemporaryDirectory(dir=job.out)))
        top_k = sorted({1, *job.config.top_k})
        study = Study(job, given, models, Outputs.of(job, scratch, [REFERENCE, *models]), top_k)
        shared = overlap.opened(job, inputs)
        for feed in _feeds(job, inputs, found, shared):
            study.add(feed)
            job.progress("compare", feed.done)
        if "holdout" not in job.inputs:
            study.try_extremes(generate_extremes(inputs, found, job.config.seed))
        judged = study.judged()
    return _report(job, study, judged, shared, reason)


def _prepare_gpu(job: Job[ValidateConfig]) -> None:
    use(job.facts["compute_capability"])
    if job.inputs.get("plugins"):
        registry = backends.load(job.facts["backend"]).get_plugin_registry()
        network.load_plugins(registry, job.inputs["plugins"])


def _inputs(job: Job[ValidateConfig]) -> Sequence[Input]:
    return batches.model_inputs(onnx_file.read(job.inputs["reference"]))


def _check_labels(job: Job[ValidateConfig]) -> None:
    if job.config.labels is not None and "holdout" not in job.inputs:
        raise StageError(
            f"validate: labels is {job.config.labels!r}, and there is no held-out data to hold them",
            "give the data: model.holdout.path=…, or leave the labels out: model.holdout.labels=null",
        )
    if job.facts.get("metric") and job.config.labels is None:
        raise StageError(
            f"the metric {job.facts['metric']['callable']} needs labels, and validate has none",
            "name the array: model.holdout.labels=NAME",
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
    job: Job[ValidateConfig], inputs: Sequence[Input], found: Sequence[profiles.Profile], shared: Overlap
) -> Iterator[Feed]:
    config = job.config
    if "holdout" not in job.inputs:
        for batch, done in generate(inputs, found, config.generated_samples, config.seed):
            yield Feed(batch, done=done)
        for edge, batch in generate_edges(inputs, found, config.seed):
            yield Feed(batch, done=1.0, edge=edge)
        return
    if found:
        profiles.check(found, declared(inputs))
    size = _batch_size(job.facts["holdout"].get("batch_size") or BATCH_SIZE, inputs, found)
    given, read = reading.opened(job, "holdout", inputs, config.labels, size), 0
    for batch in given:
        labels = batch.pop(config.labels) if config.labels is not None else None
        if found:
            profile_index(found, batch)  # the engine would refuse the others, here or elsewhere
        shared.add(batch)
        read += batches.size(batch)
        yield Feed(batch, labels, given.share(read))


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
    study: Study,
    judged: Mapping[str, Mapping[str, JSON]],
    shared: Overlap,
    reason: str | None,
) -> Metrics:
    compared, engine = study.of(study.first, CANDIDATE), study.of(study.first, ENGINE)
    assert compared is not None  # noqa: S101 - the candidate always runs
    summary: Metrics = {
        "inputs": _kind(job),
        "samples": compared.samples,
        "reference": study.first,
        "runtime": study.models[CANDIDATE].name,
        **_summary(compared, judged.get(key(CANDIDATE))),
        "engine_executed": engine is not None,
        "reason": reason,
        "engine": _summary(engine, judged.get(key(ENGINE))) if engine else None,
        "references": {name: _summaries(study, name) for name in study.references if name != study.first},
        "overlap": shared.result(),
    }
    report: dict[str, JSON] = {
        "summary": summary,
        "relative_error": f"|candidate - reference| / max(|reference|, {RELATIVE_FLOOR:g})",
        "runtimes": {
            "reference": _describe(study.references[study.first]),
            "candidate": _describe(study.models[CANDIDATE]),
        },
        "candidate": compared.result(),
        "engine": engine.result() if engine else None,
        "references": {name: _results(study, name) for name in study.references},
        "skipped_edges": study.skipped,
        "extremes": study.extremes,
        "metric": {"function": job.facts["metric"], **judged} if judged else None,
    }
    text = json.dumps(report, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    (job.out / "report.json").write_text(text, encoding="utf-8")
    return summary


def _summary(compared: Comparison, judged: Mapping[str, JSON] | None) -> dict[str, JSON]:
    """The worst numbers of one model, and what the user's metric says: `metric_drop` is the largest drop of any."""
    drops = [float(each["drop"]) for each in (judged or {}).values()]  # type: ignore[index,arg-type,call-overload]
    return {**compared.summary(), "metric": judged, "metric_drop": max(drops, default=None)}


def _summaries(study: Study, reference: str) -> dict[str, JSON]:
    found = {who: study.of(reference, who) for who in study.models}
    return {key(who): compared.summary() for who, compared in found.items() if compared is not None}


def _results(study: Study, reference: str) -> dict[str, JSON]:
    """The runtime of a reference; of all but the first, which the report begins with, the numbers too."""
    described = _describe(study.references[reference])
    if reference == study.first:
        return described
    found = {who: study.of(reference, who) for who in study.models}
    return {**described, **{key(who): compared.result() for who, compared in found.items() if compared is not None}}


def _kind(job: Job[ValidateConfig]) -> str:
    if "holdout" not in job.inputs:
        return "generated"
    return "held-out" if job.facts["holdout"].get("random") is None else "random"


def _describe(runtime: Runtime) -> dict[str, JSON]:
    return {"name": runtime.name, "reason": runtime.reason or None}


def _keyed(config: ValidateConfig, facts: Mapping[str, Any]) -> dict[str, JSON]:
    """All but what `against` is called: its content is an input."""
    return {
        "references": config.references,
        "labels": config.labels,
        "top_k": config.top_k,
        "generated_samples": config.generated_samples,
        "seed": config.seed,
    }


def _facts(config: ValidateConfig) -> tuple[str, ...]:
    return ("source",) if "torch" in (config.references or ()) else ()


STAGE = Stage(
    name="validate",
    version=3,
    config=ValidateConfig,
    run=validate,
    inputs=("reference", "onnx"),
    optional=(
        *("plan", "holdout", "holdout_source", "calibration", "calibration_source", "plugins"),
        *("metric", "golden", "torch_source", "torch_weights"),
        *("against_plan", "against_onnx", "against_weights"),
    ),
    outputs={"report": "report.json"},
    facts=(
        *("backend", "backend_version", "compute_capability", "gpu_here"),
        *("holdout", "calibration", "metric", "profiles"),
    ),
    facts_when=_facts,
    keyed=_keyed,
    # onnx and polygraphy too: one may give the numbers where ONNX Runtime cannot, the other runs the engine.
    tools=("onnxruntime", "numpy", "onnx", "polygraphy"),
    uses_gpu=True,
)
