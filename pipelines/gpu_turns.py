"""One step per GPU: TensorRT times kernels while it builds, and two builds on one GPU would time each other.

A turn is a lock of the user's on this machine, whatever the store. Of several GPUs of one kind each takes a step at a
time. TensorRT-RTX times nothing and takes no turns: its builds share the CPU's cores. Steps that measure time take a
turn with either; where no GPU can run what they measure, a turn of the CPU, which keeps them from each other.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from artifacts.locks import first_free
from pipelines.graph import Node
from stages import backends
from stages.gpus import Gpu


@contextmanager
def turn(node: Node, facts: Mapping[str, Any], holder: str, waiting: Callable[[str], None]) -> Iterator[str | None]:
    """Holds a GPU that can run the step, or the CPU, if it needs one for itself.

    Args:
        node: The step.
        facts: Those of its question.
        holder: Who holds it, for those who wait.
        waiting: Called with the holder while all of these are held; it may raise to give up.

    Yields:
        The UUID of the GPU that the step must be confined to; None where it has no choice, or needs no turn.

    Raises:
        OSError: The lock's directory cannot be made.
    """
    places: dict[Path, str | None] = {directory() / f"{gpu.uuid}.lock": gpu.uuid for gpu in _candidates(node, facts)}
    if not places and node.stage.measures_time:
        places = {directory() / "cpu.lock": None}
    if not places:
        yield None
        return
    directory().mkdir(mode=0o700, parents=True, exist_ok=True)
    with first_free(list(places), holder, waiting) as held:
        # A process that may use one alone needs no telling, and a MIG instance cannot be named by its GPU's UUID.
        yield places[held] if len(places) > 1 else None


def capability(node: Node, facts: Mapping[str, Any]) -> str | None:
    """The compute capability of the GPU that the step has for itself while it runs; None where it has none."""
    return next((gpu.compute_capability for gpu in _candidates(node, facts)), None)


def directory() -> Path:
    """Where the locks are: the user's own, and gone when the machine starts anew."""
    import tempfile  # 5 ms that a build with nothing to do goes without

    own = os.environ.get("XDG_RUNTIME_DIR")
    return Path(own) / "trtforge" if own else Path(tempfile.gettempdir()) / f"trtforge-{os.getuid()}"


def _candidates(node: Node, facts: Mapping[str, Any]) -> tuple[Gpu, ...]:
    if node.target is None or not node.stage.uses_gpu:
        return ()
    if not (node.stage.measures_time or backends.find(node.target.backend).has_timing_cache):
        return ()
    name = facts["machine"]["gpu"] if node.stage.measures_time else facts.get("gpu")
    return tuple(gpu for gpu in node.target.here.of(node.target.compute_capability) if name in (None, gpu.name))
