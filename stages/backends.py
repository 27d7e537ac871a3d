"""What the two backends can do, and where they differ. No other module asks which backend or version it has.

Nothing here imports TensorRT, except `load`. What of a build's settings each has stands in the table of `stages.knobs`.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages import installed
from stages.gpus import Gpus, capabilities, capability, spelled
from stages.stage import StageError


@dataclass(frozen=True)
class Backend:
    """One of NVIDIA's two builders of plans.

    Attributes:
        name: What configs call it.
        short: What directories and refs call it: `rtx-1.7.1.116`.
        module: The Python module.
        distributions: Names that its packages have had, the one that gives the version first.
        lowest: The first version that is supported.
        below: The first version that is not supported any more.
        can_cross_build: Whether it builds for a GPU that is not in the machine.
        portable_across_capability: Whether a plan runs equally well on every GPU of its capability, so that the GPU's
            name is no part of the key.
        has_timing_cache: Whether a timing cache makes a difference.
        header_has_capabilities: Whether a plan's header says what it was built for.
        takes_compute_capability: Whether the builder config must be told the target.
        refit_flag_since: The first version whose serialization flags have `INCLUDE_REFIT`.
        buildable: The capabilities it builds for; None: that of any GPU it runs on.
        without_fp32_products: The capabilities for which it compiles no matrix product in float32.
        takes_plugins: Whether its networks can hold the user's own layers.
        plans_hold_graph: Whether a plan says in text which operations run in which types.
        polygraphy: What Polygraphy's variable `POLYGRAPHY_USE_TENSORRT_RTX` is to be, so that it takes this backend.
        install_hint: What a user does who does not have it.
    """

    name: str
    short: str
    module: str
    distributions: tuple[str, ...]
    lowest: str
    below: str
    can_cross_build: bool
    portable_across_capability: bool
    has_timing_cache: bool
    header_has_capabilities: bool
    takes_compute_capability: bool
    refit_flag_since: str
    buildable: tuple[str, ...] | None
    without_fp32_products: tuple[str, ...]
    takes_plugins: bool
    plans_hold_graph: bool
    polygraphy: str
    install_hint: str


BACKENDS: Mapping[str, Backend] = {
    "tensorrt_rtx": Backend(
        name="tensorrt_rtx",
        short="rtx",
        module="tensorrt_rtx",
        distributions=("tensorrt_rtx", "tensorrt_rtx_cu13", "tensorrt_rtx_cu12"),
        # Its plans never cross a release, and the header layout in `stages.plan` was read off 1.7.1.
        lowest="1.7",
        below="1.8",
        # Measured with 1.7.1.116 on a machine without a driver: plans for all six of `ComputeCapability`'s values.
        can_cross_build=True,
        portable_across_capability=True,
        # `create_timing_cache` gives 172 bytes that never grow; deprecated.
        has_timing_cache=False,
        header_has_capabilities=True,
        takes_compute_capability=True,
        refit_flag_since="1.7",
        buildable=("7.5", "8.0", "8.6", "8.9", "12.0", "12.1"),
        # `FP32 GEMM is not supported`, after parsing; a plan for 7.5 and others has the limits of 7.5.
        without_fp32_products=("7.5",),
        # It has a registry, and no way to put a plugin into a network.
        takes_plugins=False,
        plans_hold_graph=True,
        polygraphy="1",
        install_hint="pip install 'tensorrt-rtx>=1.7,<1.8' (from the public index; no GPU needed)",
    ),
    "tensorrt": Backend(
        name="tensorrt",
        short="trt",
        module="tensorrt",
        distributions=("tensorrt", "tensorrt_cu13", "tensorrt_cu12"),
        # 10.13 is the oldest release whose bindings the calls in `stages` were held against.
        lowest="10.13",
        below="12",
        can_cross_build=False,
        # NVIDIA's developer guide: another model of GPU of the same capability loads the plan with a warning and may
        # be slower, since the number of SMs, bus width, L2 and shared memory differ.
        portable_across_capability=False,
        has_timing_cache=True,
        header_has_capabilities=False,
        takes_compute_capability=False,
        refit_flag_since="10.14",
        buildable=None,
        without_fp32_products=(),
        takes_plugins=True,
        plans_hold_graph=False,
        polygraphy="0",
        install_hint="pip install 'trtforge[tensorrt]' with NVIDIA's package index as an extra index",
    ),
}


@dataclass(frozen=True)
class KnownBad:
    """Releases whose refittable plans compute something wrong.

    Attributes:
        backend: Whose.
        since: The first of them.
        below: The first release after them.
        refit: The words of `BuildConfig.refit` that lead to it.
        what: What goes wrong.
        instead: What to do.
    """

    backend: str
    since: str
    below: str
    refit: tuple[str, ...]
    what: str
    instead: str


KNOWN_BAD: tuple[KnownBad, ...] = (
    # NVIDIA's page on refitting of 11.3.0 says it of REFIT, and that REFIT_IDENTICAL does not do it; that of 11.4.0 has
    # no such words. Nobody says it of REFIT_INDIVIDUAL, and nobody says that it is free of it.
    KnownBad(
        backend="tensorrt",
        since="11.3",
        below="11.4",
        refit=("any", "named"),
        what="a refittable plan can lose the bias of a matrix product (Gemm), even before a refit",
        instead="take tensorrt 11.4 or 11.2 for this target, or refit: identical or none",
    ),
)


def find(backend: str) -> Backend:
    """The backend of this name.

    Raises:
        StageError: There is none.
    """
    if backend not in BACKENDS:
        raise StageError(f"unknown backend {backend!r}", f"use one of {', '.join(BACKENDS)}")
    return BACKENDS[backend]


def installed_version(backend: str) -> str | None:
    """The full version that is installed, such as `1.7.1.116`; None where it is not installed."""
    for distribution in find(backend).distributions:
        if found := installed.version(distribution):
            return re.sub(r"\.post\d+$", "", found)
    return None


def why_not_supported(backend: str, version: str) -> str | None:
    """Why trtforge does not work with this version of the backend; None where it does."""
    found = find(backend)
    if _numbers(found.lowest) <= _numbers(version) < _numbers(found.below):
        return None
    return f"{backend} {version} is not supported: {found.lowest} or later, below {found.below}"


def load(backend: str) -> Any:
    """Imports the backend's module.

    Raises:
        StageError: It is not installed, not supported, or cannot be imported.
    """
    found, version = find(backend), installed_version(backend)
    if version is None:
        raise StageError(f"{backend} is not installed", found.install_hint)
    reason = why_not_supported(backend, version)
    if reason:
        raise StageError(reason, found.install_hint)
    try:
        return importlib.import_module(found.module)
    except (ImportError, OSError) as error:
        # A missing libcudart or libnvinfer is an OSError or an ImportError, whoever loads it.
        raise StageError(f"{backend} {version} cannot be imported: {error}", found.install_hint) from error


def why_not_build(backend: str, compute_capability: str, here: Gpus) -> str | None:
    """Why this machine, with these GPUs, cannot build for the capability, or all of several; None where it can.

    What is installed is another question: `installed_version`.
    """
    found = find(backend)
    if beyond := _not_buildable(found, compute_capability):
        return f"{backend} builds for {', '.join(found.buildable or ())}, not for {beyond}"
    if len(capabilities(compute_capability)) > 1 and not found.takes_compute_capability:
        return (
            f"{backend} builds for the GPU it runs on, not for {spelled(compute_capability)} at once: take one of them "
            "as the target, and steps.build.config.hardware_compatibility_level=ampere_plus for a plan that runs on all"
        )
    if found.can_cross_build or here.of(compute_capability):
        return None
    return f"{backend} builds on the target's own GPU, and there is {no_gpu(compute_capability)}: {here}"


def why_not_run(backend: str, compute_capability: str, here: Gpus) -> str | None:
    """Why this machine, with these GPUs, cannot execute plans for the capability, or several; None where it can.

    The fact `gpu_here` is `why_not_run(...) is None`.
    """
    found = find(backend)
    if beyond := _not_buildable(found, compute_capability):
        return f"{backend} has no plans for {beyond}: it builds for {', '.join(found.buildable or ())}"
    return None if here.of(compute_capability) else no_gpu(compute_capability)


def why_not_refittable(backend: str, compute_capability: str, here: Gpus) -> str | None:
    """Why a refittable plan for the capability cannot be made on this machine; None where it can.

    TensorRT-RTX 1.7.1 compiles refittable Conv, MatMul and Gemm through the driver: without a GPU such a build ends in
    `graph_jit.cpp:278: CHECK(status == CUDA_SUCCESS) failed`.
    """
    reason = why_not_build(backend, compute_capability, here)
    if reason or here.of(compute_capability):
        return reason
    return f"{backend} makes refittable plans only on a GPU, and there is {no_gpu(compute_capability)}"


def no_gpu(compute_capability: str) -> str:
    """How every report says that a plan was not executed."""
    return f"no GPU of {spelled(compute_capability)} here"


def enum_name(compute_capability: str) -> str:
    """`8.9` as the backends' enums and errors write it: `SM89`."""
    major, minor = capability(compute_capability)
    return f"SM{major}{minor}"


