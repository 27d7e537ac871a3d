"""The loop that times work on a GPU: latency one at a time, throughput in several streams, as calls or as a graph.

It knows nothing of TensorRT: what it times is a `Workload`, and tests prove it with kernels and copies whose times can
be known. Two clocks tell of each run: CUDA's events, on the GPU, and the host's. One thread of Python drives it all; of
an empty workload the host's clock reads what docs/benchmarking.md says, and a shorter one cannot be told from it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from stages.cuda_device import Device
from stages.measuring import Limits, repeat
from stages.stage import StageError

DEPTH = 4
"""Inferences that wait in a stream while throughput is measured: the GPU never waits for the host between two."""


@dataclass(frozen=True)
class Copy:
    """A buffer on the device and its like in the host's pinned memory.

    Attributes:
        host: Its address there.
        device: Its address here.
        bytes: Its size.
    """

    host: int
    device: int
    bytes: int


class Workload(Protocol):
    """What is timed, for one stream: two that run side by side share nothing that they write."""

    @property
    def inputs(self) -> Sequence[Copy]:
        """What is copied to the device before a run, where transfers are timed."""

    @property
    def outputs(self) -> Sequence[Copy]:
        """What is copied back after it."""

    def enqueue(self, stream: int) -> None:
        """Gives the stream one run to do, and does not wait for it."""


@dataclass(frozen=True)
class Lane:
    """A workload in its own stream.

    Attributes:
        stream: The stream.
        workload: What runs in it.
        graph: The same, captured; None: it is enqueued each time.
    """

    stream: int
    workload: Workload
    graph: int | None = None

    def launch(self, device: Device) -> None:
        """One run, without transfers."""
        if self.graph is None:
            self.workload.enqueue(self.stream)
        else:
            device.launch(self.graph, self.stream)

    def copy_in(self, device: Device) -> None:
        """The inputs' transfer."""
        for each in self.workload.inputs:
            device.copy_in(each.device, each.host, each.bytes, self.stream)

    def copy_out(self, device: Device) -> None:
        """The outputs' transfer."""
        for each in self.workload.outputs:
            device.copy_out(each.host, each.device, each.bytes, self.stream)


@dataclass(frozen=True)
class Span:
    """From when to when something lasted, in milliseconds since the measurement began."""

    start: float
    end: float

    @property
    def ms(self) -> float:
        """How long."""
        return self.end - self.start


@dataclass(frozen=True)
class Trace:
    """One run, in milliseconds since the measurement began.

    Attributes:
        enqueue: The call that gives it to the GPU; by the host's clock.
        host: All of it, until its results are there; by the host's clock.
        h2d: The inputs' transfer; by the GPU's clock. It lasts no time where nothing is transferred.
        compute: The run itself; by the GPU's clock.
        d2h: The outputs' transfer; likewise.
    """

    enqueue: Span
    host: Span
    h2d: Span
    compute: Span
    d2h: Span

    @property
    def latency_ms(self) -> float:
        """Transfers and run together, without what lies between them."""
        return self.h2d.ms + self.compute.ms + self.d2h.ms


