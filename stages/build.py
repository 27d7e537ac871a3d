"""Stage `build`: an ONNX file becomes a TensorRT plan for one target.

The network is always strongly typed: precision is what the ONNX says. Whoever runs this stage runs it in a process of
its own, since TensorRT may crash, abort or be killed; its stderr is the step's log.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages import (
    backends,
    fake_quant,
    knobs,
    layer_report,
    network,
    plan,
    profiles,
    settings,
    split,
    structure,
    timing_cache,
)
from stages.build_config import BuildConfig
from stages.builder_log import build_error, config_error, make_logger, plain, start
from stages.gpus import capabilities, gpus, use
from stages.stage import JSON, Job, Memory, Metrics, Progress, Remembers, Stage, StageError

_REFIT = ("refit", "refittable_weights", "strip_plan")
"""Settings of a plan that weights can be put into."""

_LENIENT = "allow_fake_quant"


def build(job: Job[BuildConfig]) -> Metrics:
    """`build_model` of `onnx`, with made-up weights where it is a structure."""
    return build_model(job, lambda: _model(job))


def build_model(job: Job[BuildConfig], read: Callable[[], tuple[network.Model, int]]) -> Metrics:
    """Builds a model into `plan` for the target that the facts describe, and says in `layers` what runs in it.

    Args:
        job: Its `onnx` is not looked at.
        read: Gives the model, and how many of its weights are made up.

    Returns:
        Metrics: `plan_bytes`, `layers` (of the network), `compute_capabilities`, `backend_version`, `refittable`,
        `refit_reason` (why a refittable plan was asked for and not made), `made_up_weights` (how many weights have to
        be put in before the plan is of use), `without_effect` (settings that change nothing on this backend),
        `timing_cache` (as `stages.timing_cache.write` returns it; null where there is none), `seconds` of `parse` and
        `build`, what `fake_quant.checked` says of the plan, and `layers_run` and `precisions` of `stages.layer_report`.

    Raises:
        StageError: The backend is missing or of another version, cannot build for the target, does not take the model
            or a setting; or the plan it made is not for the target, or computes in float what the model has quantized.
    """
    from onnx import ModelProto

    facts, config = job.facts, job.config
    backend, compute_capability = facts["backend"], facts["compute_capability"]
    require_had(config, facts)
    trt = _backend(backend, facts["backend_version"], compute_capability, facts["gpu"])
    refit_reason = backends.why_not_refittable(backend, compute_capability, gpus()) if config.refittable else None
    plugins = job.inputs.get("plugins", ())
    values = _values(config, backend, plugins, refittable=config.refittable and refit_reason is None)
    values = _held_to_timings(values, config, job.memory)
    needless = without_effect(config, facts)
    if needless:
        print(f"[WARNING] {backend} takes these settings without effect: {', '.join(needless)}", file=sys.stderr)

    job.progress("parse", None)
    model, made_up = read()
    if config.refittable_weights:
        values = settings.with_weights(values, config.refittable_weights, model.refittable)
    builder = _Builder(trt, backend, compute_capability, job.progress)
    network.load_plugins(builder.builder.get_plugin_registry(), plugins)
    seconds = {"parse": _timed(lambda: builder.parse(model, facts["profiles"]))}
    builder.configure(values)
    attached = builder.attach(job.memory, bool(values.get("error_on_miss"))) if job.memory else None
    destination = job.out / "model.plan"
    seconds["build"] = _timed(lambda: builder.write_plan(destination))
    measured = timing_cache.write(builder.config, attached, job.memory) if job.memory and attached else None

    header = plan.read(destination)
    plan.check(header, backend, facts["backend_version"], compute_capability)
    return {
        "plan_bytes": header.bytes,
        "layers": builder.network.num_layers,
        "compute_capabilities": list(header.compute_capabilities or capabilities(compute_capability)),
        "backend_version": header.version,
        "refittable": config.refittable and refit_reason is None,
        "refit_reason": refit_reason,
        "made_up_weights": made_up,
        "without_effect": needless,
        "timing_cache": measured,
        "seconds": seconds,
        **fake_quant.checked(model.content, destination, compute_capability, config.allow_fake_quant),
        **layer_report.keep(
            ModelProto.FromString(model.content), destination, facts["profiles"], job.out, builder.logger.layers
        ),
    }


def _model(job: Job[BuildConfig]) -> tuple[network.Model, int]:
    """The model to build, and how many of its weights had to be made up: those of a structure."""
    scratch = job.out / "made_up.safetensors"
    model, made_up = split.filled(job.inputs["onnx"], scratch)
    if made_up and job.config.refit not in split.MODES:
        raise StageError(
            f"the ONNX file has no values for {made_up} weights, and refit is {job.config.refit}",
            f"build the whole model, or a plan that takes weights later: refit: {' or '.join(split.MODES)}",
        )
    if job.config.refittable:
        # The parser's refitter knows Constant nodes by their output's name, and batch normalisations by their order:
        # both are to be those of what `split.joined` gives.
        model, _ = structure.split(model, lambda weights: ())
    checked = network.checked(model)
    scratch.unlink(missing_ok=True)  # what is mapped stays until it is let go
    return checked, made_up


def require_had(config: BuildConfig, facts: Mapping[str, Any]) -> None:
    """Holds `config` to what the target's backend has: asked before anything runs.

    Raises:
        StageError: It sets what this version of the backend lacks, or gets wrong.
    """
    backend, version = facts["backend"], facts["backend_version"]
    knobs.require_had(config, backend, version)
    if bad := backends.known_bad(backend, version, config.refit):
        raise StageError(f"refit={config.refit}: {backend} {version}: {bad.what}", bad.instead)


def keyed(config: BuildConfig, facts: Mapping[str, Any]) -> dict[str, JSON]:
    """What of `config` changes the plan of the target that the facts describe, by the knobs' paths.

    And whether it is held to its model: what was taken without is no answer to who asks for it.
    """
    lenient = {_LENIENT: True} if config.allow_fake_quant and _is_held(facts) else {}
    return {**knobs.keyed(config, facts["backend"]), **lenient}


def without_effect(config: BuildConfig, facts: Mapping[str, Any]) -> list[str]:
    """The paths of the settings that change nothing on the target's backend."""
    needless = [_LENIENT] if config.allow_fake_quant and not _is_held(facts) else []
    return [*knobs.without_effect(config, facts["backend"]), *needless]


