"""Proves the loop that times engines on work whose time can be known: `python -m benchmarks.gpu_loop`.

It needs a GPU and cuda-python, no TensorRT and no compiler: the kernel is PTX, which every driver translates. What is
known: a kernel that waits for a given time by the GPU's own clock, how fast the memory can be at most, and that nothing
takes no time. The same workloads are what tests/stages/test_gpu_timing.py holds the loop to.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from stages.cuda_device import Device
from stages.gpu_clocks import ClockReader
from stages.gpu_timing import Copy, Lane, Trace, alone, as_graphs, queued, throughput
from stages.gpus import gpus, use
from stages.measuring import Limits, distribution

LIMITS = Limits(warmup_iterations=10, warmup_ms=100, iterations=100, duration_ms=300)

PTX = b"""
.version 7.0
.target sm_70
.address_size 64
.visible .entry spin(.param .u64 wanted)
{
    .reg .u64 %t<5>;
    .reg .pred %p;
    ld.param.u64 %t1, [wanted];
    mov.u64 %t2, %globaltimer;
LOOP:
    mov.u64 %t3, %globaltimer;
    sub.u64 %t4, %t3, %t2;
    setp.lt.u64 %p, %t4, %t1;
    @%p bra LOOP;
    ret;
}
\0"""
"""`spin(nanoseconds)`: one that waits, by a timer that the GPU advances every 32 ns to 1 us."""


@dataclass(frozen=True)
class Nothing:
    """Enqueues nothing: what is read then is what measuring costs."""

    inputs: Sequence[Copy] = ()
    outputs: Sequence[Copy] = ()

    def enqueue(self, stream: int) -> None:
        """Gives the stream nothing."""


@dataclass(frozen=True)
class Spin:
    """Kernels of one thread block, each of which takes a given time and leaves the rest of the GPU free."""

    spin: Spinner
    us: float
    launches: int = 1
    inputs: Sequence[Copy] = ()
    outputs: Sequence[Copy] = ()

    def enqueue(self, stream: int) -> None:
        """Launches them, one after the other."""
        for _ in range(self.launches):
            self.spin.launch(self.us, stream)


@dataclass(frozen=True)
class CopyWithin:
    """Copies memory of the device to memory of the device."""

    to: int
    source: int
    bytes: int
    inputs: Sequence[Copy] = ()
    outputs: Sequence[Copy] = ()

    def enqueue(self, stream: int) -> None:
        """Copies all of it."""
        from cuda.bindings import driver

        require(driver.cuMemcpyDtoDAsync(self.to, self.source, self.bytes, stream))


@dataclass(frozen=True)
class Waiting:
    """Waits for its own stream, which nothing that is captured may do."""

    inputs: Sequence[Copy] = ()
    outputs: Sequence[Copy] = ()

    def enqueue(self, stream: int) -> None:
        """Waits."""
        with Device() as device:
            device.synchronize(stream)


class Spinner:
    """The kernel `spin`, loaded."""

    def __init__(self) -> None:
        from cuda.bindings import driver

        self._driver: Any = driver
        (self._module,) = require(driver.cuModuleLoadData(PTX))
        (self._kernel,) = require(driver.cuModuleGetFunction(self._module, b"spin"))

    def launch(self, us: float, stream: int) -> None:
        """One thread block that takes so many microseconds."""
        given = ((int(us * 1000),), (ctypes.c_uint64,))
        require(self._driver.cuLaunchKernel(self._kernel, 1, 1, 1, 32, 1, 1, 0, stream, given, 0))

    def unload(self) -> None:
        """Gives it back."""
        require(self._driver.cuModuleUnload(self._module))


def require(answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call of CUDA's driver returned beside its code, which must be success."""
    code, *results = answer
    assert int(code) == 0, code
    return tuple(results)


def transferring(device: Device, size: int) -> Nothing:
    """Nothing to compute, and `size` bytes to copy each way."""
    both = [Copy(device.pinned(size), device.memory(size), size)]
    return Nothing(both, both)


def peak_bytes_per_s() -> float:
    """What the device's memory does at most: its clock, twice in each, by the width of its bus."""
    from cuda.bindings import driver

    attribute = driver.CUdevice_attribute
    (device,) = require(driver.cuCtxGetDevice())
    (khz,) = require(driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE, device))
    (bits,) = require(driver.cuDeviceGetAttribute(attribute.CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH, device))
    return float(2 * khz * 1000 * bits / 8)


