"""What a benchmark found, and what is told of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from stages.bench_points import Point
from stages.gpu_timing import Throughput
from stages.measuring import distribution, percentile, rounded
from stages.stage import JSON

ENQUEUE_BOUND = 0.8
"""Where giving a run takes so large a part of its time on the GPU, the GPU may wait for the host: `trtexec` warns from
here on."""


@dataclass(frozen=True)
class Run:
    """A point, measured in one way.

    Attributes:
        launch: `enqueue`, each inference as calls; `graph`, as one CUDA graph; `run`, by ONNX Runtime.
        inputs: `device`, they are there already; `pinned`, copied from pinned memory, and the outputs back; `host`.
        times: Lists of times in milliseconds, by name: `gpu_ms`, `host_ms`, …
        rates: What was done in how many streams.
    """

    launch: str
    inputs: str
    times: Mapping[str, Sequence[float]]
    rates: Sequence[Throughput]

    def median_ms(self, name: str) -> float:
        """The median of the times of this name, in milliseconds."""
        return rounded(percentile(self.times[name], 50))

    @property
    def enqueue_bound(self) -> bool:
        """Whether giving a run takes most of the time that it takes on the GPU; False where no GPU is."""
        on_gpu = "enqueue_ms" in self.times and "gpu_ms" in self.times
        return on_gpu and self.median_ms("enqueue_ms") > ENQUEUE_BOUND * self.median_ms("gpu_ms")


@dataclass(frozen=True)
class Result:
    """What was found at a point.

    Attributes:
        point: Where.
        runs: Each way of measuring.
        not_captured: Why there is no CUDA graph; None where there is one.
    """

    point: Point
    runs: Sequence[Run]
    not_captured: str | None

    def run(self, launch: str, inputs: str) -> Run | None:
        """The one of its runs that was made so; None where none was."""
        return next((run for run in self.runs if (run.launch, run.inputs) == (launch, inputs)), None)

    def described(self) -> dict[str, JSON]:
        """For reports."""
        return {
            **self.point.described(),
            "cuda_graph": {"captured": self.not_captured is None, "reason": self.not_captured},
            "runs": [_described(run, self.point.samples) for run in self.runs],
        }


def _described(run: Run, samples: int | None) -> dict[str, JSON]:
    return {
        "launch": run.launch,
        "inputs": run.inputs,
        **{name: distribution(times) for name, times in run.times.items()},
        "enqueue_bound": run.enqueue_bound,
        "throughput": [
            {
                "streams": rate.streams,
                "inferences": rate.inferences,
                "seconds": rounded(rate.seconds),
                "inferences_per_s": round(rate.per_second, 3),
                "samples_per_s": None if samples is None else round(rate.per_second * samples, 3),
            }
            for rate in run.rates
        ],
    }


def slowest_ms(results: Sequence[Result], launch: str, inputs: str, name: str) -> float | None:
    """The median of these times at opt, of several profiles the largest; None where none was measured there."""
    return max((run.median_ms(name) for run in _at_opt(results) if (run.launch, run.inputs) == (launch, inputs)),
               default=None)  # fmt: skip


def most_per_second(results: Sequence[Result]) -> tuple[float | None, float | None]:
    """Inferences and samples a second at opt, each the best of all runs there; None where nobody can say."""
    at_opt = [result for result in results if result.point.end == "opt"]
    rates = [(rate.per_second, result.point.samples) for result in at_opt for run in result.runs for rate in run.rates]
    inferences = [rate for rate, _ in rates]
    samples = [rate * count for rate, count in rates if count is not None]
    best = (max(each, default=None) for each in (inferences, samples))
    first, second = (None if each is None else round(each, 3) for each in best)
    return first, second


def _at_opt(results: Sequence[Result]) -> Iterator[Run]:
    for result in results:
        if result.point.end == "opt":
            yield from result.runs
