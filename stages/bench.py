"""Stage `bench`: how fast a plan is, at the ends of its profiles.

Where a GPU of the target is here, the plan is executed on it; its outputs are `bench.json`, all that was measured, and
`times.json`, single inferences as `trtexec --exportTimes` writes them. Where none is, ONNX Runtime is timed on the ONNX
that the builder was given, on the CPU, and everything says so. What gates read of the metrics:

- `latency_ms`: the plan's time on the GPU at opt: the median (p50) by CUDA events, inputs on the device, one stream in
  which the next inference waits, no CUDA graph; of several profiles the slowest. Null unless the plan was executed.
- `engine_executed`: whether it was, and `reason` of not; `gpu`: on which.
- `host_latency_ms`: the median of ONNX Runtime on this host's CPU, likewise at opt; null where the plan was executed.
  It is no number of the plan's, and no gate reads it.

A time is a measurement: the same question may be answered otherwise tomorrow. Its key holds the plan, the ONNX, the
config and the kind of machine (the fact `machine`), so that a record answers for machines of that kind; the record says
on which host, with which driver and at which clocks it was measured. `trtforge bench --again` measures anew.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import count

from stages import backends, bench_cpu, bench_gpu, installed, machine, onnx_file, plan, profiles, trtexec_times
from stages.allowed import require, require_at_least
from stages.batches import model_inputs
from stages.bench_points import ENDS, Point, points
from stages.bench_result import Result, most_per_second, slowest_ms
from stages.gpu_clocks import ClockReader
from stages.gpus import gpus, use
from stages.measuring import MOST_ITERATIONS, Limits
from stages.stage import JSON, Job, Metrics, Stage

MOST_STREAMS = 64
"""Each has a context, with activations of its own in the device's memory."""


@dataclass(frozen=True)
class BenchConfig:
    """Where and how long to measure.

    Attributes:
        points: Ends of profiles: `min`, `opt`, `max` of each, or of one: `small.opt`.
        warmup_iterations: So many runs at least come before each measurement.
        warmup_ms: They take so long at least.
        iterations: So many runs at least are measured.
        duration_ms: They take so long at least.
        streams: Throughput is measured with each of these numbers of streams, a context in each; GPU only.
        cuda_graph: Whether each measurement is made with a CUDA graph too; GPU only.
        threads: Of ONNX Runtime, where no GPU can execute the plan; 0: one for each processor of this process.
        seed: Of the inputs.
    """

    points: list[str] = field(default_factory=lambda: list(ENDS))
    warmup_iterations: int = 10
    warmup_ms: float = 200.0
    iterations: int = 20
    duration_ms: float = 500.0
    streams: list[int] = field(default_factory=lambda: [1, 2])
    cuda_graph: bool = True
    threads: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for point in self.points:
            allowed = f"{', '.join(ENDS)}, or PROFILE. before one of them"
            require(point.rpartition(".")[2] in ENDS, "points", point, allowed)
        require(bool(self.points), "points", self.points, f"at least one of {', '.join(ENDS)}")
        for number in self.streams:
            require(1 <= number <= MOST_STREAMS, "streams", number, f"1 to {MOST_STREAMS}")
        require(bool(self.streams), "streams", self.streams, "at least one number")
        require(1 <= self.iterations <= MOST_ITERATIONS, "iterations", self.iterations, f"1 to {MOST_ITERATIONS}")
        most = f"0 to {MOST_ITERATIONS}"
        require(0 <= self.warmup_iterations <= MOST_ITERATIONS, "warmup_iterations", self.warmup_iterations, most)
        require_at_least(self, 0, "warmup_ms", "duration_ms", "threads", "seed")

    @property
    def limits(self) -> Limits:
        """How often each measurement is repeated."""
        return Limits(self.warmup_iterations, self.warmup_ms, self.iterations, self.duration_ms)


def bench(job: Job[BenchConfig]) -> Metrics:
    """Times `plan` on a GPU of its target, or `onnx` on the CPU.

    Returns:
        Metrics: those above, `runtime` and `cpu`; and, null unless it was executed, `round_trip_ms` (the host's median
        at opt, from pinned inputs to pinned outputs), `inferences_per_s` and `samples_per_s` (the best at opt), and
        `clocks`.

    Raises:
        StageError: The plan is not the target's, a point or its inputs cannot be, or the GPU fails.
    """
    facts = job.facts
    header = plan.read(job.file("plan"))
    plan.check(header, facts["backend"], facts["backend_version"], facts["compute_capability"])
    job.progress("load", None)
    inputs = model_inputs(onnx_file.read(job.inputs["onnx"]))
    found = list(points(inputs, profiles.profiles_of(facts["profiles"]), job.config.points, job.config.seed))
    measured = _on_gpu(job, found) if facts["gpu_here"] else _on_cpu(job, found)
    return _report(job, measured)