def facts_seen(config: BuildConfig, facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The facts without the GPU's name, where the plan is one that other models of GPU run as well."""
    level = knobs.effective(config, facts["backend"]).get("hardware_compatibility_level", "none")
    return facts if level == "none" else {**facts, "gpu": None}


def remembers(config: BuildConfig, facts: Mapping[str, Any]) -> Remembers:
    """Whom a build shares its timing cache with; pinned tactics are those of one plan."""
    unused = config.disable_timing_cache or config.optimization_level == 0  # level 0 does without, whatever is attached
    if unused or not backends.find(facts["backend"]).has_timing_cache:
        return "nothing"
    return "key" if config.pin_tactics else "gpu"


def _is_held(facts: Mapping[str, Any]) -> bool:
    return backends.find(facts["backend"]).plans_hold_graph


def _values(config: BuildConfig, backend: str, plugins: Sequence[Path], refittable: bool) -> dict[str, Any]:
    """What to set, by the knobs' paths: nothing of what has no effect, so that the plan is what its key says."""
    values = knobs.effective(config, backend)
    if config.strip_plan is None and config.refit == "identical":
        values["strip_plan"] = True
    if not refittable:
        values = {path: value for path, value in values.items() if path not in _REFIT}
    if names := values.get("plugins_to_serialize"):
        values["plugins_to_serialize"] = [_library(name, plugins) for name in names]
    return values


def _held_to_timings(values: Mapping[str, Any], config: BuildConfig, memory: Memory | None) -> dict[str, Any]:
    """`values` with what `error_on_miss` means where tactics are pinned: the first build of a plan has to time them."""
    if not values.get("pin_tactics") or memory is None:
        return dict(values)
    return {**values, "error_on_miss": bool(memory.known) and config.error_on_miss is not False}


def _library(name: str, plugins: Sequence[Path]) -> str:
    found = [str(path) for path in plugins if path.name == name]
    if not found:
        known = ", ".join(path.name for path in plugins) or "none"
        raise StageError(f"plugins_to_serialize: model.plugins has no library {name!r}", f"it has {known}")
    return found[0]


def _backend(backend: str, version: str, compute_capability: str, gpu: str | None) -> Any:
    trt = backends.load(backend)
    if not backends.same_version(trt.__version__, version):
        raise StageError(
            f"the target takes {backend} {version}, installed is {trt.__version__}",
            f"pip install {backend}=={version}, or leave the target's version out",
        )
    here = gpus()
    reason = backends.why_not_build(backend, compute_capability, here)
    if reason:
        raise StageError(reason, "trtforge doctor says what this machine can build")
    if here.of(compute_capability):
        use(compute_capability, gpu)
    return trt


class _Builder:
    """Holds everything that one build needs until the plan is written.

    NOTE: TensorRT's objects do not keep each other alive: a parser whose network was collected ends the process with a
    segmentation fault. So logger, builder, network, parser, config, profiles, monitor and the model stay here.
    """

    def __init__(self, trt: Any, backend: str, compute_capability: str, progress: Progress) -> None:
        self.trt = trt
        self.backend = backend
        self.compute_capability = compute_capability
        self.logger = make_logger(trt)
        self.builder = start(trt.Builder, self.logger, self.logger.noise)
        self.network = self.builder.create_network(network.strongly_typed(trt))
        # Unnamed networks of one builder are numbered, and the number stands in the plan.
        self.network.name = "model"
        self.parser = trt.OnnxParser(self.network, self.logger)
        self.config = self.builder.create_builder_config()
        self.monitor = _monitor(trt, progress)
        self.kept: list[Any] = []

    def parse(self, model: network.Model, profiles_fact: Any) -> None:
        self.kept.append(model)
        network.parse(self.parser, self.network, model)
        inputs = [self.network.get_input(index) for index in range(self.network.num_inputs)]
        shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
        found = profiles.profiles_of(profiles_fact)
        profiles.check(found, shapes)
        held = profiles.shape_tensors(found)
        _check_shape_tensors(inputs, held, [profile.name for profile in found] or ["default"])
        if held or any(-1 in shape for shape in shapes.values()):
            for profile in found:
                self._add_profile(profile)

    def _add_profile(self, profile: profiles.Profile) -> None:
        optimization = self.builder.create_optimization_profile()
        self.kept.append(optimization)
        for name, given in profile.ranges.items():
            ends, of = (given.min, given.opt, given.max), optimization
            write, read = (of.set_shape_input, of.get_shape_input) if given.values else (of.set_shape, of.get_shape)
            write(name, *ends)
            if (got := tuple(map(tuple, read(name)))) != ends:
                raise config_error(f"profile {profile.name!r}, {name!r}", ends, got, self.backend, self.logger.errors)
        if self.config.add_optimization_profile(optimization) < 0:
            said = "; ".join(map(plain, self.logger.errors)) or "it gives no reason"
            hint = "correct its shapes (model.dims, model.profiles): min <= opt <= max, each such as the model takes"
            raise StageError(f"TensorRT refuses profile {profile.name!r}: {said}", hint)

    def configure(self, values: Mapping[str, Any]) -> None:
        trt, config = self.trt, self.config
        if backends.find(self.backend).takes_compute_capability:
            names = [backends.enum_name(each) for each in capabilities(self.compute_capability)]
            wanted = [getattr(trt.ComputeCapability, name) for name in names]
            config.num_compute_capabilities = len(wanted)
            for index, each in enumerate(wanted):
                config.set_compute_capability(each, index)
            got = [config.get_compute_capability(index) for index in range(config.num_compute_capabilities)]
            if got != wanted:
                raise config_error("compute_capability", wanted, got, self.backend, self.logger.errors)
        settings.apply(settings.Objects(trt, self.network, config, self.logger.errors, self.backend), values)
        config.progress_monitor = self.monitor

    def attach(self, memory: Memory, strict: bool) -> timing_cache.Attached:
        attached = timing_cache.attach(self.config, self.logger, memory, self.backend)
        self.kept.append(attached)
        if strict:
            timing_cache.require_taken(attached, memory)
        return attached

    def write_plan(self, destination: Path) -> None:
        plan_bytes = self.builder.build_serialized_network(self.network, self.config)
        if self.monitor.error is not None:
            raise self.monitor.error
        if plan_bytes is None:
            workspace_bytes = self.config.get_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE)
            raise build_error(self.logger, self.backend, self.compute_capability, workspace_bytes)
        destination.write_bytes(memoryview(plan_bytes))


