"""Times a model on ONNX Runtime's CPU provider: what is timed where no GPU can execute the plan, and never called it.

Graph optimizations are those that ONNX Runtime has by default, unlike in validation: here its speed is asked for, not
its numbers. A model with weights in external files goes without (`stages.onnx_session`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from stages import onnx_file
from stages.bench_points import Point
from stages.bench_result import Result, Run
from stages.gpu_timing import Throughput
from stages.measuring import Limits, repeat
from stages.onnx_session import open_session
from stages.stage import JSON
from stages.wording import first_line


class CannotRunError(Exception):
    """ONNX Runtime cannot run the model; the text says why."""


def timed(
    onnx: Sequence[Path], points: Iterable[Point], limits: Limits, threads: int, told: Callable[[str], None]
) -> tuple[list[Result], dict[str, JSON]]:
    """Times the model at every point.

    Args:
        onnx: The ONNX file, and its data where it has any.
        points: Where.
        limits: How often.
        threads: Of ONNX Runtime, within an operator.
        told: Called with what is measured next.

    Returns:
        What was found at each point, and how ONNX Runtime was set.

    Raises:
        CannotRunError: ONNX Runtime cannot load or run it.
        StageError: The file cannot be read, or a point's inputs cannot be made.
    """
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    model = onnx_file.read(onnx)
    try:
        session = open_session(model, options)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise CannotRunError(first_line(error)) from error
    results = []
    for point in points:
        told(f"{point.name}: ONNX Runtime")
        results.append(Result(point, [_run(session, point, limits)], "ONNX Runtime runs on the CPU"))
    level = str(options.graph_optimization_level).rpartition(".")[2]
    return results, {"threads": threads, "graph_optimizations": level}


def _run(session: Any, point: Point, limits: Limits) -> Run:
    names = [output.name for output in session.get_outputs()]
    began = 0.0

    def once() -> float:
        started = time.perf_counter()
        session.run(names, point.feed)
        return (time.perf_counter() - started) * 1000

    def begin() -> None:
        nonlocal began
        began = time.perf_counter()

    try:
        times = repeat(once, limits, begin)
    except Exception as error:
        raise CannotRunError(first_line(error)) from error
    rate = Throughput(streams=1, inferences=len(times), seconds=time.perf_counter() - began)
    return Run("run", "host", {"host_ms": times}, [rate])
