"""What a step is handed of earlier steps' timings, and what becomes of what it measured.

The caches of a step lie at a place in the store, `artifacts.timing`. Of a GPU they make builds faster and no more: what
cannot be read or kept is said, and the build goes on. Those that pin a plan's tactics are part of what was asked for:
what cannot be kept of them fails the step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import timing
from artifacts.errors import StoreError
from artifacts.store import Store
from pipelines import targets
from pipelines.graph import Node
from pipelines.sharing import Sharing
from stages.stage import Memory, Metrics

Waiting = Callable[[str], None]
_UNFIT = re.compile(r"[^A-Za-z0-9_+-]+")


@dataclass(frozen=True)
class Loan:
    """What one run of a step has of a place.

    Attributes:
        place: The place.
        memory: Copies of the caches there, and where the step writes its own.
    """

    place: str
    memory: Memory


@dataclass(frozen=True)
class Timings:
    """The timing caches of a run.

    Attributes:
        store: Where they are.
        sharing: What is shared with other machines; None where nothing is.
        note: Told what was done without.
    """

    store: Store
    sharing: Sharing | None
    note: Callable[[str], None]

    def lend(self, node: Node, question: Mapping[str, Any], key: str, scratch: Path, waiting: Waiting) -> Loan | None:
        """Copies what there is for a step into `scratch`; None where its stage remembers nothing.

        Args:
            node: The step.
            question: The fields of its key.
            key: Their digest.
            scratch: The step's own directory.
            waiting: Called while another process holds the place; it may raise to give up.

        Raises:
            StoreError: The store cannot be written.
        """
        place = place_of(node, question["facts"], key)
        if place is None:
            return None
        if self.sharing is not None:
            self.sharing.fetch_timing(place)
        known = scratch / "timings"
        known.mkdir()
        return Loan(place, Memory(timing.take(self.store, place, known, waiting, self.note), scratch / "timing.cache"))

    def keep(self, loan: Loan | None, metrics: Metrics, waiting: Waiting) -> None:
        """Keeps what a step measured that ended well.

        Raises:
            OSError, StoreError: It pins the step's tactics, and cannot be read or kept.
        """
        if loan is None or not loan.memory.learnt.exists():
            return
        try:
            timing.keep(self.store, loan.place, loan.memory.learnt, _merged(metrics), waiting)
        except (OSError, StoreError) as error:
            if loan.place.startswith(f"{timing.PINNED}/"):
                raise
            self.note(f"what was measured is lost for the next build: {error}")

    def share(self, loan: Loan | None, metrics: Metrics) -> None:
        """Lets other machines have what `keep` kept, as far as the remote can be used."""
        if loan is not None and self.sharing is not None and metrics.get("timing_cache"):
            self.sharing.send_timing(loan.place, _merged(metrics))


def _merged(metrics: Metrics) -> Sequence[str]:
    told: Any = metrics["timing_cache"]
    return [*told["merged"]]


def place_of(node: Node, facts: Mapping[str, Any], key: str) -> str | None:
    """Where the caches of a step lie; None where it remembers nothing, or nobody knows the GPU's driver.

    Such as `gpu/trt-10.16.1.11/NVIDIA-L4/580`, or `pinned/<key>`.
    """
    if node.target is None or (kind := node.stage.remembers(node.config, facts)) == "nothing":
        return None
    if kind == "key":
        return f"{timing.PINNED}/{key}"
    driver = driver_major()
    # Of several models of GPU, where the plan is for all, `stages.gpus.use` takes the first.
    names = [facts["gpu"]] if facts["gpu"] else [gpu.name for gpu in node.target.here.of(facts["compute_capability"])]
    if driver is None or not names:
        return None
    return f"gpu/{node.target.release}/{_UNFIT.sub('-', names[0]).strip('-')}/{driver}"


def driver_major() -> str | None:
    """The first number of the NVIDIA driver's version, `580`; None where none is loaded, and on WSL, which hides it."""
    try:
        text = targets.NVIDIA_DRIVER.read_text()
    except OSError:
        return None
    # `… x86_64 Kernel Module  580.65.06  …`, of the open modules `… Open Kernel Module for x86_64  580.65.06  …`.
    found = re.search(r"Kernel Module.*?\s(\d+)\.\d+", text)
    return found[1] if found else None
