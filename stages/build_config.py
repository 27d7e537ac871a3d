"""What can be set of a build: every knob of TensorRT's `IBuilderConfig`, under its own name.

`stages.knobs` says which backend and version has which, and `stages.settings` sets them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.allowed import require, require_at_least, require_between, require_size, require_word

REFIT = ("none", "any", "identical", "named")
PROFILING_VERBOSITY = ("layer_names_only", "none", "detailed")
TILING_OPTIMIZATION_LEVEL = ("none", "fast", "moderate", "full")
HARDWARE_COMPATIBILITY_LEVEL = ("none", "ampere_plus", "same_compute_capability")
RUNTIME_PLATFORM = ("same_as_build", "windows_amd64")
ENGINE_CAPABILITY = ("standard", "safety", "dla_standalone")
DEVICE_TYPE = ("gpu", "dla")
TENSOR_FORMAT = (
    *("linear", "chw2", "hwc8", "chw4", "chw16", "chw32", "dhwc8", "cdhw32"),
    *("hwc", "dla_linear", "dla_hwc4", "hwc16", "dhwc"),
)


@dataclass(frozen=True)
class MemoryPools:
    """The most that the builder may take of each memory, as a size: `2GiB`; null: as the backend has it.

    Attributes:
        workspace: Device memory for a layer's intermediate results.
        tactic_dram: Device memory that a tactic may use while it is tried.
        tactic_shared_memory: Shared memory of a streaming multiprocessor that a tactic may use.
        dla_managed_sram: On-chip memory of a DLA core; a power of two.
        dla_local_dram: Host memory of a DLA core for intermediate tensors; a power of two.
        dla_global_dram: Host memory of a DLA core for weights; a power of two.
    """

    workspace: str | None = None
    tactic_dram: str | None = None
    tactic_shared_memory: str | None = None
    dla_managed_sram: str | None = None
    dla_local_dram: str | None = None
    dla_global_dram: str | None = None

    def __post_init__(self) -> None:
        require_size(self, "workspace", "tactic_dram", "tactic_shared_memory")
        require_size(self, "dla_managed_sram", "dla_local_dram", "dla_global_dram")


@dataclass(frozen=True)
class TacticSources:
    """Which libraries tactics may come from; null: as the backend has it.

    Attributes:
        cublas: cuBLAS.
        cublas_lt: cuBLASLt.
        cudnn: cuDNN.
        edge_mask_convolutions: Convolutions that use edge masks; fast, at the price of host memory.
        jit_convolutions: Convolutions that are compiled while the plan is built.
    """

    cublas: bool | None = None
    cublas_lt: bool | None = None
    cudnn: bool | None = None
    edge_mask_convolutions: bool | None = None
    jit_convolutions: bool | None = None


@dataclass(frozen=True)
class PreviewFeatures:
    """Features that are not on by default yet; null: as the backend has it.

    Attributes:
        profile_sharing_0806: Execution contexts may share an optimization profile.
        aliased_plugin_io_10_03: A plugin may write where it reads.
        runtime_activation_resize_10_10: Memory for activations may be fitted to the actual shapes.
        multidevice_runtime_10_16: One engine may run on several GPUs.
    """

    profile_sharing_0806: bool | None = None
    aliased_plugin_io_10_03: bool | None = None
    runtime_activation_resize_10_10: bool | None = None
    multidevice_runtime_10_16: bool | None = None


@dataclass(frozen=True)
class BuildConfig:
    """How to build. What is null stays as the backend has it.

    Attributes:
        optimization_level: 0 (fastest build) to 5 (most tactics tried).
        max_num_tactics: The most tactics to time where there is a choice; -1: as many as TensorRT thinks right.
        avg_timing_iterations: How often a tactic is timed for one average.
        memory_pools: The most that the builder may take of each memory.
        tactic_sources: Which libraries tactics may come from.
        preview_features: Features that are not on by default yet.
        profiling_verbosity: `layer_names_only`, `none` or `detailed`: what an engine inspector will show.
        max_aux_streams: Auxiliary CUDA streams for layers that can run side by side; 0: none.
        tiling_optimization_level: `none`, `fast`, `moderate` or `full`: how long to look for ways to keep data in L2.
        l2_limit_for_tiling: How much L2 cache tiling may count on, as a size: `2MiB`.
        build_route: The compiler's own options, `-name=value` after `-name=value`.
        tf32: Whether FP32 matrix products and convolutions may round their inputs to TF32.
        sparse_weights: Whether weights with two zeros of four may be multiplied by sparse tactics.
        strict_nans: Whether `0*x`, `x-x` and `x/x` are computed, since they are NaN where x is NaN or infinite.
        distributive_independence: Whether equal inputs along an axis that a layer distributes over give equal results,
            however long the axis is.
        direct_io: Whether no reformatting may be put between the network's inputs, outputs and its layers.
        io_formats: Formats allowed for an input or output, by its name: `{x: [chw16, hwc8]}`.
        hardware_compatibility_level: `none`, `ampere_plus` or `same_compute_capability`: what other GPUs may run it.
        version_compatible: Whether later versions of TensorRT may run the plan.
        exclude_lean_runtime: Whether a version-compatible plan comes without the lean runtime.
        runtime_platform: `same_as_build` or `windows_amd64`: where the plan will run.
        refit: `none`; `any`: other weights can be put in, at some cost of speed; `identical`: full speed, and only the
            weights that it was built with may be put in; `named`: others can be put in of `refittable_weights` alone.
        refittable_weights: Patterns of the initializers' names that `refit: named` is about: `['*lora*']`.
        strip_plan: Whether the plan comes without its weights; null: with `refit: identical` it does.
        weight_streaming: Whether weights can be streamed from the host; how many is said when the engine is loaded.
        require_user_allocation: Whether whoever runs the plan gives it its memory.
        engine_capability: `standard`, `safety` or `dla_standalone`: what will run the plan.
        safety_scope: Whether the network is held to what the safety runtime can do.
        remote_auto_tuning_config: Where tactics of a safety engine are timed.
        default_device_type: `gpu` or `dla`: where layers run.
        dla_core: The DLA core to run on, from 0.
        gpu_fallback: Whether layers that DLA cannot run go to the GPU.
        layer_device_types: `gpu` or `dla` for the layers whose name fits a pattern, of several the longest:
            `{conv*: dla}`.
        plugins_to_serialize: File names out of `model.plugins` whose libraries the plan carries.
        disable_compilation_cache: Whether code compiled for one layer is not used again for the next.
        disable_timing_cache: Whether timings of one layer are not used again for the next.
        pin_tactics: Whether the timings behind the plan's tactics are kept with it, so that it is built again with the
            same ones.
        error_on_miss: Whether a build fails that needs a timing it has not; null: only where `pin_tactics` has kept
            those of an earlier build of this plan.
        monitor_memory: Whether the log says what memory the build takes.
        debug: Whether the builder synchronizes after each layer, to find the one that fails.
        allow_fake_quant: Whether a plan is taken that computes quantized convolutions or matrix products in float.
    """

    optimization_level: int | None = None
    max_num_tactics: int | None = None
    avg_timing_iterations: int | None = None
    memory_pools: MemoryPools = field(default_factory=MemoryPools)
    tactic_sources: TacticSources = field(default_factory=TacticSources)
    preview_features: PreviewFeatures = field(default_factory=PreviewFeatures)
    profiling_verbosity: str | None = None
    max_aux_streams: int | None = None
    tiling_optimization_level: str | None = None
    l2_limit_for_tiling: str | None = None
    build_route: str | None = None
    tf32: bool = True
    sparse_weights: bool | None = None
    strict_nans: bool | None = None
    distributive_independence: bool | None = None
    direct_io: bool | None = None
    io_formats: dict[str, list[str]] = field(default_factory=dict)
    hardware_compatibility_level: str | None = None
    version_compatible: bool | None = None
    exclude_lean_runtime: bool | None = None
    runtime_platform: str | None = None
    refit: str = "none"
    refittable_weights: list[str] = field(default_factory=list)
    strip_plan: bool | None = None
    weight_streaming: bool | None = None
    require_user_allocation: bool | None = None
    engine_capability: str | None = None
    safety_scope: bool | None = None
    remote_auto_tuning_config: str | None = None
    default_device_type: str | None = None
    dla_core: int | None = None
    gpu_fallback: bool | None = None
    layer_device_types: dict[str, str] = field(default_factory=dict)
    plugins_to_serialize: list[str] = field(default_factory=list)
    disable_compilation_cache: bool | None = None
    disable_timing_cache: bool | None = None
    pin_tactics: bool | None = None
    error_on_miss: bool | None = None
    monitor_memory: bool | None = None
    debug: bool | None = None
    allow_fake_quant: bool = False

    def __post_init__(self) -> None:
        require_between(self, 0, 5, "optimization_level")
        tactics = self.max_num_tactics
        # 0 is taken with a warning and changes nothing.
        require(
            tactics is None or tactics == -1 or tactics > 0, "max_num_tactics", tactics, "-1, or 1 and more, or null"
        )
        require_at_least(self, 1, "avg_timing_iterations")
        require_at_least(self, 0, "max_aux_streams", "dla_core")
        require_size(self, "l2_limit_for_tiling")
        require_word(self, "profiling_verbosity", PROFILING_VERBOSITY)
        require_word(self, "tiling_optimization_level", TILING_OPTIMIZATION_LEVEL)
        require_word(self, "hardware_compatibility_level", HARDWARE_COMPATIBILITY_LEVEL)
        require_word(self, "runtime_platform", RUNTIME_PLATFORM)
        require_word(self, "engine_capability", ENGINE_CAPABILITY)
        require_word(self, "default_device_type", DEVICE_TYPE)
        require_word(self, "refit", REFIT)
        _require_words("layer_device_types", self.layer_device_types.values(), DEVICE_TYPE)
        for tensor, formats in self.io_formats.items():
            require(bool(formats), f"io_formats.{tensor}", formats, f"one or more of {', '.join(TENSOR_FORMAT)}")
            _require_words(f"io_formats.{tensor}", formats, TENSOR_FORMAT)
        lean = self.exclude_lean_runtime
        require(
            not lean or bool(self.version_compatible), "exclude_lean_runtime", lean, "with version_compatible: true"
        )
        timed = not self.disable_timing_cache and self.optimization_level != 0
        needs = "with a timing cache, which disable_timing_cache: true and optimization_level: 0 do without"
        for key in ("pin_tactics", "error_on_miss"):
            require(timed or not getattr(self, key), key, getattr(self, key), needs)
        weights, named = self.refittable_weights, self.refit == "named"
        require(bool(weights) == named, "refittable_weights", weights, "patterns, with refit: named and only then")

    @property
    def refittable(self) -> bool:
        """Whether a plan is asked for that weights can be put into; a stripped plan must be."""
        return self.refit != "none" or bool(self.strip_plan)


def _require_words(key: str, values: Any, words: Sequence[str]) -> None:
    for value in values:
        require(value in words, key, value, ", ".join(words))