@dataclass(frozen=True)
class Throughput:
    """What several streams got done.

    Attributes:
        streams: How many there were.
        inferences: How many runs ended, in all of them together.
        seconds: From the first call until the last result, by the host's clock.
    """

    streams: int
    inferences: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Runs a second."""
        return self.inferences / self.seconds


def as_graphs(device: Device, lanes: Sequence[Lane]) -> tuple[list[Lane], str | None]:
    """The lanes, each with its run captured; or none, and why it cannot be.

    Each runs once first: what is loaded or allocated on first use cannot be captured.
    """
    captured = []
    for lane in lanes:
        lane.launch(device)
        device.synchronize(lane.stream)
        try:
            graph = device.capture(lane.stream, lambda lane=lane: lane.workload.enqueue(lane.stream))  # type: ignore[misc]
        except StageError as error:
            return [], error.what
        captured.append(replace(lane, graph=graph))
    return captured, None


def alone(lane: Lane, limits: Limits, transfers: bool) -> list[Trace]:
    """Runs of one lane, each alone: the next is given once the results of the one before are there.

    That is what a caller waits for. The GPU is idle when a run comes, so that events see the calls of the host too.

    Args:
        lane: What runs.
        limits: How often.
        transfers: Whether inputs and outputs are copied; else they stay on the device.

    Raises:
        StageError: CUDA or the workload fails.
    """
    with Device() as device:
        runs = _Runs(device, lane, transfers)
        return repeat(lambda: runs.result(runs.give(0)), limits, runs.begin)


def queued(lane: Lane, limits: Limits, transfers: bool) -> list[Trace]:
    """Runs of one lane, with up to `DEPTH` in its stream: while one runs, the next is given.

    As long as giving takes less than running, events see the GPU's work alone.

    Args:
        lane: What runs.
        limits: How often.
        transfers: Whether inputs and outputs are copied; else they stay on the device.

    Raises:
        StageError: CUDA or the workload fails.
    """
    with Device() as device:
        runs = _Runs(device, lane, transfers)
        waiting: list[_Given] = []
        found: list[Trace] = []

        def once() -> None:
            if len(waiting) == DEPTH:
                found.append(runs.result(waiting.pop(0)))
            waiting.append(runs.give(waiting[-1].slot + 1 if waiting else 0))

        def begin() -> None:
            waiting.clear()
            found.clear()
            runs.begin()

        repeat(once, limits, begin)
        return [*found, *map(runs.result, waiting)]


@dataclass(frozen=True)
class _Given:
    """A run that the GPU was given: its events, and when the host began it, called, and had called; in seconds."""

    slot: int
    first: float
    called: float
    returned: float


class _Runs:
    """Gives runs of one lane, and tells of each once it is done."""

    def __init__(self, device: Device, lane: Lane, transfers: bool) -> None:
        self.device = device
        self.lane = lane
        self.transfers = transfers
        self.base = device.event()
        self.marks = [[device.event() for _ in range(4)] for _ in range(DEPTH)]
        self.begin()

    def begin(self) -> None:
        """Sets both clocks to zero, once all that was given is done."""
        self.device.record(self.base, self.lane.stream)
        self.device.synchronize(self.lane.stream)
        self.zero = time.perf_counter()

    def give(self, slot: int) -> _Given:
        """Gives the stream one run; of `DEPTH` slots it takes this one, counted round."""
        device, lane, marks = self.device, self.lane, self.marks[slot % DEPTH]
        first = time.perf_counter()
        if self.transfers:
            device.record(marks[0], lane.stream)
            lane.copy_in(device)
        device.record(marks[1], lane.stream)
        called = time.perf_counter()
        lane.launch(device)
        returned = time.perf_counter()
        device.record(marks[2], lane.stream)
        if self.transfers:
            lane.copy_out(device)
            device.record(marks[3], lane.stream)
        return _Given(slot, first, called, returned)

    def result(self, given: _Given) -> Trace:
        """Waits for a run, and tells of it."""
        marks = self.marks[given.slot % DEPTH]
        self.device.wait(marks[3] if self.transfers else marks[2])
        done = time.perf_counter()
        first, called, returned, done = (
            (each - self.zero) * 1000 for each in (given.first, given.called, given.returned, done)
        )
        return Trace(Span(called, returned), Span(first, done), *self._spans(marks))

    def _spans(self, marks: Sequence[int]) -> tuple[Span, Span, Span]:
        """Of transfer, run and transfer: each is measured, and no difference of long times in 24 bits."""
        between, moved = self.device.elapsed_ms, self.transfers
        start = between(self.base, marks[0 if moved else 1])
        h2d = Span(start, start + (between(marks[0], marks[1]) if moved else 0.0))
        compute = Span(h2d.end, h2d.end + between(marks[1], marks[2]))
        return h2d, compute, Span(compute.end, compute.end + (between(marks[2], marks[3]) if moved else 0.0))


def throughput(lanes: Sequence[Lane], limits: Limits, transfers: bool) -> Throughput:
    """How much all lanes get done together, each with up to `DEPTH` runs that wait.

    Args:
        lanes: Each in a stream of its own.
        limits: How often, all lanes together; and for how long.
        transfers: Whether inputs and outputs are copied; else they stay on the device.

    Raises:
        StageError: CUDA or a workload fails.
    """
    with Device() as device:
        slots = [[device.event() for _ in range(DEPTH)] for _ in lanes]
        turn = 0

        def once() -> None:
            nonlocal turn
            for lane, events in zip(lanes, slots, strict=True):
                device.wait(events[turn % DEPTH])
                if transfers:
                    lane.copy_in(device)
                lane.launch(device)
                if transfers:
                    lane.copy_out(device)
                device.record(events[turn % DEPTH], lane.stream)
            turn += 1

        started = 0.0

        def begin() -> None:
            nonlocal started
            _drain(device, lanes)
            started = time.perf_counter()

        turns = len(repeat(once, limits, begin))
        _drain(device, lanes)
        return Throughput(len(lanes), turns * len(lanes), time.perf_counter() - started)


def _drain(device: Device, lanes: Sequence[Lane]) -> None:
    for lane in lanes:
        device.synchronize(lane.stream)
