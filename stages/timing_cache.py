"""Gives a build what earlier builds measured of tactics, and writes what it measured itself.

TensorRT times tactics on the GPU, which is most of what a build takes; a timing cache holds these times, and compiled
code. It counts for one version and one GPU. What a build writes holds all that it was given and what it added.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from stages.builder_log import config_error, plain
from stages.stage import JSON, Memory, StageError


@dataclass(frozen=True)
class Attached:
    """The caches of a build.

    Attributes:
        merged: Names of the files that TensorRT took.
        refused: Of those that it refused: by another GPU, another CUDA, or not readable to it.
        alive: TensorRT's objects, which must live until the build returns.
    """

    merged: tuple[str, ...]
    refused: tuple[str, ...]
    alive: tuple[Any, ...]


def attach(config: Any, logger: Any, memory: Memory, backend: str) -> Attached:
    """Attaches to the builder config all that earlier builds measured, or an empty cache.

    Args:
        config: The builder config, with its flags set.
        logger: As `stages.builder_log.make_logger` made it.
        memory: The files of earlier builds.
        backend: Who builds.

    Raises:
        StageError: TensorRT does not even take an empty cache.
    """
    base: Any = None
    merged: list[str] = []
    refused: list[str] = []
    alive: list[Any] = []
    for path in memory.known:
        heard = len(logger.timing)
        cache = config.create_timing_cache(path.read_bytes())
        # What it cannot read it makes an empty cache of, and only the log tells.
        taken = cache is not None and len(logger.timing) == heard
        if taken and base is None:
            taken = config.set_timing_cache(cache, False)
            base = cache if taken else None
        elif taken:
            taken = base.combine(cache, False)  # of what both hold, that of `base` stays
        (merged if taken else refused).append(path.name)
        alive.append(cache)
    if refused:
        said = plain(logger.timing[-1]) if logger.timing else "it gives no reason"
        count = f"{len(refused)} of {len(memory.known)} timing caches"
        print(f"[WARNING] {backend} refuses {count}, and builds without: {said}", file=sys.stderr)
    if base is None:
        base = config.create_timing_cache(b"")
        if base is None or not config.set_timing_cache(base, False):
            raise config_error("the timing cache", "an empty one", None, backend, logger.errors)
        alive.append(base)
    return Attached(tuple(merged), tuple(refused), tuple(alive))


def require_taken(attached: Attached, memory: Memory) -> None:
    """Holds a build that may time nothing to there being timings.

    Raises:
        StageError: There is no cache, or TensorRT refuses all.
    """
    if attached.merged:
        return
    if memory.known:
        raise StageError(
            "TensorRT refuses the timing cache that this plan is to be built with: it is of another GPU or CUDA",
            "build on a machine like the first one; with error_on_miss: false tactics are timed anew",
        )
    raise StageError(
        "error_on_miss=true: there is no timing cache of this version, GPU and driver yet",
        "build once without it",
    )


def write(config: Any, attached: Attached, memory: Memory) -> dict[str, JSON]:
    """Writes what was given and measured into `memory.learnt`.

    Returns:
        Metrics: `merged` and `refused`, names of the files that TensorRT took and refused, and `bytes` written.
    """
    content = memoryview(config.get_timing_cache().serialize())
    memory.learnt.write_bytes(content)
    return {"merged": list(attached.merged), "refused": list(attached.refused), "bytes": content.nbytes}
