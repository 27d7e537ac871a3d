"""Stage `refit`: puts the weights of a model into a plan that was built from its structure.

A plan that took its weights counts only once it has been executed and compared with the model: weights that a refit
left as they were have gone unnoticed elsewhere. On a machine that cannot execute the plan, or with a plan that takes no
other weights, it is built again from structure and weights, and the metrics say so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import backends, layer_report, network, plan, profiles, runtimes, split
from stages import build as building
from stages.allowed import require, require_word
from stages.build_config import BuildConfig
from stages.builder_log import make_logger, plain, start
from stages.comparison import Comparison, NotFiniteError
from stages.cuda_device import CudaError, Device
from stages.generated import generate
from stages.gpus import use
from stages.metrics import RELATIVE_FLOOR, Difference, is_float
from stages.stage import JSON, Job, Metrics, Remembers, Stage, StageError
from stages.wording import listed

if TYPE_CHECKING:
    from onnx import ModelProto

    from stages.batches import Array, Batch

FALLBACK = ("rebuild", "fail")


# The tolerance: on generated inputs the outputs of the model `digits` in ONNX Runtime differ by 0.0005 between fp32 and
# fp16 (whose mantissa is TF32's), by 0.005 between fp32 and bf16, and by 0.004 between int8 in Q/DQ and in integer
# kernels; by 0.048 where the last layer's bias is lost, the least of all its weights, and by 0.02 where all weights are
# off by 1 %.
_TEN_BITS = 2**-10
"""What TF32 and fp16 round to, relative to a number."""

_ROUNDINGS = 20
"""How often as much as rounded inputs move a model its outputs may differ: all that it computes is rounded, too. A
detector of text, fed with noise, finds next to nothing: outputs below 0.001, which fp16 moves by 0.063 and rounded
inputs by 0.0063; one of other objects by 0.00028 and 0.00004."""

_MOST = 0.5
"""What rounding can excuse: old weights in the place of new ones, or none, are about 1 off."""

_PLAN = "the refitted plan"
_ELSE = f"{_PLAN} computes something else than the model"


@dataclass(frozen=True)
class RefitConfig:
    """How to refit.

    Attributes:
        fallback: What to do where the plan cannot be refitted here: `rebuild` it from structure and weights, or `fail`.
        tolerance: The most that an output of the refitted plan may differ from the model's, as the root mean square of
            the difference over that of the output, but where rounding alone moves the model more; null: the plan is
            taken without being compared.
        build: How to rebuild; a rebuilt plan has its weights, so what this says of refit tells only how the plan that
            comes in was built.
    """

    fallback: str = "rebuild"
    tolerance: float | None = 0.02
    build: BuildConfig = field(default_factory=BuildConfig)

    def __post_init__(self) -> None:
        require_word(self, "fallback", FALLBACK)
        tolerance = self.tolerance
        require(tolerance is None or 0 < tolerance < 1, "tolerance", tolerance, "above 0, below 1, or null")


def refit(job: Job[RefitConfig]) -> Metrics:
    """Refits `plan` with `weights`, or builds the model that `structure` and `weights` are.

    Returns:
        Metrics: `method` (`refit` or `rebuild`), `reason` of a rebuild, and `plan_bytes`. Of a refit: `weights` (how
        many were put in), `refittable_again`, `compared` (`worst_output`, its `difference` and what was `allowed`,
        `samples`; null where `tolerance` is) and `seconds` of `load`, `refit`, `write` and `compare`. Of a rebuild: all
        that the stage `build` returns.

    Raises:
        StageError: The plan is not for the target, or of a version that gets it wrong; structure and weights are of two
            models, or the plan is of another; the refitted plan computes something else than the model; or it cannot
            be refitted here and `fallback` is `fail`.
    """
    facts = job.facts
    header = plan.read(job.file("plan"))
    plan.check(header, facts["backend"], facts["backend_version"], facts["compute_capability"])
    _refuse(job.config, facts)
    job.progress("read", None)
    model = split.joined(job.inputs["structure"], job.file("weights"))
    if not facts["gpu_here"]:
        return _instead(job, model, backends.no_gpu(facts["compute_capability"]))

    use(facts["compute_capability"], facts["gpu"])
    if plugins := job.inputs.get("plugins"):
        network.load_plugins(backends.load(facts["backend"]).get_plugin_registry(), plugins)
    scratch = job.out / "refitted.plan"
    try:
        refitted = _refitted(job, model, scratch)
        if refitted is None:
            return _instead(job, model, "the plan takes no other weights: it was built without refit")
        with _timed(refitted.seconds, "compare"):
            compared = _compared(job, model, scratch)
        scratch.rename(job.out / STAGE.outputs["plan"])
    finally:
        scratch.unlink(missing_ok=True)
    return {
        "method": "refit",
        "reason": None,
        "plan_bytes": refitted.plan_bytes,
        "weights": refitted.weights,
        "refittable_again": backends.has_refit_flag(facts["backend"], facts["backend_version"]),
        "compared": compared,
        "seconds": refitted.seconds,
        **layer_report.keep(model, job.out / STAGE.outputs["plan"], facts["profiles"], job.out),
    }


@dataclass(frozen=True)
class _Refitted:
    plan_bytes: int
    weights: int
    seconds: dict[str, float]


def _refitted(job: Job[RefitConfig], model: ModelProto, destination: Path) -> _Refitted | None:
    """Writes the refitted plan; None where the plan takes no weights.

    When this returns the engine is gone: the comparison needs the GPU's memory for the plan that was written.
    """
    facts = job.facts
    seconds: dict[str, float] = {}
    job.progress("load", None)
    with _timed(seconds, "load"):
        engine = _Engine(facts["backend"], job.file("plan"))
    if not engine.engine.refittable:
        return None
    job.progress("refit", None)
    with _timed(seconds, "refit"):
        weights = engine.refit(network.checked(model))
    job.progress("write", None)
    with _timed(seconds, "write"):
        engine.write(destination)
    header = plan.read(destination)
    plan.check(header, facts["backend"], facts["backend_version"], facts["compute_capability"])
    return _Refitted(header.bytes, weights, seconds)


def _compared(job: Job[RefitConfig], model: ModelProto, path: Path) -> dict[str, JSON] | None:
    """Executes the plan at `path` at the min, opt and max shapes of every profile, and compares it with the model.

    Raises:
        StageError: An output is farther from the model's than is allowed, or nothing can be compared.
    """
    tolerance = job.config.tolerance
    if tolerance is None:
        return None
    job.progress("compare", 0.0)
    found = profiles.profiles_of(job.facts["profiles"])
    try:
        reference = runtimes.open_model(model)
        compared, moved, floats = Comparison(_PLAN), Comparison("the model"), set[str]()
        with runtimes.open_plan(path, job.facts["backend"], found) as engine:
            for batch, done in generate(reference.inputs, found, 1, 0):
                expected = reference.run(batch)
                floats |= {name for name, values in expected.items() if is_float(values)}
                compared.add(expected, engine.run(batch), None)
                moved.add(expected, reference.run(_rounded(batch)), None)
                job.progress("compare", done)
    except StageError as error:
        if isinstance(error, NotFiniteError) and error.who == _PLAN:
            raise StageError(f"{_ELSE}: {error.what}", "build the model anew (refit=false)") from error
        hint = "to take a refitted plan without comparing it: tolerance: null"
        raise StageError(
            f"{_PLAN} cannot be compared with the model: {error.what}",
            f"{error.next_step}; {hint}" if error.next_step else hint,
        ) from error
    # A class or an index jumps where the floats that it is made from hardly differ.
    judged = floats or compared.outputs.keys()
    rounding = {name: min(_MOST, _ROUNDINGS * _difference(moved.outputs[name])) for name in judged}
    allowed = {name: max(tolerance, rounding[name]) for name in judged}
    differences = {name: _difference(compared.outputs[name]) for name in judged}
    worst = max(differences, key=lambda name: differences[name] / allowed[name])
    if differences[worst] > allowed[worst]:
        raise _far(job.facts, worst, differences[worst], allowed[worst])
    told = {"difference": differences[worst], "allowed": allowed[worst]}
    return {"worst_output": worst, **told, "samples": compared.samples}


def _rounded(batch: Batch) -> Batch:
    """The batch with its floats off by what rounding them to ten bits can do, each by an amount of its own."""
    import numpy as np

    random = np.random.default_rng(0)

    def rounded(values: Array) -> Array:
        off = _TEN_BITS * (random.random(values.shape) - 0.5)
        return (values.astype(np.float64) * (1 + off)).astype(values.dtype)

    return {name: rounded(values) if is_float(values) else values for name, values in batch.items()}


def _difference(found: Difference) -> float:
    """sqrt(sum (c - r)² / sum r²), of outputs that are all but zero sqrt(sum (c - r)² / n) over the floor."""
    floor = found.values * RELATIVE_FLOOR**2
    return math.sqrt(found.error_energy / max(found.reference_energy, floor)) if found.values else 0.0


def _far(facts: Mapping[str, Any], output: str, difference: float, allowed: float) -> StageError:
    bad = backends.known_bad(facts["backend"], facts["backend_version"], "any")
    known = f"; of {facts['backend']} {facts['backend_version']} it is known that {bad.what}" if bad else ""
    return StageError(
        f"{_ELSE}: output {output!r} differs by {difference:.3g} of its size, allowed is {allowed:.3g}{known}",
        (f"{bad.instead}; or " if bad else "")
        + "build the model anew (refit=false); where it is sensitive to rounding, raise the tolerance",
    )


def _instead(job: Job[RefitConfig], model: ModelProto, reason: str) -> Metrics:
    if job.config.fallback == "fail":
        raise StageError(
            f"the plan cannot be refitted here: {reason}",
            "run it on a machine with the target's GPU, or with fallback: rebuild",
        )
    again: Job[BuildConfig] = Job(
        config=_ordinary(job.config),
        inputs={name: job.inputs[name] for name in ("plugins",) if name in job.inputs},
        facts=job.facts,
        out=job.out,
        progress=job.progress,
        memory=job.memory,
    )
    built = building.build_model(again, lambda: (network.checked(model), 0))
    return {"method": "rebuild", "reason": reason, **built}


def _ordinary(config: RefitConfig) -> BuildConfig:
    return replace(config.build, refit="none", refittable_weights=[], strip_plan=None)


def _keyed(config: RefitConfig, facts: Mapping[str, Any]) -> dict[str, JSON]:
    build = building.keyed(_ordinary(config), facts)
    return {"fallback": config.fallback, "tolerance": config.tolerance, "build": build}


def _without_effect(config: RefitConfig, facts: Mapping[str, Any]) -> list[str]:
    return [f"build.{path}" for path in building.without_effect(_ordinary(config), facts)]


def _refuse(config: RefitConfig, facts: Mapping[str, Any]) -> None:
    try:
        building.require_had(config.build, facts)
    except StageError as error:
        raise StageError(f"build.{error.what}", error.next_step) from error


def _facts_seen(config: RefitConfig, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    return building.facts_seen(_ordinary(config), facts)


def _remembers(config: RefitConfig, facts: Mapping[str, Any]) -> Remembers:
    return building.remembers(_ordinary(config), facts)


class _Engine:
    """An engine and the objects it needs alive while it is refitted."""

    def __init__(self, backend: str, path: Path) -> None:
        self.backend = backend
        self.trt: Any = backends.load(backend)
        self.logger = make_logger(self.trt)
        self.runtime = start(self.trt.Runtime, self.logger, self.logger.noise)
        self.engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if self.engine is None:
            raise self._failed("the plan cannot be loaded", "build it again on this machine")

    def refit(self, model: network.Model) -> int:
        """Puts the weights of `model` in; how many there were.

        NOTE: the weights that TensorRT takes are the parser's, and where they lie in a file, the model's: both stay
        until the GPU is done.
        """
        with Device() as device:
            refitter = self.trt.Refitter(self.engine, self.logger)
            parser = self.trt.OnnxParserRefitter(refitter, self.logger)
            network.load(parser, model)
            if not parser.refit_model_proto():
                raise StageError(
                    f"the weights do not fit the plan: {network.refusal(parser, model)}",
                    "build the model anew: trtforge build, with refit=false if it fails again",
                )
            names = refitter.get_all_weights()
            # What was never given stays as it was, and only what is computed together with something given is missing.
            kept = {name for name in names if not refitter.get_named_weights(name).size}
            _require_none(sorted(kept.union(refitter.get_missing_weights())))
            stream = device.stream()
            if not refitter.refit_cuda_engine_async(stream):
                raise self._failed("the weights cannot be put into the plan", "build the model anew")
            self._wait(device, stream)
        return len(names)

    def _wait(self, device: Device, stream: int) -> None:
        try:
            device.synchronize(stream)
        except CudaError as error:
            raise StageError(f"the weights cannot be put into the plan: {error.what}", error.next_step) from error

    def write(self, destination: Path) -> None:
        """Writes the engine with its weights, and so that it can be refitted again where the version has that."""
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
        # What is noise behind another error is the cause where it stands alone.
        heard = self.logger.errors or self.logger.noise
        said = plain(heard[0]) if heard else "TensorRT gives no reason"
        return StageError(f"{what}: {said}", next_step)


def _require_none(missing: Sequence[str]) -> None:
    if missing:
        raise StageError(
            f"the model lacks weights that the plan has: {listed(missing)}",
            "refit with a model of the same structure, or build it anew",
        )


@contextmanager
def _timed(seconds: dict[str, float], phase: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[phase] = round(time.perf_counter() - begun, 3)


STAGE = Stage(
    name="refit",
    version=3,
    config=RefitConfig,
    run=refit,
    inputs=("plan", "structure", "weights"),
    optional=("plugins",),
    outputs={"plan": "model.plan", "layers": layer_report.FILE},
    facts=("backend", "backend_version", "compute_capability", "gpu", "platform", "profiles", "gpu_here"),
    keyed=_keyed,
    without_effect=_without_effect,
    refuse=_refuse,
    facts_seen=_facts_seen,
    remembers=_remembers,
    uses_gpu=True,
    by_address=True,
)