def has_refit_flag(backend: str, version: str) -> bool:
    """Whether this version serializes a refitted engine with `SerializationFlag.INCLUDE_REFIT`."""
    return _numbers(version) >= _numbers(find(backend).refit_flag_since)


def known_bad(backend: str, version: str, refit: str) -> KnownBad | None:
    """What goes wrong with plans of this version that are built with `refit`; None where nobody knows of anything."""
    return next(
        (
            bad
            for bad in KNOWN_BAD
            if bad.backend == backend and refit in bad.refit
            if _numbers(bad.since) <= _numbers(version) < _numbers(bad.below)
        ),
        None,
    )


def is_before(version: str, other: str) -> bool:
    """Whether `version` came before `other`; `10.16.1.11` did not come before `10.16`."""
    return _numbers(version) < _numbers(other)


def same_version(one: str, other: str) -> bool:
    """Whether two versions agree in all the numbers that both give: some releases call themselves `10.3.0`."""
    return all(a == b for a, b in zip(_numbers(one), _numbers(other), strict=False))


def _not_buildable(found: Backend, compute_capability: str) -> str:
    beyond = [each for each in capabilities(compute_capability) if found.buildable and each not in found.buildable]
    return ", ".join(beyond)


def _numbers(version: str) -> tuple[int, ...]:
    found = re.match(r"\d+(\.\d+)*", version)
    if not found:
        raise StageError(f"{version!r} is no version", "write it as the backend does: 1.7.1.116")
    return tuple(int(number) for number in found.group().split("."))
