"""The knobs of a build: which backend and version has each, and what it does there.

One table, `KNOBS`, with a line for each field of `stages.build_config.BuildConfig`. What a backend lacks is refused
while a run is planned; what it takes without effect is not handed to it and does not enter its keys, so that a plan is
always made by what its key says. `NOT_KNOBS` lists what else a builder config has, and why no config sets it; a test
walks the API of every version and finds each name in one of the two. docs/knobs.md is made from both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase
from typing import Any

from stages import backends
from stages.build_config import BuildConfig
from stages.sizes import size_bytes
from stages.stage import StageError


class Effect(Enum):
    """What a knob does on a backend."""

    TAKEN = "taken"
    WITHOUT = "without effect"
    IGNORED = "ignored"
    LACKING = "lacking"


class Kind(Enum):
    """How a knob is set and read back; `stages.settings` has the two functions of each."""

    VALUE = "a number or text"
    SIZE = "an amount of bytes"
    WORD = "a member of an enum"
    FLAG = "a builder flag"
    POOL = "a memory pool"
    SOURCE = "a tactic source"
    PREVIEW = "a preview feature"
    REFIT = "one of several builder flags"
    WEIGHTS = "weights of the network"
    FORMATS = "formats of inputs and outputs"
    DEVICES = "devices of layers"


@dataclass(frozen=True)
class Standing:
    """How a knob stands on one backend.

    Attributes:
        effect: What it does there.
        since: The first version that has it; empty: every supported one.
        below: The first version that has it no more; empty: every supported one has it.
        why: Why the backend lacks it, or when it has no effect.
        needs: Another knob without which the backend cannot build with this one.
    """

    effect: Effect = Effect.TAKEN
    since: str = ""
    below: str = ""
    why: str = ""
    needs: str = ""

    def has(self, version: str) -> bool:
        """Whether this version has the knob."""
        if self.effect is Effect.LACKING or (self.since and backends.is_before(version, self.since)):
            return False
        return not self.below or backends.is_before(version, self.below)


@dataclass(frozen=True)
class Knob:
    """One setting of a build.

    Attributes:
        path: Its field of `BuildConfig`: `memory_pools.workspace`.
        kind: How it is set.
        api: What it is in TensorRT's API: `IBuilderConfig.max_aux_streams`, `BuilderFlag.TF32`.
        rtx: How it stands on `tensorrt_rtx`.
        tensorrt: How it stands on `tensorrt`.
        enum: The class of a `WORD`'s members.
        only_fails: Whether all that it can do is to fail a build: it is part of no key.
    """

    path: str
    kind: Kind
    api: tuple[str, ...]
    rtx: Standing
    tensorrt: Standing
    enum: str = ""
    only_fails: bool = False

    def on(self, backend: str) -> Standing:
        """How it stands on the backend."""
        return self.rtx if backend == "tensorrt_rtx" else self.tensorrt

    @property
    def member(self) -> str:
        """The last part of its name in the API: `TF32`."""
        return self.api[0].rpartition(".")[2]


_TAKEN = Standing()
_WITHOUT = Standing(Effect.WITHOUT)
_NO_DLA = Standing(Effect.LACKING, why="it has no DLA")
_NO_SAFETY = Standing(Effect.LACKING, why="it has the standard runtime only")
_NO_TIMING = Standing(Effect.WITHOUT, why="it times no tactics while it builds")
_NO_PLUGINS = Standing(Effect.LACKING, why="it has no plugins")


def _attribute(
    path: str, kind: Kind, rtx: Standing, tensorrt: Standing = _TAKEN, name: str = "", enum: str = ""
) -> Knob:
    return Knob(path, kind, (f"IBuilderConfig.{name or path}",), rtx, tensorrt, enum)


def _flag(path: str, rtx: Standing, tensorrt: Standing = _TAKEN) -> Knob:
    return Knob(path, Kind.FLAG, (f"BuilderFlag.{path.upper()}",), rtx, tensorrt)


def _member(path: str, kind: Kind, enum: str, rtx: Standing, tensorrt: Standing = _TAKEN) -> Knob:
    return Knob(path, kind, (f"{enum}.{path.partition('.')[2].upper()}",), rtx, tensorrt)


def _pool(path: str, rtx: Standing) -> Knob:
    return _member(f"memory_pools.{path}", Kind.POOL, "MemoryPoolType", rtx)


def _source(path: str, rtx: Standing, tensorrt: Standing = _TAKEN) -> Knob:
    return _member(f"tactic_sources.{path}", Kind.SOURCE, "TacticSource", rtx, tensorrt)


def _preview(path: str, rtx: Standing, tensorrt: Standing = _TAKEN) -> Knob:
    return _member(f"preview_features.{path}", Kind.PREVIEW, "PreviewFeature", rtx, tensorrt)


_ONLY_10 = Standing(below="11")
_NOT_IN_11 = Standing(Effect.LACKING, why="TensorRT 11 and TensorRT-RTX dropped it")

# What RTX 1.7.1.116 does was measured without a GPU, each knob by itself: plans of 11 models (convolutions, one with
# 2:4 sparse weights, matrix products, attention, reductions, INT8 Q/DQ, dynamic shapes; fp32 and fp16), byte for byte
# against the plan without it. WITHOUT: no plan changed. IGNORED: it reads back as before. In the order in which they
# are set: EXCLUDE_LEAN_RUNTIME is refused before VERSION_COMPATIBLE is on.
KNOBS: tuple[Knob, ...] = (
    _attribute("optimization_level", Kind.VALUE, _WITHOUT, name="builder_optimization_level"),
    _attribute("max_num_tactics", Kind.VALUE, _WITHOUT),
    _attribute("avg_timing_iterations", Kind.VALUE, _WITHOUT),
    _pool("workspace", _TAKEN),
    _pool("tactic_dram", _WITHOUT),
    _pool("tactic_shared_memory", _TAKEN),
    _pool("dla_managed_sram", _NO_DLA),
    _pool("dla_local_dram", _NO_DLA),
    _pool("dla_global_dram", _NO_DLA),
    _source("cublas", _NOT_IN_11, _ONLY_10),
    _source("cublas_lt", _NOT_IN_11, _ONLY_10),
    _source("cudnn", _NOT_IN_11, _ONLY_10),
    _source("edge_mask_convolutions", _WITHOUT),
    _source("jit_convolutions", _WITHOUT),
    _preview("profile_sharing_0806", _NOT_IN_11, _ONLY_10),
    _preview("aliased_plugin_io_10_03", _WITHOUT),
    _preview("runtime_activation_resize_10_10", _TAKEN),
    _preview("multidevice_runtime_10_16", _NOT_IN_11, Standing(since="10.16", below="11")),
    _attribute("profiling_verbosity", Kind.WORD, _TAKEN, enum="ProfilingVerbosity"),
    _attribute("max_aux_streams", Kind.VALUE, _TAKEN),
    _attribute("tiling_optimization_level", Kind.WORD, _WITHOUT, enum="TilingOptimizationLevel"),
    _attribute("l2_limit_for_tiling", Kind.SIZE, _WITHOUT),
    _attribute("build_route", Kind.VALUE, Standing(Effect.IGNORED), Standing(since="11.1")),
    _flag("tf32", _TAKEN),
    _flag("sparse_weights", _WITHOUT),
    _flag("strict_nans", _WITHOUT),
    _flag("distributive_independence", _WITHOUT),
    _flag("direct_io", _WITHOUT),
    Knob("io_formats", Kind.FORMATS, ("ITensor.allowed_formats",), _TAKEN, _TAKEN, "TensorFormat"),
    _attribute(
        "hardware_compatibility_level",
        Kind.WORD,
        Standing(Effect.IGNORED, why="its plans run on every GPU of their capability"),
        enum="HardwareCompatibilityLevel",
    ),
    # Alone it fails on RTX: `Unable to load library: libnvinfer_lean.so.1`, which no wheel holds.
    _flag("version_compatible", Standing(needs="exclude_lean_runtime")),
    _flag("exclude_lean_runtime", _TAKEN),
    _attribute(
        "runtime_platform",
        Kind.WORD,
        Standing(Effect.LACKING, why="its plans run where they are built"),
        enum="RuntimePlatform",
    ),
    Knob(
        "refit",
        Kind.REFIT,
        ("BuilderFlag.REFIT", "BuilderFlag.REFIT_IDENTICAL", "BuilderFlag.REFIT_INDIVIDUAL"),
        _TAKEN,
        _TAKEN,
    ),
    Knob("refittable_weights", Kind.WEIGHTS, ("INetworkDefinition.mark_weights_refittable",), _TAKEN, _TAKEN),
    _flag("strip_plan", _TAKEN),
    _flag("weight_streaming", _TAKEN),
    _flag("require_user_allocation", _TAKEN, Standing(Effect.LACKING)),
    _attribute("engine_capability", Kind.WORD, _NO_SAFETY, enum="EngineCapability"),
    _flag("safety_scope", _WITHOUT),
    _attribute("remote_auto_tuning_config", Kind.VALUE, _NO_SAFETY),
    _attribute("default_device_type", Kind.WORD, _NO_DLA, enum="DeviceType"),
    _attribute("dla_core", Kind.VALUE, _NO_DLA, name="DLA_core"),
    _flag("gpu_fallback", _WITHOUT),
    Knob("layer_device_types", Kind.DEVICES, ("IBuilderConfig.set_device_type",), _NO_DLA, _TAKEN, "DeviceType"),
    _attribute("plugins_to_serialize", Kind.VALUE, _NO_PLUGINS),
    _flag("disable_compilation_cache", _WITHOUT),
    _flag("disable_timing_cache", _WITHOUT),
    Knob("pin_tactics", Kind.FLAG, ("BuilderFlag.EDITABLE_TIMING_CACHE",), _NO_TIMING, _TAKEN),
    Knob(
        "error_on_miss",
        Kind.FLAG,
        ("BuilderFlag.ERROR_ON_TIMING_CACHE_MISS",),
        _NO_TIMING,
        _TAKEN,
        only_fails=True,
    ),
    _flag("monitor_memory", _WITHOUT),
    _flag("debug", _WITHOUT),
)

_TYPED = "networks are strongly typed: precision is what the ONNX says"
_READ = "reads what a knob sets"
_PROFILES = "model.profiles and model.dims make the optimization profiles"
_TARGET = "the target says what is built for"
_ANOTHER = "another name of a knob: "

NOT_KNOBS: Mapping[str, str] = {
    "IBuilderConfig.add_optimization_profile": _PROFILES,
    "IBuilderConfig.num_optimization_profiles": _PROFILES,
    "IBuilderConfig.set_calibration_profile": _TYPED,
    "IBuilderConfig.get_calibration_profile": _TYPED,
    "IBuilderConfig.int8_calibrator": _TYPED,
    "IBuilderConfig.quantization_flags": _TYPED,
    "IBuilderConfig.*_quantization_flag": _TYPED,
    "IBuilderConfig.algorithm_selector": "a callback into the user's own code, which no key could hold; gone in 11",
    "IBuilderConfig.profile_stream": "a handle of a CUDA stream that lives in the process",
    "IBuilderConfig.progress_monitor": "reports to trtforge, whose callback cannot change the plan",
    "IBuilderConfig.flags": _ANOTHER + "all builder flags in one number, and numbers shift between versions",
    "IBuilderConfig.*_flag": "sets, clears and reads the builder flags, each a knob of its own",
    "IBuilderConfig.*_memory_pool_limit": "sets and reads memory_pools",
    "IBuilderConfig.*_tactic_sources": "sets and reads tactic_sources",
    "IBuilderConfig.*_preview_feature": "sets and reads preview_features",
    "IBuilderConfig.get_device_type": _READ,
    "IBuilderConfig.is_device_type_set": _READ,
    "IBuilderConfig.reset_device_type": "a config of a build is fresh: there is nothing to reset",
    "IBuilderConfig.reset": "a config of a build is fresh: there is nothing to reset",
    "IBuilderConfig.can_run_on_DLA": "asks, and sets nothing",
    "IBuilderConfig.all_build_routes": "asks, and sets nothing",
    "IBuilderConfig.*_compute_capability": _TARGET,
    "IBuilderConfig.num_compute_capabilities": _TARGET,
    "IBuilderConfig.*_timing_cache": "reads and writes the timing cache, which the store keeps",
    "BuilderFlag.FP16": _TYPED,
    "BuilderFlag.BF16": _TYPED,
    "BuilderFlag.FP8": _TYPED,
    "BuilderFlag.FP4": _TYPED,
    "BuilderFlag.INT8": _TYPED,
    "BuilderFlag.INT4": _TYPED,
    "BuilderFlag.OBEY_PRECISION_CONSTRAINTS": _TYPED,
    "BuilderFlag.PREFER_PRECISION_CONSTRAINTS": _TYPED,
    "BuilderFlag.REJECT_EMPTY_ALGORITHMS": "for algorithm_selector, which is no knob",
    "BuilderFlag.WEIGHTLESS": _ANOTHER + "strip_plan",
    # Not of the builder, and asked for beside it.
    "ICudaEngine.weight_streaming_budget_v2": "set when the engine is loaded, and part of no plan",
    "Runtime.temporary_directory": "of a runtime that loads a version-compatible plan; a build writes none",
    "Runtime.tempfile_control_flags": "of a runtime that loads a version-compatible plan",
    "ITensor.dtype": _TYPED + "; the pass cast_io of surgery changes inputs and outputs",
}
"""Names of the API, `*` for any letters, that no config sets, with the reason."""


def given(config: BuildConfig) -> dict[str, Any]:
    """What `config` sets, by the knobs' paths and in the table's order: sizes in bytes, what is null left out."""
    values = {knob.path: _value(config, knob) for knob in KNOBS}
    return {path: value for path, value in values.items() if value not in (None, {}, []) and (path, value) != _NO_REFIT}


def effective(config: BuildConfig, backend: str) -> dict[str, Any]:
    """What of `given` has an effect on the backend: what is set on it."""
    return {path: value for path, value in given(config).items() if find(path).on(backend).effect is Effect.TAKEN}


def keyed(config: BuildConfig, backend: str) -> dict[str, Any]:
    """What of `config` changes the plans that the backend makes, and so is part of their keys."""
    return {path: value for path, value in effective(config, backend).items() if not find(path).only_fails}


def without_effect(config: BuildConfig, backend: str) -> list[str]:
    """The paths of the settings that the backend takes without effect, or ignores."""
    return [path for path in given(config) if find(path).on(backend).effect in (Effect.WITHOUT, Effect.IGNORED)]


def require_had(config: BuildConfig, backend: str, version: str) -> None:
    """Holds what `config` sets to what this version of the backend has.

    Raises:
        StageError: It lacks a setting; names the versions that have it.
    """
    values = given(config)
    for path, value in values.items():
        standing = find(path).on(backend)
        if not standing.has(version):
            why = f": {standing.why}" if standing.why else ""
            raise StageError(
                f"{path}={spelled(value)}: {backend} {version} has no such setting{why}",
                f"leave it out for this target; {owners(find(path))} it",
            )
        if standing.needs and not values.get(standing.needs):
            raise StageError(
                f"{path}={spelled(value)}: {backend} has it only together with {standing.needs}",
                f"add {standing.needs}: true",
            )


def find(path: str) -> Knob:
    """The knob of this field."""
    return _BY_PATH[path]


def owners(knob: Knob) -> str:
    """Which backends and versions have the knob: `tensorrt 11.1 and later has`."""
    standings = {name: knob.on(name) for name in backends.BACKENDS}
    having = [name + _range(standing) for name, standing in standings.items() if standing.effect is not Effect.LACKING]
    return f"{' and '.join(having)} {'have' if len(having) > 1 else 'has'}"


def why_no_knob(name: str) -> str | None:
    """Why this name of the API is no knob; None where it does not stand in `NOT_KNOBS`."""
    return next((reason for pattern, reason in NOT_KNOBS.items() if fnmatchcase(name, pattern)), None)


def spelled(value: Any) -> str:
    """A value as YAML writes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


_BY_PATH = {knob.path: knob for knob in KNOBS}
_NO_REFIT = ("refit", "none")


def _range(standing: Standing) -> str:
    since = f" {standing.since} and later" if standing.since else ""
    below = f" below {standing.below}" if standing.below else ""
    return ",".join(filter(None, (since, below)))


def _value(config: BuildConfig, knob: Knob) -> Any:
    value: Any = config
    for name in knob.path.split("."):
        value = getattr(value, name)
    return size_bytes(value) if value is not None and knob.kind in (Kind.POOL, Kind.SIZE) else value
