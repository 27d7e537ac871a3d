"""A point, timed in every way on a real GPU, with what only copies in the place of an engine: without TensorRT.

docs/gpu-testing.md says how to run these; test_bench_on_gpu.py times plans.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from benchmarks.gpu_loop import require
from stages.bench_gpu import How, timed
from stages.bench_points import Point
from stages.bench_result import Result
from stages.cuda_device import Device
from stages.gpu_clocks import ClockReader
from stages.gpu_timing import Copy, Trace
from stages.gpus import gpus, use
from stages.measuring import Limits

HERE = gpus()
BYTES = 1 << 22
HOW = How(Limits(warmup_iterations=5, warmup_ms=20, iterations=30, duration_ms=50), streams=(1, 3), cuda_graph=True)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HERE.found, reason=f"no GPU here: {HERE.reason}"),
]


@dataclass(frozen=True)
class Forwarded:
    """Copies its input to its output, on the device."""

    inputs: Sequence[Copy]
    outputs: Sequence[Copy]

    def enqueue(self, stream: int) -> None:
        from cuda.bindings import driver

        (source,), (to,) = self.inputs, self.outputs
        require(driver.cuMemcpyDtoDAsync(to.device, source.device, source.bytes, stream))


@dataclass
class CopyEngine:
    """What makes such workloads, and reads what came back while their memory is there."""

    made: list[Forwarded] = field(default_factory=list)
    back: list[bytes] = field(default_factory=list)

    def workload(self, device: Device, stream: int, profile: int, feed: Mapping[str, Any]) -> Forwarded:
        content = feed["x"].tobytes()
        inputs, outputs = ([Copy(device.pinned(BYTES), device.memory(BYTES), BYTES)] for _ in range(2))
        ctypes.memmove(inputs[0].host, content, BYTES)
        ctypes.memset(outputs[0].host, 0, BYTES)
        self.made.append(Forwarded(inputs, outputs))
        return self.made[-1]

    def told(self, phase: str) -> None:
        """Before each way of timing: takes down what the one before it has brought back, and wipes it."""
        for each in self.made:
            self.back.append(ctypes.string_at(each.outputs[0].host, BYTES))
            ctypes.memset(each.outputs[0].host, 0, BYTES)


@pytest.fixture(scope="module")
def found() -> tuple[Result, list[Trace], CopyEngine, Point, ClockReader, int]:
    """A point of 8 samples, timed; and how many bytes of the device are missing afterwards."""
    gpu = HERE.found[0]
    use(gpu.compute_capability, gpu.name)
    content = np.random.default_rng(0).integers(0, 256, (8, BYTES // 8), dtype=np.uint8)
    point, reader = Point("default", 0, "opt", {"x": content}, 8), ClockReader(gpu.uuid)
    timed(CopyEngine(), point, HOW, ClockReader(gpu.uuid), lambda phase: None)  # what the driver keeps, it has now
    engine = CopyEngine()
    with Device() as device:
        before = device.free_bytes()
        result, traces = timed(engine, point, HOW, reader, engine.told)
        return result, traces, engine, point, reader, before - device.free_bytes()


def test_every_way_is_timed_and_the_graph_is_captured(found: Any) -> None:
    result, traces, *_ = found
    ways = [(run.launch, run.inputs) for run in result.runs]
    assert ways == [(launch, inputs) for launch in ("enqueue", "graph") for inputs in ("device", "pinned")]
    assert result.not_captured is None
    assert [trace.compute.ms for trace in traces] == list(result.run("enqueue", "pinned").times["gpu_ms"])
    for run in result.runs:
        assert [rate.streams for rate in run.rates] == [1, 3]
        assert run.median_ms("host_ms") > run.median_ms("gpu_ms") > 0
        assert run.median_ms("latency_ms") >= run.median_ms("gpu_ms")


def test_what_came_back_went_through_the_device(found: Any) -> None:
    _, _, engine, point, *_ = found
    content, nothing, lanes = point.feed["x"].tobytes(), bytes(BYTES), 3
    # At first, after calls with inputs on the device, with pinned ones, and after graphs with inputs on the device.
    assert engine.back == [nothing] * lanes + [nothing] * lanes + [content] * lanes + [nothing] * lanes


def test_transfers_cost_what_the_bus_takes(found: Any) -> None:
    result = found[0]
    pinned, device = result.run("enqueue", "pinned"), result.run("enqueue", "device")
    assert BYTES / pinned.median_ms("h2d_ms") < 500e6, "bytes a millisecond"
    assert pinned.median_ms("host_ms") > device.median_ms("host_ms") + 0.9 * pinned.median_ms("h2d_ms")
    assert {"h2d_ms", "d2h_ms"}.isdisjoint(device.times)


def test_the_clock_is_read_after_each_measurement_and_nothing_is_kept(found: Any) -> None:
    *_, reader, missing_bytes = found
    assert missing_bytes <= 0
    assert reader.clocks.unread is not None or len(reader.clocks.sm_mhz) == 4 * (2 + 2)
