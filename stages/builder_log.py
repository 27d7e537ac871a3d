"""What TensorRT says while it builds: kept, printed, and read for the reason of a failure.

TensorRT does not raise: setters log and keep the old value, a failed build returns None. The log is the only witness.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from stages import backends
from stages.gpus import PRECISIONS, architecture
from stages.stage import StageError

_NOISE = re.compile(r"catchCudaError|cudaError 35|CUDA initialization failure|CUDA driver version is insufficient")
"""Follows most errors on a machine without a driver, and is never their cause."""

_DECORATION = re.compile(
    r"^(?:\S*: |\[[^\]]*\] )?Error Code \d+: |^(?:Myelin|Internal Error|API Usage Error) "
    r"| In \w+ at /\S+\)?$"
)
"""`IBuilder::buildSerializedNetwork: Error Code 1: Myelin (… In compileGraph at /_src/….cpp:2012)`"""

_DATATYPES = {"b16": "bf16", "fp8_e4m3": "fp8", "fp4_e2m1": "nvfp4", "int4": "int4"}
"""TensorRT-RTX's names of the types that not every capability has, as `gpus.PRECISIONS` calls them."""


_TACTIC = re.compile(r"insuff?icient memory on requested size of (\d+) detected for tactic (\w+)")
_DEVICE = re.compile(r"Tactic Device request: (\d+)MB Available: (\d+)MB")
"""What TensorRT 8 to 10 warn of when a tactic does not fit; the first counts bytes since 9, MB before."""

_NO_TACTIC = re.compile(r"Could not find any implementation for node (\S+?)[.)]*(?: |$)")
_OUT_OF_MEMORY = re.compile(r"out of memory|OutOfMemory|cudaErrorMemoryAllocation", re.IGNORECASE)


@dataclass
class Memory:
    """The largest amount of device memory that a tactic asked for in vain.

    Attributes:
        wanted_bytes: How much.
        free_bytes: How much of it the device had; None where the log does not say.
        tactic: Which one; None where the log does not say.
    """

    wanted_bytes: int = 0
    free_bytes: int | None = None
    tactic: str | None = None

    def hear(self, message: str) -> None:
        """Takes note of what a line of the log says about it."""
        if found := _DEVICE.search(message):
            wanted, free = (int(number) * 2**20 for number in found.groups())
            if wanted > self.wanted_bytes:
                self.wanted_bytes, self.free_bytes, self.tactic = wanted, free, None
        elif found := _TACTIC.search(message):
            size = int(found[1])
            wanted = size if size >= 2**20 else size * 2**20
            # The two lines of one tactic give the same size, one of them rounded to whole MB.
            if wanted > self.wanted_bytes + 2**20:
                self.wanted_bytes, self.free_bytes, self.tactic = wanted, None, found[2]
            elif wanted > self.wanted_bytes - 2**20:
                self.tactic = found[2]


_ENGINE_LAYERS = "Engine Layer Information:"
_ENGINE_LAYER = re.compile(r"^Layer\((\w+)\): (.*?), Tactic: -?\w+(?: \([^)]*\))?, (.*?) ?-> (.*)$", re.MULTILINE)
_TENSOR_TYPE = re.compile(r"[\[(]([A-Z]\w*)[\[(][-\d,:]*[\])][\])]")
"""`x (Half[1,3,8,8])`, and before TensorRT 8.6 `x[Half(1,3,8,8)]`."""


@dataclass(frozen=True)
class EngineLayer:
    """What the log says of one layer of the engine.

    Attributes:
        kind: Such as `CaskConvolution` or `Myelin`.
        name: The layers of the network that it is fused of: `conv1 + PWN(relu1)`.
        reads: The types of what it reads, in the log's words; weights are not told of.
        writes: Those of what it writes.
    """

    kind: str
    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]


def engine_layers(log: str) -> list[EngineLayer]:
    """The layers of the engine that a builder's log tells of at its end, if it is verbose; else none."""
    _, _, told = log.rpartition(_ENGINE_LAYERS)
    return [
        EngineLayer(kind, name, tuple(_TENSOR_TYPE.findall(reads)), tuple(_TENSOR_TYPE.findall(writes)))
        for kind, name, reads, writes in _ENGINE_LAYER.findall(told)
    ]


def make_logger(trt: Any) -> Any:
    """An `ILogger` that prints every message to stderr and keeps the errors in `logger.errors`, in order.

    Its `errors` are without the noise that every machine without a driver makes, which `noise` has; its `memory` is
    what tactics lacked; its `timing` is what is wrong with timing caches, warnings too; its `layers` is what it said
    of the engine's layers.
    """

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []
            self.noise: list[str] = []
            self.memory = Memory()
            self.timing: list[str] = []
            self.layers = ""

        def log(self, severity: Any, message: str) -> None:
            print(f"[{severity.name}] {message}", file=sys.stderr)
            self.memory.hear(message)
            if message.startswith(_ENGINE_LAYERS):
                self.layers = message
            if int(severity) <= int(trt.ILogger.Severity.ERROR):
                (self.noise if _NOISE.search(message) else self.errors).append(message)
            if int(severity) <= int(trt.ILogger.Severity.WARNING) and "timing cache" in message.lower():
                self.timing.append(message)

    return Logger()