@dataclass
class Figures:
    """What was measured, a line each: what, by which clock, and the number."""

    lines: list[tuple[str, str]] = field(default_factory=list)

    def add(self, what: str, figure: str) -> None:
        """Takes one down."""
        self.lines.append((what, figure))

    def spread(self, what: str, traces: Sequence[Trace], of: Callable[[Trace], float]) -> None:
        """Percentiles of one time of each run, in microseconds."""
        told = distribution([of(trace) * 1000 for trace in traces])
        self.add(what, ", ".join(f"{name} {told[name]:.1f}" for name in ("min", "p50", "p90", "p99")) + " us")


def measured() -> Figures:
    """All of it, on the first GPU."""
    found = Figures()
    gpu = gpus().found[0]
    use(gpu.compute_capability, gpu.name)
    clocks = ClockReader(gpu.uuid)
    with Device() as device:
        spin = Spinner()
        lanes = [Lane(device.stream(), Spin(spin, us=100)) for _ in range(4)]
        stream = lanes[0].stream
        free_bytes = device.free_bytes()
        empty = alone(Lane(stream, Nothing()), LIMITS, transfers=False)
        found.spread("nothing, by the GPU's events", empty, lambda trace: trace.compute.ms)
        found.spread("nothing, by the host's clock", empty, lambda trace: trace.host.ms)
        for us in (10, 100, 1000):
            traces = alone(Lane(stream, Spin(spin, us)), LIMITS, transfers=False)
            behind = queued(Lane(stream, Spin(spin, us)), LIMITS, transfers=False)
            clocks.read()
            found.spread(f"a kernel of {us} us, queued, by events", behind, lambda trace: trace.compute.ms)
            found.spread(f"a kernel of {us} us, alone, by events", traces, lambda trace: trace.compute.ms)
            found.spread(f"a kernel of {us} us, alone, by the host's clock", traces, lambda trace: trace.host.ms)
        _many(found, device, spin, stream)
        for count in (1, 2, 4):
            done = throughput(lanes[:count], LIMITS, transfers=False)
            found.add(f"kernels of 100 us, {count} streams", f"{done.per_second:,.0f} a second")
        _memory(found, device, stream)
        clocks.read()
        found.add("free device memory before and after", f"{free_bytes - device.free_bytes()} bytes apart")
        spin.unload()
    found.add("clocks", str(clocks.clocks.told()))
    return found


def _many(found: Figures, device: Device, spin: Spinner, stream: int) -> None:
    """Many short launches, as calls and as a graph."""
    count = 100
    lane = Lane(stream, Spin(spin, us=0, launches=count))
    (graph,), _ = as_graphs(device, [lane])
    for name, each in (("calls", lane), ("one graph", graph)):
        told = distribution([trace.compute.ms / count * 1000 for trace in alone(each, LIMITS, transfers=False)])
        found.add(f"{count} empty kernels as {name}, by events", f"p50 {told['p50']:.2f} us a kernel")


def _memory(found: Figures, device: Device, stream: int) -> None:
    with Device() as own:
        size = 1 << 30
        lane = Lane(stream, CopyWithin(own.memory(size), own.memory(size), size))
        told = distribution([trace.compute.ms for trace in alone(lane, LIMITS, transfers=False)])
        rate = 2 * size / (float(str(told["p50"])) / 1000)
        share = rate / peak_bytes_per_s()
        found.add("1 GiB within the device", f"p50 {rate / 1e9:,.0f} GB/s read and written, {share:.0%} of the peak")
        size = 64 << 20
        traces = alone(Lane(stream, transferring(own, size)), LIMITS, transfers=True)
        for way, of in (("to", lambda trace: trace.h2d.ms), ("from", lambda trace: trace.d2h.ms)):
            ms = float(str(distribution([of(trace) for trace in traces])["p50"]))
            found.add(f"64 MiB {way} the device, pinned", f"p50 {size / ms / 1e6:.1f} GB/s")


def main() -> None:
    """Prints the figures as a table."""
    (gpu, *_) = gpus().found
    print(f"{gpu.name}, compute capability {gpu.compute_capability}\n")
    print("| what | figure |\n| --- | --- |")
    for what, figure in measured().lines:
        print(f"| {what} | {figure} |")


if __name__ == "__main__":
    main()
