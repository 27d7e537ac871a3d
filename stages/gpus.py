"""The GPUs of this machine, and what a compute capability can compute in.

Asked through CUDA's driver API, which needs no TensorRT and no CUDA toolkit. A machine without a driver is an answer,
not an error: it has no GPUs, and `Gpus.reason` says why.

NOTE: CUDA does not survive a fork: a process that asked here starts its children with `spawn`, or as new programs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stages.stage import StageError

PRECISIONS: Mapping[str, str] = {
    "fp32": "7.5",
    "fp16": "7.5",
    "int8": "7.5",
    "tf32": "8.0",
    "bf16": "8.0",
    "int4": "8.0",
    "fp8": "8.9",
    "mxfp8": "8.9",
    "nvfp4": "10.0",
}
"""The lowest compute capability that has each precision.

Source: NVIDIA's TensorRT support matrix (FP8 8.9+, INT4 8.0+, BF16 8.0+, NVFP4 10.0 and 12.0), and 552 builds with
TensorRT-RTX 1.7.1: 92 graphs for each of its six capabilities. Two things that no table of hardware says: for 7.5
TensorRT-RTX refuses FP32 matrix products, and computes INT8 convolutions in float.
"""


@dataclass(frozen=True)
class Gpu:
    """One GPU.

    Attributes:
        name: As the driver gives it: `NVIDIA L4`.
        uuid: `GPU-` and 32 hex digits in five groups, as `nvidia-smi -L` prints it.
        compute_capability: Such as `8.9`.
        memory_bytes: All of its memory.
    """

    name: str
    uuid: str
    compute_capability: str
    memory_bytes: int


@dataclass(frozen=True)
class Gpus:
    """The GPUs of this machine, in CUDA's order.

    Attributes:
        found: Those that this process may use; `CUDA_VISIBLE_DEVICES` counts.
        reason: Why there are none; empty where there are some.
    """

    found: tuple[Gpu, ...]
    reason: str = ""

    def of(self, compute_capability: str) -> tuple[Gpu, ...]:
        """Those of exactly this capability; of several, as `capabilities` reads them, those of any."""
        return tuple(gpu for gpu in self.found if gpu.compute_capability in capabilities(compute_capability))

    def __str__(self) -> str:
        return ", ".join(f"{gpu.name} ({gpu.compute_capability})" for gpu in self.found) or f"none ({self.reason})"


class _CudaError(Exception):
    """A call of the driver API failed."""


def gpus() -> Gpus:
    """Looks for GPUs; a machine without any, or with a broken driver, answers with the reason."""
    try:
        from cuda.bindings import driver

        _call(driver.cuInit, 0)
        found = tuple(_gpu(driver, ordinal) for ordinal in range(_call(driver.cuDeviceGetCount)))
        return Gpus(found, "" if found else "the driver finds no GPU")
    except ImportError as error:
        return Gpus((), f"cuda-python is not installed ({error})")
    except _CudaError as error:
        return Gpus((), str(error))
    except RuntimeError as error:
        # cuda-python raises RuntimeError, or a subclass of it, where libcuda is missing or lacks a function.
        return Gpus((), f"no NVIDIA driver: {str(error).splitlines()[0]}")


def use(compute_capability: str, name: str | None = None) -> None:
    """Makes a GPU of this capability (and name) the one that this thread's CUDA calls, TensorRT's too, go to.

    Of several capabilities it is the first GPU that has one of them.

    Raises:
        StageError: There is none, or CUDA refuses it.
    """
    here = gpus()
    for ordinal, gpu in enumerate(here.found):
        if gpu.compute_capability in capabilities(compute_capability) and name in (None, gpu.name):
            return _make_current(ordinal)
    wanted = f"GPU of {spelled(compute_capability)}" if name is None else f"{name} ({compute_capability})"
    raise StageError(f"no {wanted} here: this machine has {here}", "run the step on a machine with that GPU")


def why_no_precision(precision: str, compute_capability: str) -> str | None:
    """Why a GPU of this capability has no such precision; None where it has.

    Args:
        precision: One of `PRECISIONS`.
        compute_capability: Such as `8.6`; of several, each must have it.

    Raises:
        StageError: Nobody knows the precision, or the capability is no number.
    """
    if precision not in PRECISIONS:
        raise StageError(f"unknown precision {precision!r}", f"use one of {', '.join(PRECISIONS)}")
    lowest, own = PRECISIONS[precision], capabilities(compute_capability)[0]
    if capability(own) >= capability(lowest):
        return None
    return f"{precision} needs compute capability {lowest} or higher, the target has {own}"


def capability(text: str) -> tuple[int, int]:
    """`"8.9"` as `(8, 9)`, which compares as it should where the text does not (`"12.0" < "8.9"`).

    Raises:
        StageError: It is no capability.
    """
    major, dot, minor = text.partition(".")
    if not (dot and major.isascii() and major.isdigit() and minor.isascii() and minor.isdigit()):
        raise StageError(f"{text!r} is no compute capability", "write it as major.minor: 8.9")
    return int(major), int(minor)


def capabilities(text: str) -> tuple[str, ...]:
    """`"8.9"` as `("8.9",)`; `"8.9,8.0"`, what one plan for several GPUs is for, as `("8.0", "8.9")`, lowest first.

    Raises:
        StageError: One of them is no capability.
    """
    return tuple(sorted({part.strip() for part in text.split(",")}, key=capability))


def architecture(compute_capability: str) -> str:
    """As NVIDIA writes it, `sm_89`; several as `sm_80_89`, which can be part of a path and of a URL."""
    return "sm_" + "_".join(each.replace(".", "") for each in capabilities(compute_capability))


def spelled(compute_capability: str) -> str:
    """For people: `8.9`; `8.0, 8.6 or 8.9`."""
    *others, last = capabilities(compute_capability)
    return f"{', '.join(others)} or {last}" if others else last


def _call(function: Any, *arguments: Any) -> Any:
    from cuda.bindings import driver

    code, *results = function(*arguments)
    if code != driver.CUresult.CUDA_SUCCESS:
        _, text = driver.cuGetErrorString(code)
        detail = text.decode() if text else "unknown error"
        raise _CudaError(f"{function.__name__}: {code.name}: {detail}")
    return results[0] if results else None


def _gpu(driver: Any, ordinal: int) -> Gpu:
    device = _call(driver.cuDeviceGet, ordinal)
    attribute = driver.CUdevice_attribute
    major = _call(driver.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, device)
    minor = _call(driver.cuDeviceGetAttribute, attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR, device)
    raw = bytes(_call(getattr(driver, "cuDeviceGetUuid_v2", driver.cuDeviceGetUuid), device).bytes).hex()
    return Gpu(
        name=_call(driver.cuDeviceGetName, 256, device).split(b"\0")[0].decode(),
        uuid=f"GPU-{raw[:8]}-{raw[8:12]}-{raw[12:16]}-{raw[16:20]}-{raw[20:]}",
        compute_capability=f"{major}.{minor}",
        memory_bytes=_call(driver.cuDeviceTotalMem, device),
    )


def _make_current(ordinal: int) -> None:
    from cuda.bindings import driver

    try:
        # The primary context is the one that the CUDA runtime inside TensorRT picks up from the thread.
        _call(driver.cuCtxSetCurrent, _call(driver.cuDevicePrimaryCtxRetain, _call(driver.cuDeviceGet, ordinal)))
    except _CudaError as error:
        raise StageError(f"GPU {ordinal} cannot be used: {error}", "see nvidia-smi for its state") from error
