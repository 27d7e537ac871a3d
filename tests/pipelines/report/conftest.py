"""Plans to report on: those of the default build, with the times of a GPU that is not here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from artifacts.record import Record
from artifacts.store import Store
from pipelines.report.subject import Subject, subjects
from pipelines.session import Session
from stages import bench
from stages.bench_points import Point
from stages.bench_result import Result, Run, slowest_ms
from stages.gpu_timing import Throughput
from tests.pipelines.planning import plan

DECIMAL_MS = (0.25, 0.26, 0.31)
"""Times of three runs: median, and what lies above it."""


def keep_times(store: Store, subject: Subject, finished: str, factor: float = 1.0, digest: str | None = None) -> Record:
    """Keeps a record of `bench` as a GPU would have it, of the plan of `subject` or of another: times `DECIMAL_MS`."""
    times = [factor * time for time in DECIMAL_MS]
    point = Point("default", 0, "opt", {"images": np.zeros((8, 1, 8, 8), np.float32)}, 8)
    runs = [Run("enqueue", "device", {"gpu_ms": times, "host_ms": times}, [Throughput(1, 3, sum(times) / 1000)])]
    results = [Result(point, runs, None)]
    summary = {
        "engine_executed": True,
        "reason": None,
        "runtime": "tensorrt_rtx 1.7.1.116",
        "gpu": "NVIDIA L4",
        "cpu": "a CPU",
        "latency_ms": slowest_ms(results, "enqueue", "device", "gpu_ms"),
        "host_latency_ms": None,
    }
    report = {"summary": summary, "measured": {}, "points": [result.described() for result in results]}
    with store.scratch() as aside:
        (aside / "bench.json").write_text(json.dumps(report))
        blob = store.add(aside / "bench.json")
    question = {
        "stage": bench.STAGE.name,
        "version": bench.STAGE.version,
        "config": {},
        "facts": {},
        "tools": {},
        "inputs": {"plan": digest or subject.record.outputs["plan"].digest, "onnx": "0" * 64},
    }
    made = {"step": "bench", "target": subject.target.name, "model": "digits", "flow": "int8", "finished": finished}
    record = Record(question, {"report": blob}, summary, {**made, "host": "lab"})
    store.put(record)
    return record


def opened(root: Path, *overrides: str) -> Session:
    """The run of these overrides, with the default build's store."""
    return plan(root, overrides)


def subject_of(session: Session, target: str = "l4") -> Subject:
    return next(each for each in subjects(session) if each.target.name == target)


def timed(subject: Subject, timings: Sequence[Record]) -> Subject:
    return replace(subject, timings=timings)


@pytest.fixture(scope="session")
def root(default_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the tests of reports: they add records."""
    return Path(shutil.copytree(default_store, tmp_path_factory.mktemp("reports") / "store", symlinks=True))


@pytest.fixture(scope="session")
def session(root: Path) -> Session:
    return opened(root)


@pytest.fixture(scope="session")
def subject(session: Session) -> Subject:
    """The plan of the default build for the L4, which nobody has timed."""
    return timed(subject_of(session), ())