def _monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Passes TensorRT's phases on. An exception cannot pass through C++: it ends the build and is kept."""

        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}
            self.error: BaseException | None = None

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            self.tell(phase_name, 0)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return self.tell(phase_name, step + 1)

        def phase_finish(self, phase_name: str) -> None:
            self.tell(phase_name, self.steps.pop(phase_name, 0))

        def tell(self, phase: str, done: int) -> bool:
            steps = self.steps.get(phase, 0)
            try:
                progress(phase, min(1.0, done / steps) if steps else None)
            except BaseException as error:
                self.error = self.error or error
            return self.error is None

    return Monitor()


def _check_shape_tensors(inputs: Sequence[Any], held: set[str], names: Sequence[str]) -> None:
    """Holds the inputs that the network takes shapes from to those that have values in the profiles of these names."""
    taken = {tensor.name: math.prod(tensor.shape) for tensor in inputs if tensor.is_shape_tensor}
    without = {name: count for name, count in taken.items() if name not in held}
    if without:
        told = ", ".join(f"{name!r} ({count} number{'s' * (count > 1)})" for name, count in without.items())
        typed = [
            profiles.override(profile, name, dict.fromkeys(("min", "opt", "max"), [1] * count), values=True)
            for profile in names
            for name, count in without.items()
        ]
        raise StageError(
            f"the model takes shapes from {told}, and no profile says between which values they lie",
            f"give them: {' '.join(typed)}",
        )
    for name in sorted(held - taken.keys()):
        raise StageError(
            f"the profiles give values of input {name!r}, and the network takes no shape from it",
            "leave it out of model.profiles: an input of a fixed shape needs no profile",
        )


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return round(time.perf_counter() - start, 3)


STAGE = Stage(
    name="build",
    version=4,
    config=BuildConfig,
    run=build,
    inputs=("onnx",),
    optional=("plugins",),
    outputs={"plan": "model.plan", "layers": layer_report.FILE},
    facts=("backend", "backend_version", "compute_capability", "gpu", "platform", "profiles"),
    # Whether a plan comes out refittable can depend on a GPU being there; any other plan does not.
    facts_when=lambda config: ("gpu_here",) if config.refittable else (),
    keyed=keyed,
    without_effect=without_effect,
    refuse=require_had,
    facts_seen=facts_seen,
    remembers=remembers,
    uses_gpu=True,
    by_address=True,
)
