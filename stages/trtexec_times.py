"""Times as `trtexec --exportTimes` writes them, for the tools that read those.

An array with an object for each inference. Names and meaning are those of TensorRT 10 and 11
(samples/common/sampleReporting.cpp): all in milliseconds; `startX` and `endX` since the measurement began, the enqueue
by the host's clock, all else by the GPU's; `latencyMs` is the sum of `h2dMs`, `computeMs` and `d2hMs`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from stages.gpu_timing import Trace
from stages.measuring import rounded


def write(traces: Sequence[Trace], destination: Path) -> None:
    """Writes the inferences in their order."""
    destination.write_text("[\n" + ",\n".join(json.dumps(_entry(trace)) for trace in traces) + "\n]\n")


def _entry(trace: Trace) -> dict[str, float]:
    spans = {"Enq": trace.enqueue, "H2d": trace.h2d, "Compute": trace.compute, "D2h": trace.d2h}
    ends = {f"{end}{name}Ms": getattr(span, end) for name, span in spans.items() for end in ("start", "end")}
    lengths = {"h2dMs": trace.h2d.ms, "computeMs": trace.compute.ms, "d2hMs": trace.d2h.ms}
    return {name: rounded(value) for name, value in {**ends, **lengths, "latencyMs": trace.latency_ms}.items()}