def start(make: Any, logger: Any, said: Sequence[str] = ()) -> Any:
    """A `Builder` or `Runtime`, which TensorRT does not give where it finds no driver, or no memory on the GPU.

    Args:
        make: The class.
        logger: What it is made with.
        said: The logger's errors, noise and all: here they are the cause.

    Raises:
        StageError: There is none.
    """
    try:
        return make(logger)
    except TypeError as error:  # `pybind11::init(): factory function returned nullptr`
        why = "; ".join(map(plain, said)) or f"{make.__name__} gives no reason ({plain(str(error))})"
        hint = "nvidia-smi says whether the driver takes this version's CUDA, and what memory the GPU has free"
        raise StageError(f"TensorRT cannot start on this machine: {why}", hint) from error


def build_error(logger: Any, backend: str, compute_capability: str, workspace_bytes: int) -> StageError:
    """Why a build returned None, in words that name the target.

    Args:
        logger: As `make_logger` made it.
        backend: Who built.
        compute_capability: Of the target.
        workspace_bytes: The limit of the workspace.
    """
    target = architecture(compute_capability)
    for message in logger.errors:
        known = (
            _turing_gemm(message)
            or _datatypes(message, target)
            or _out_of_memory(message, logger.memory, workspace_bytes)
            or _known(message)
        )
        if known:
            return known
    said = plain(logger.errors[0]) if logger.errors else "the builder gave no plan and no reason"
    return StageError(f"{backend} cannot build this model for {target}: {said}", "the step's log has all it said")


def plain(message: str) -> str:
    """A message of the log in one line, without its code and source file."""
    line = " ".join(message.split())
    while (shorter := _DECORATION.sub("", line)) != line:
        line = shorter
    if not line.startswith("("):
        return line
    return line[1:-1] if line.endswith(")") and line.count("(") == line.count(")") else line[1:]


def _turing_gemm(message: str) -> StageError | None:
    found = re.search(r"Cannot compile operation '(.*?)' for Turing.*FP32 GEMM is not supported", message)
    if not found:
        return None
    return StageError(
        f"sm_75 has no FP32 matrix product in TensorRT-RTX, and operation {found[1]!r} is one",
        "build in fp16 (flow=fp16), or for compute capability 8.0 or higher",
    )


def _datatypes(message: str, target: str) -> StageError | None:
    found = re.search(r"contains HW-specific datatypes: (.*?)\.? ?(?:In |$)", message)
    if not found:
        return None
    # Of a plan for several the message says which of them lack it.
    lacking = re.search(r"Cannot compile for target\(s\) ([\w, ]+?),? because", message)
    target = lacking[1].replace("sm", "sm_") if lacking else target
    names = [_DATATYPES.get(name.strip(), name.strip()) for name in found[1].split(",")]
    needs = [f"{name} needs {PRECISIONS[name]} or higher" for name in names if name in PRECISIONS]
    return StageError(
        f"{target} cannot compute in {', '.join(names)}, which this model does",
        "; ".join(needs) or "use another precision",
    )


def _out_of_memory(message: str, memory: Memory, workspace_bytes: int) -> StageError | None:
    """Device memory, of which TensorRT warns when it skips a tactic, and which only the last error makes a failure."""
    node = _NO_TACTIC.search(message)
    if not _OUT_OF_MEMORY.search(message) and not (node and memory.wanted_bytes):
        return None
    facts = [f"no tactic is left for node {node[1]!r}"] if node else [plain(message)]
    if memory.wanted_bytes:
        facts.append(f"{f'tactic {memory.tactic}' if memory.tactic else 'one'} wanted {_gib(memory.wanted_bytes)}")
    if memory.free_bytes is not None:
        facts.append(f"the device had {_gib(memory.free_bytes)} free")
    facts.append(f"the workspace is {_gib(workspace_bytes)}")
    lower = "lower the max of the profiles (model.dims), free memory on the device, or build on a larger one"
    short = workspace_bytes < memory.wanted_bytes
    return StageError(
        f"out of device memory: {', '.join(facts)}", f"raise the workspace, or {lower}" if short else lower
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def _known(message: str) -> StageError | None:
    for pattern, what, next_step in _KNOWN:
        if re.search(pattern, message):
            return StageError(f"{what}: {plain(message)}", next_step)
    return None


_KNOWN = (
    (
        r"Could not find any implementation",
        "no tactic computes a part of this model",
        "give the builder more to choose from (a larger memory_pools.workspace, optimization_level: 5, tactic_sources "
        "left out), or let surgery rewrite the node",
    ),
    (
        r"workspace",
        "the workspace is too small for this model",
        "raise memory_pools.workspace, or leave it out: the backend then takes what the GPU has",
    ),
    (
        # What ERROR_ON_TIMING_CACHE_MISS ends a build with is an assertion.
        r"errorOnMiss|(?i:timing cache miss)",
        "a tactic is not in the timing cache, so this plan would differ from the one that the cache was made with",
        "build where that one was built; with error_on_miss: false the missing tactics are timed anew",
    ),
    (
        r"graph_jit\.cpp.*CUDA_SUCCESS",
        "a refittable plan needs the target's GPU in this machine",
        "build it there, or with refit: none",
    ),
    (
        r"Input dimensions with this name have different constant values",
        "dimensions of one name get different sizes",
        "give each dimension that differs a name of its own, or the same size in every profile",
    ),
    (
        r"was not supported by a dedicated kernel",
        "the operator Attention has no FP32 kernel",
        "build in fp16 or bf16 (flow=fp16), or export attention as single operators",
    ),
)


def config_error(setting: str, asked: object, got: object, backend: str, errors: list[str]) -> StageError:
    """A setting that reads back as something else than was set."""
    said = f": {plain(errors[-1])}" if errors else ""
    return StageError(
        f"{backend} {backends.installed_version(backend)} did not take {setting}={asked}, it has {got}{said}",
        f"leave {setting} out, or give a value that it takes",
    )
