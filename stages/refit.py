"""Stage `refit`: puts the weights of an ONNX file into a plan of the same structure.

On a machine that cannot execute the plan, or with a plan that takes no other weights, the plan is built again from the
ONNX file, and the metrics say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stages import backends, network, plan
from stages import build as building
from stages.allowed import require_word
from stages.build_config import BuildConfig
from stages.builder_log import make_logger, plain, start
from stages.gpus import use
from stages.stage import JSON, Job, Metrics, Remembers, Stage, StageError

FALLBACK = ("rebuild", "fail")


@dataclass(frozen=True)
class RefitConfig:
    """How to refit.

    Attributes:
        fallback: What to do where the plan cannot be refitted here: `rebuild` it from the ONNX file, or `fail`.
        build: How to rebuild; what it says of refit is not used: a rebuilt plan has its weights already.
    """

    fallback: str = "rebuild"
    build: BuildConfig = field(default_factory=BuildConfig)

    def __post_init__(self) -> None:
        require_word(self, "fallback", FALLBACK)


def refit(job: Job[RefitConfig]) -> Metrics:
    """Refits `plan` with the weights of `onnx`, or builds `onnx`.

    Returns:
        Metrics: `method` (`refit` or `rebuild`), `reason` of a rebuild, and `plan_bytes`; of a rebuild, all that the
        stage `build` returns.

    Raises:
        StageError: The plan is not for the target, or the ONNX file does not have the structure it was built from; or
            it cannot be refitted here and `fallback` is `fail`.
    """
    facts = job.facts
    header = plan.read(job.file("plan"))
    plan.check(header, facts["backend"], facts["backend_version"], facts["compute_capability"])
    if not facts["gpu_here"]:
        return _instead(job, backends.no_gpu(facts["compute_capability"]))

    use(facts["compute_capability"], facts["gpu"])
    engine = _Engine(facts["backend"], job.file("plan"), job.inputs.get("plugins", ()))
    if not engine.engine.refittable:
        return _instead(job, "the plan takes no other weights: it was built without refit")
    job.progress("refit", None)
    destination = job.out / "model.plan"
    engine.refit(job.inputs["onnx"])
    engine.write(destination)
    header = plan.read(destination)
    plan.check(header, facts["backend"], facts["backend_version"], facts["compute_capability"])
    return {"method": "refit", "reason": None, "plan_bytes": header.bytes}


def _instead(job: Job[RefitConfig], reason: str) -> Metrics:
    if job.config.fallback == "fail":
        raise StageError(
            f"the plan cannot be refitted here: {reason}",
            "run it on a machine with the target's GPU, or with fallback: rebuild",
        )
    again: Job[BuildConfig] = Job(
        config=_ordinary(job.config),
        inputs={name: job.inputs[name] for name in ("onnx", "plugins") if name in job.inputs},
        facts=job.facts,
        out=job.out,
        progress=job.progress,
        memory=job.memory,
    )
    return {"method": "rebuild", "reason": reason, **building.build(again)}


def _ordinary(config: RefitConfig) -> BuildConfig:
    return replace(config.build, refit="none", refittable_weights=[], strip_plan=None)


def _keyed(config: RefitConfig, facts: Mapping[str, Any]) -> dict[str, JSON]:
    return {"fallback": config.fallback, "build": building.keyed(_ordinary(config), facts)}


def _without_effect(config: RefitConfig, facts: Mapping[str, Any]) -> list[str]:
    return [f"build.{path}" for path in building.without_effect(_ordinary(config), facts)]


def _refuse(config: RefitConfig, facts: Mapping[str, Any]) -> None:
    try:
        building.require_had(_ordinary(config), facts)
    except StageError as error:
        raise StageError(f"build.{error.what}", error.next_step) from error


def _facts_seen(config: RefitConfig, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    return building.facts_seen(_ordinary(config), facts)


def _remembers(config: RefitConfig, facts: Mapping[str, Any]) -> Remembers:
    return building.remembers(_ordinary(config), facts)


class _Engine:
    """An engine and the objects it needs alive while it is refitted."""

    def __init__(self, backend: str, path: Path, plugins: Sequence[Path]) -> None:
        self.backend = backend
        self.trt: Any = backends.load(backend)
        self.logger = make_logger(self.trt)
        self.runtime = start(self.trt.Runtime, self.logger, self.logger.noise)
        network.load_plugins(self.runtime.get_plugin_registry(), plugins)
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise self._failed("the plan cannot be loaded", "build it again on this machine")

    def refit(self, onnx: Sequence[Path]) -> None:
        refitter = self.trt.Refitter(self.engine, self.logger)
        parser = self.trt.OnnxParserRefitter(refitter, self.logger)
        model = network.read_model(onnx)
        network.load(parser, model)
        if not parser.refit_model_proto():
            raise network.parser_error(parser, model)
        missing = refitter.get_missing_weights()
        if missing:
            names = ", ".join(sorted(missing)[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
            raise StageError(
                f"the ONNX file lacks weights that the plan has: {names}",
                "refit with a model of the same structure, or build it anew",
            )
        if not refitter.refit_cuda_engine():
            raise self._failed("the weights cannot be put into the plan", "build the model anew")

    def write(self, destination: Path) -> None:
        """Writes the engine with its weights, and so that it can be refitted again."""
        flags = self.trt.SerializationFlag
        config = self.engine.create_serialization_config()
        config.clear_flag(flags.EXCLUDE_WEIGHTS)
        if backends.has_refit_flag(self.backend, self.trt.__version__):
            config.set_flag(flags.INCLUDE_REFIT)
        serialized = self.engine.serialize_with_config(config)
        if serialized is None:
            raise self._failed("the refitted plan cannot be written", "build the model anew")
        destination.write_bytes(memoryview(serialized))

    def _failed(self, what: str, next_step: str) -> StageError:
        said = plain(self.logger.errors[0]) if self.logger.errors else "TensorRT gives no reason"
        return StageError(f"{what}: {said}", next_step)


STAGE = Stage(
    name="refit",
    version=2,
    config=RefitConfig,
    run=refit,
    inputs=("plan", "onnx"),
    optional=("plugins",),
    outputs={"plan": "model.plan"},
    facts=("backend", "backend_version", "compute_capability", "gpu", "platform", "profiles", "gpu_here"),
    keyed=_keyed,
    without_effect=_without_effect,
    refuse=_refuse,
    facts_seen=_facts_seen,
    remembers=_remembers,
    uses_gpu=True,
    by_address=True,
)