@dataclass(frozen=True)
class _Measured:
    """What was measured, wherever that was.

    Attributes:
        runtime: What ran, such as `tensorrt_rtx 1.7.1.116`; None where nothing could.
        results: One for each point.
        reason: Why the plan was not executed; None where it was.
        gpu: On which it was; None where it was not.
        how: What else matters: threads, driver.
        clocks: Of the GPU.
    """

    runtime: str | None
    results: Sequence[Result]
    reason: str | None = None
    gpu: str | None = None
    how: JSON = None
    clocks: JSON = None


def _on_gpu(job: Job[BenchConfig], found: Sequence[Point]) -> _Measured:
    from stages.engine_workload import Engine

    facts, config, tell = job.facts, job.config, _teller(job, len(found))
    use(facts["compute_capability"], facts["machine"]["gpu"])
    gpu = next(each for each in gpus().of(facts["compute_capability"]) if each.name == facts["machine"]["gpu"])
    reader = ClockReader(gpu.uuid)
    engine = Engine(facts["backend"], job.file("plan"), job.inputs.get("plugins", ()))
    how = bench_gpu.How(config.limits, config.streams, config.cuda_graph)
    timed = [bench_gpu.timed(engine, point, how, reader, partial(tell, number)) for number, point in enumerate(found)]
    exported = next((traces for result, traces in timed if result.point.end == "opt"), timed[0][1])
    trtexec_times.write(exported, job.out / STAGE.outputs["times"])
    runtime = f"{facts['backend']} {facts['backend_version']}"
    driver: JSON = {"driver": reader.clocks.driver, "cuda_python": installed.version("cuda-bindings")}
    return _Measured(runtime, [result for result, _ in timed], None, gpu.name, driver, reader.clocks.told())


def _on_cpu(job: Job[BenchConfig], found: Sequence[Point]) -> _Measured:
    reason = backends.no_gpu(job.facts["compute_capability"])
    trtexec_times.write([], job.out / STAGE.outputs["times"])
    threads, tell, numbers = job.config.threads or machine.cores(), _teller(job, len(found)), count()
    try:
        results, how = bench_cpu.timed(
            job.inputs["onnx"], found, job.config.limits, threads, lambda phase: tell(next(numbers), phase)
        )
    except bench_cpu.CannotRunError as error:
        return _Measured(None, [], f"{reason}, and ONNX Runtime's CPU provider cannot run the model: {error}")
    return _Measured(f"onnxruntime {installed.version('onnxruntime')} CPU", results, reason, how=how)


def _teller(job: Job[BenchConfig], points: int) -> Callable[[int, str], None]:
    return lambda number, phase: job.progress(phase, number / points)


def _report(job: Job[BenchConfig], measured: _Measured) -> Metrics:
    results = measured.results
    executed = measured.gpu is not None
    inferences, samples = most_per_second(results) if executed else (None, None)
    summary: Metrics = {
        "engine_executed": executed,
        "reason": measured.reason,
        "runtime": measured.runtime,
        "gpu": measured.gpu,
        "cpu": machine.cpu(),
        "latency_ms": slowest_ms(results, "enqueue", "device", "gpu_ms"),
        "round_trip_ms": slowest_ms(results, "enqueue", "pinned", "host_ms"),
        "host_latency_ms": slowest_ms(results, "run", "host", "host_ms"),
        "inferences_per_s": inferences,
        "samples_per_s": samples,
        "clocks": measured.clocks,
    }
    where = {"host": platform.node(), "cores": machine.cores(), "load_1min": round(os.getloadavg()[0], 2)}
    report = {
        "summary": summary,
        "measured": {**where, "how": measured.how},
        "points": [result.described() for result in results],
    }
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (job.out / STAGE.outputs["report"]).write_text(text, encoding="utf-8")
    return summary


STAGE = Stage(
    name="bench",
    version=1,
    config=BenchConfig,
    run=bench,
    inputs=("onnx", "plan"),
    optional=("plugins",),
    outputs={"report": "bench.json", "times": "times.json"},
    facts=("backend", "backend_version", "compute_capability", "gpu_here", "profiles", "machine"),
    tools=("onnxruntime", "numpy", "onnx"),
    uses_gpu=True,
    measures_time=True,
)
