"""Stage `build`: an ONNX file becomes a TensorRT plan for one target.

The network is always strongly typed: precision is what the ONNX says. Whoever runs this stage runs it in a process of
its own, since TensorRT may crash, abort or be killed; its stderr is the step's log.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages import backends, network, plan, profiles
from stages.allowed import require_at_least, require_between, require_word
from stages.builder_log import build_error, config_error, make_logger
from stages.gpus import gpus, use
from stages.stage import Job, Metrics, Progress, Stage, StageError

REFIT = ("none", "any", "identical")
PROFILING_VERBOSITY = ("layer_names_only", "none", "detailed")


@dataclass(frozen=True)
class BuildConfig:
    """How to build. What is None stays as the backend has it.

    Attributes:
        optimization_level: 0 (fastest build) to 5 (most tactics tried).
        workspace_bytes: The most memory that a layer may take for its intermediate results.
        max_aux_streams: Auxiliary CUDA streams for layers that can run side by side.
        tf32: Whether FP32 matrix products and convolutions may round their inputs to TF32.
        profiling_verbosity: `layer_names_only`, `none` or `detailed`: what an engine inspector will show.
        refit: `none`; `any`: other weights can be put in, at some cost of speed; `identical`: full speed, the plan has
            no weights, and only those that it was built with may be put in.
    """

    optimization_level: int | None = None
    workspace_bytes: int | None = None
    max_aux_streams: int | None = None
    tf32: bool = True
    profiling_verbosity: str | None = None
    refit: str = "none"

    def __post_init__(self) -> None:
        require_between(self, 0, 5, "optimization_level")
        require_at_least(self, 1, "workspace_bytes")
        require_at_least(self, 0, "max_aux_streams")
        require_word(self, "profiling_verbosity", PROFILING_VERBOSITY)
        require_word(self, "refit", REFIT)


def build(job: Job[BuildConfig]) -> Metrics:
    """Builds `onnx` into `plan` for the target that the facts describe.

    Returns:
        Metrics: `plan_bytes`, `layers`, `compute_capabilities`, `backend_version`, `refittable`, `refit_reason` (why a
        refittable plan was asked for and not made) and `seconds` of `parse` and `build`.

    Raises:
        StageError: The backend is missing or of another version, cannot build for the target, does not take the model
            or a setting; or the plan it made is not for the target.
    """
    facts = job.facts
    backend, compute_capability = facts["backend"], facts["compute_capability"]
    trt = _backend(backend, facts["backend_version"], compute_capability, facts["gpu"])
    refit_reason = None
    if job.config.refit != "none":
        refit_reason = backends.why_not_refittable(backend, compute_capability, gpus())
    refit = "none" if refit_reason else job.config.refit

    job.progress("parse", None)
    model = network.read_model(job.inputs["onnx"])
    builder = _Builder(trt, backend, compute_capability, job.progress)
    network.load_plugins(builder.builder.get_plugin_registry(), job.inputs.get("plugins", ()))
    seconds = {"parse": _timed(lambda: builder.parse(model, facts["profiles"]))}
    builder.configure(job.config, refit)
    destination = job.out / "model.plan"
    seconds["build"] = _timed(lambda: builder.write_plan(destination))

    header = plan.read(destination)
    plan.check(header, backend, facts["backend_version"], compute_capability)
    return {
        "plan_bytes": header.bytes,
        "layers": builder.network.num_layers,
        "compute_capabilities": list(header.compute_capabilities) or [compute_capability],
        "backend_version": header.version,
        "refittable": refit != "none",
        "refit_reason": refit_reason,
        "seconds": seconds,
    }


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
        self.builder = trt.Builder(self.logger)
        self.network = self.builder.create_network(_strongly_typed(trt))
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
        for tensor in inputs:
            _refuse_shape_tensor(tensor)
        shapes = {tensor.name: tuple(tensor.shape) for tensor in inputs}
        found = profiles.profiles_of(profiles_fact)
        profiles.check(found, shapes)
        if any(-1 in shape for shape in shapes.values()):
            for profile in found:
                self._add_profile(profile)

    def _add_profile(self, profile: profiles.Profile) -> None:
        optimization = self.builder.create_optimization_profile()
        self.kept.append(optimization)
        for name, shapes in profile.ranges.items():
            optimization.set_shape(name, shapes.min, shapes.opt, shapes.max)
        if self.config.add_optimization_profile(optimization) < 0:
            raise StageError(f"TensorRT refuses profile {profile.name!r}: {'; '.join(self.logger.errors)}")

    def configure(self, settings: BuildConfig, refit: str) -> None:
        trt, config = self.trt, self.config
        if backends.find(self.backend).takes_compute_capability:
            target = getattr(trt.ComputeCapability, backends.enum_name(self.compute_capability))
            config.num_compute_capabilities = 1
            config.set_compute_capability(target, 0)
            self._holds("compute_capability", target, config.get_compute_capability(0))
        for name, attribute in (
            ("optimization_level", "builder_optimization_level"),
            ("max_aux_streams", "max_aux_streams"),
        ):
            if (value := getattr(settings, name)) is not None:
                setattr(config, attribute, value)
                self._holds(name, value, getattr(config, attribute))
        if settings.workspace_bytes is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_bytes)
            got = config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE)
            self._holds("workspace_bytes", settings.workspace_bytes, got)
        if settings.profiling_verbosity is not None:
            config.profiling_verbosity = getattr(trt.ProfilingVerbosity, settings.profiling_verbosity.upper())
            self._holds("profiling_verbosity", settings.profiling_verbosity, config.profiling_verbosity.name.lower())
        self._flag("TF32", settings.tf32)
        self._flag("REFIT", refit == "any")
        self._flag("REFIT_IDENTICAL", refit == "identical")
        self._flag("STRIP_PLAN", refit == "identical")
        config.progress_monitor = self.monitor

    def write_plan(self, destination: Path) -> None:
        plan_bytes = self.builder.build_serialized_network(self.network, self.config)
        if self.monitor.error is not None:
            raise self.monitor.error
        if plan_bytes is None:
            workspace_bytes = self.config.get_memory_pool_limit(self.trt.MemoryPoolType.WORKSPACE)
            raise build_error(self.logger, self.backend, self.compute_capability, workspace_bytes)
        destination.write_bytes(memoryview(plan_bytes))

    def _flag(self, name: str, on: bool) -> None:
        flag = getattr(self.trt.BuilderFlag, name)
        if self.config.get_flag(flag) != on:
            (self.config.set_flag if on else self.config.clear_flag)(flag)
            self._holds(name.lower(), on, self.config.get_flag(flag))

    def _holds(self, setting: str, asked: object, got: object) -> None:
        if asked != got:
            raise config_error(setting, asked, got, self.backend, self.logger.errors)


def _strongly_typed(trt: Any) -> int:
    """The flag's number differs between versions; TensorRT-RTX and TensorRT 11 take it too, though all is typed."""
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


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


def _refuse_shape_tensor(tensor: Any) -> None:
    if tensor.is_shape_tensor:
        raise StageError(
            f"input {tensor.name!r} holds a shape, and a profile gives shapes of inputs, not their values",
            "fix its value in the model: export it with a constant shape",
        )


def _timed(work: Callable[[], None]) -> float:
    start = time.perf_counter()
    work()
    return round(time.perf_counter() - start, 3)


STAGE = Stage(
    name="build",
    version=1,
    config=BuildConfig,
    run=build,
    inputs=("onnx",),
    optional=("plugins",),
    outputs={"plan": "model.plan"},
    facts=("backend", "backend_version", "compute_capability", "gpu", "platform", "profiles"),
    # Whether a plan comes out refittable can depend on a GPU being there; any other plan does not.
    facts_when=lambda config: ("gpu_here",) if config.refit != "none" else (),
)
