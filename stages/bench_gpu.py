"""Times a plan on a GPU at one point: device-resident and pinned inputs, calls and a graph, one stream and several."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from stages.bench_points import Point
from stages.bench_result import Result, Run
from stages.cuda_device import Device
from stages.gpu_clocks import ClockReader
from stages.gpu_timing import Lane, Throughput, Trace, Workload, alone, as_graphs, queued, throughput
from stages.measuring import Limits

if TYPE_CHECKING:
    from stages.batches import Array


class Executable(Protocol):
    """What can be run in several streams at once, such as `stages.engine_workload.Engine`."""

    def workload(self, device: Device, stream: int, profile: int, feed: Mapping[str, Array]) -> Workload:
        """Itself in one stream, with buffers of `device`: for the profile of this number, on these inputs."""


@dataclass(frozen=True)
class How:
    """How a plan is timed: see `stages.bench.BenchConfig`."""

    limits: Limits
    streams: Sequence[int]
    cuda_graph: bool


def timed(
    engine: Executable, point: Point, how: How, clocks: ClockReader, told: Callable[[str], None]
) -> tuple[Result, list[Trace]]:
    """Times `engine` at `point`.

    Args:
        engine: The plan's.
        point: Where.
        how: How often, in how many streams, whether as a graph too.
        clocks: Read after each measurement.
        told: Called with what is measured next.

    Returns:
        What was found, and each inference with pinned inputs, as calls: what `trtexec` would have exported.

    Raises:
        StageError: There is no memory, or TensorRT refuses the point.
    """
    traces: list[Trace] = []
    runs: list[Run] = []
    with Device() as device:
        streams = [device.stream() for _ in range(max(how.streams))]
        lanes = [Lane(stream, engine.workload(device, stream, point.index, point.feed)) for stream in streams]
        graphs, reason = as_graphs(device, lanes) if how.cuda_graph else ([], "cuda_graph is false")
        for launch, inputs, each in _ways(lanes, graphs):
            told(f"{point.name}: {launch}, inputs {inputs}")
            run, seen = _run(each, launch, inputs, how, clocks)
            runs.append(run)
            traces = seen if (launch, inputs) == ("enqueue", "pinned") else traces
    return Result(point, runs, reason), traces


def _ways(lanes: Sequence[Lane], graphs: Sequence[Lane]) -> Iterator[tuple[str, str, Sequence[Lane]]]:
    for launch, each in (("enqueue", lanes), ("graph", graphs)):
        for inputs in ("device", "pinned") if each else ():
            yield launch, inputs, each


def _run(lanes: Sequence[Lane], launch: str, inputs: str, how: How, clocks: ClockReader) -> tuple[Run, list[Trace]]:
    transfers = inputs == "pinned"
    behind = queued(lanes[0], how.limits, transfers)
    clocks.read()
    waited = alone(lanes[0], how.limits, transfers)
    clocks.read()
    rates: list[Throughput] = []
    for count in how.streams:
        rates.append(throughput(lanes[:count], how.limits, transfers))
        clocks.read()
    times = {
        "gpu_ms": [trace.compute.ms for trace in behind],
        "latency_ms": [trace.latency_ms for trace in behind],
        "enqueue_ms": [trace.enqueue.ms for trace in behind],
        "host_ms": [trace.host.ms for trace in waited],
    }
    if transfers:
        times |= {"h2d_ms": [trace.h2d.ms for trace in behind], "d2h_ms": [trace.d2h.ms for trace in behind]}
    return Run(launch, inputs, times, rates), behind
