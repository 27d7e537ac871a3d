"""The loop that times engines, held to work whose time can be known: on a GPU, without TensorRT.

docs/gpu-testing.md says how to run these; tests/stages/test_bench_contract.py runs the same loop without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from statistics import median

import pytest

from benchmarks.gpu_loop import CopyWithin, Nothing, Spin, Spinner, Waiting, peak_bytes_per_s, transferring
from stages.cuda_device import CudaError, Device
from stages.gpu_clocks import ClockReader
from stages.gpu_timing import DEPTH, Lane, alone, as_graphs, queued, throughput
from stages.gpus import gpus, use
from stages.measuring import Limits

HERE = gpus()
LIMITS = Limits(warmup_iterations=10, warmup_ms=50, iterations=50, duration_ms=100)

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not HERE.found, reason=f"no GPU here: {HERE.reason}"),
]


@pytest.fixture
def device() -> Iterator[Device]:
    gpu = HERE.found[0]
    use(gpu.compute_capability, gpu.name)
    with Device() as found:
        yield found


@pytest.fixture
def spin(device: Device) -> Iterator[Spinner]:
    found = Spinner()
    yield found
    found.unload()


@pytest.mark.parametrize("us", [50, 500])
def test_a_kernel_takes_as_long_as_it_waits_by_the_gpus_clock_and_longer_by_the_hosts(
    us: int, device: Device, spin: Spinner
) -> None:
    traces = alone(Lane(device.stream(), Spin(spin, us)), LIMITS, transfers=False)
    found = median(trace.compute.ms for trace in traces) * 1000
    assert us - 1 <= found < us * 1.1 + 10
    assert all(trace.host.ms > trace.compute.ms for trace in traces)
    assert all(trace.enqueue.ms < trace.host.ms for trace in traces)


def test_a_run_that_waits_in_a_queue_is_timed_without_what_the_host_does(device: Device, spin: Spinner) -> None:
    lane = Lane(device.stream(), Spin(spin, us=100))
    waited, behind = (times(lane, LIMITS, transfers=False) for times in (alone, queued))
    exact, seen = (median(trace.compute.ms for trace in traces) * 1000 for traces in (behind, waited))
    assert 99 <= exact <= seen and exact < 110
    assert median(t.host.ms for t in behind) > (DEPTH - 1) * 0.1, "it waits for those before it"
    assert all(one.compute.end <= other.compute.start + 0.001 for one, other in pairwise(behind))
    assert len(behind) >= LIMITS.iterations


def test_nothing_takes_next_to_no_time(device: Device) -> None:
    traces = alone(Lane(device.stream(), Nothing()), LIMITS, transfers=False)
    assert median(trace.compute.ms for trace in traces) * 1000 < 20


def test_runs_follow_one_another_and_their_parts_lie_inside_them(device: Device, spin: Spinner) -> None:
    lane = Lane(device.stream(), transferring(device, 1 << 20))
    traces = alone(lane, LIMITS, transfers=True)
    for trace in traces:
        parts = [trace.h2d.start, trace.h2d.end, trace.compute.start, trace.compute.end, trace.d2h.start, trace.d2h.end]
        assert parts == sorted(parts)
        assert trace.d2h.end - trace.h2d.start < trace.host.ms
    for one, other in pairwise(traces):
        assert one.host.end <= other.host.start and one.d2h.end <= other.h2d.start


def test_copies_within_the_device_are_as_fast_as_its_memory_and_no_faster(device: Device) -> None:
    size = 1 << 29
    lane = Lane(device.stream(), CopyWithin(device.memory(size), device.memory(size), size))
    ms = median(trace.compute.ms for trace in alone(lane, LIMITS, transfers=False))
    assert 0.5 < 2 * size / (ms / 1000) / peak_bytes_per_s() <= 1.0


def test_transfers_are_measured_only_where_they_are_made(device: Device) -> None:
    lane = Lane(device.stream(), transferring(device, 1 << 24))
    with_them = alone(lane, LIMITS, transfers=True)
    without = alone(lane, LIMITS, transfers=False)
    rate = (1 << 24) / (median(trace.h2d.ms for trace in with_them) / 1000)
    assert 2e9 < rate < 500e9, "between PCIe 3 of a few lanes and NVLink of a host"
    assert {trace.h2d.ms for trace in without} == {trace.d2h.ms for trace in without} == {0.0}
    assert median(t.host.ms for t in without) < median(t.host.ms for t in with_them) / 2


def test_a_graph_of_many_launches_is_faster_than_the_launches(device: Device, spin: Spinner) -> None:
    lane = Lane(device.stream(), Spin(spin, us=0, launches=200))
    (graph,), reason = as_graphs(device, [lane])
    assert reason is None
    called, replayed = (alone(each, LIMITS, transfers=False) for each in (lane, graph))
    assert median(t.compute.ms for t in replayed) < median(t.compute.ms for t in called)
    assert median(t.enqueue.ms for t in replayed) < median(t.enqueue.ms for t in called) / 5


def test_a_graph_does_what_was_captured(device: Device, spin: Spinner) -> None:
    lane = Lane(device.stream(), Spin(spin, us=50, launches=3))
    (graph,), _ = as_graphs(device, [lane])
    found = median(trace.compute.ms for trace in queued(graph, LIMITS, transfers=False)) * 1000
    assert 147 <= found < 200


def test_what_cannot_be_captured_says_why_and_its_stream_goes_on(device: Device, spin: Spinner) -> None:
    stream = device.stream()
    found, reason = as_graphs(device, [Lane(stream, Waiting())])
    assert found == [] and "CAPTURE" in str(reason)
    assert len(alone(Lane(stream, Spin(spin, 10)), LIMITS, transfers=False)) >= 50


def test_streams_overlap(device: Device, spin: Spinner) -> None:
    """A kernel of one thread block leaves room for others."""
    lanes = [Lane(device.stream(), Spin(spin, us=200)) for _ in range(2)]
    one, two = (throughput(lanes[:count], LIMITS, transfers=False) for count in (1, 2))
    assert 0.8 * 5000 < one.per_second <= 5050
    assert two.per_second > 1.7 * one.per_second
    assert (one.streams, two.streams) == (1, 2)


def test_a_queue_keeps_the_gpu_busy_where_one_at_a_time_leaves_it_idle(device: Device, spin: Spinner) -> None:
    lane = Lane(device.stream(), Spin(spin, us=20))
    rate = 1000 / median(trace.host.ms for trace in alone(lane, LIMITS, transfers=False))
    assert throughput([lane], LIMITS, transfers=False).per_second > rate


def test_all_that_was_taken_is_given_back(device: Device, spin: Spinner) -> None:
    def everything() -> None:
        with Device() as own:
            lanes = [Lane(own.stream(), transferring(own, 1 << 24)) for _ in range(2)]
            graphs, _ = as_graphs(own, [Lane(own.stream(), Spin(spin, us=0, launches=50))])
            alone(lanes[0], LIMITS, transfers=True)
            queued(lanes[1], LIMITS, transfers=True)
            throughput([*lanes, *graphs], LIMITS, transfers=True)

    everything()  # what the driver keeps for itself it has now
    before = device.free_bytes()
    for _ in range(5):
        everything()
    assert device.free_bytes() == before


def test_more_memory_than_there_is_says_so_and_gives_back_what_was_taken(device: Device) -> None:
    before = device.free_bytes()
    with pytest.raises(CudaError, match="out of memory: 1125899906842624 bytes of device memory"), Device() as own:
        own.memory(1 << 24)
        own.memory(1 << 50)
    assert device.free_bytes() >= before, "the driver has let go of some of its own"


def test_clocks_are_read_and_say_which_driver(device: Device) -> None:
    reader = ClockReader(HERE.found[0].uuid)
    reader.read()
    told = reader.clocks.told()
    if told["unread"] is None:
        assert 0 < told["sm_mhz"]["min"] <= told["highest_sm_mhz"] and reader.clocks.driver
    else:
        assert "NVML" in str(told["unread"])
