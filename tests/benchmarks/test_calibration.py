"""The calibration benchmark: promises are judged by the figures, and a process that takes too much is ended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.calibration import processes
from benchmarks.calibration.judgement import Made, Run, below, claims
from benchmarks.calibration.scores import edits
from benchmarks.models import sentences

MB = 2**20


def run(
    tool: str, algorithm: str, peak: int, cpu_s: float, sqnr_db: float, model: str = "rec", samples: int = 128
) -> Run:
    metrics = {"lines": [1.0, 0.0, 1.0, 1.0]}
    return Run(model, samples, tool, {algorithm: Made(peak * MB, cpu_s, sqnr_db, metrics, algorithm)})


def failing(runs: list[Run], plans: dict[str, dict[str, object]] | None = None) -> list[str]:
    return [claim.what for claim in claims(runs, {}, plans or {}) if not claim.holds]


def test_figures_within_the_promises_hold() -> None:
    ours = Run(
        "rec", 128, "ours", {name: Made(190 * MB, 7.0, 11.0, {"lines": [1.0] * 4}, name) for name in ("auto", "max")}
    )
    found = claims([ours, run("modelopt max", "max", 780, 20.0, 9.0)], {}, {})
    assert len(found) == 4
    assert all(claim.holds for claim in found)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (run("modelopt max", "max", 700, 20.0, 9.0), "peak over modelopt max's"),
        (run("modelopt max", "max", 800, 13.0, 9.0), "CPU seconds over modelopt max's"),
        (run("modelopt max", "max", 800, 20.0, 11.6), "SQNR"),
        (Run("rec", 128, "onnxruntime entropy", {}, "killed at 1.0 GB", 1024 * MB), "peak over onnxruntime entropy's"),
    ],
)
def test_each_promise_that_is_broken_is_named(other: Run, says: str) -> None:
    made = {name: Made(190 * MB, 7.0, 11.0, {"lines": [1.0] * 4}, name) for name in ("auto", "max")}
    (what,) = failing([Run("rec", 128, "ours", made), other])
    assert says in what


def test_memory_that_grows_with_the_samples_breaks_a_promise() -> None:
    runs = [run("ours", "auto", peak, 7.0, 11.0, samples=number) for number, peak in ((32, 100), (512, 111))]
    assert failing(runs) == ["rec: peak at 512 over 32 samples"]


def test_a_plan_that_does_not_read_all_in_int8_or_is_not_there_breaks_a_promise() -> None:
    runs = [run("ours", "auto", 100, 7.0, 11.0)]
    plans = {
        "rec": {
            "8.0": {"reads": {"corrltn": {"int8": 3, "float": 1}}, "in_float": 0},
            "8.6": {"reads": {"corrltn": {"int8": 4, "float": 1}}, "in_float": 1},
            "8.9": {"failed": "exit code 1: no"},
        }
    }
    assert [what.rpartition(" for ")[2][:3] for what in failing(runs, plans)] == ["8.0", "8.9"]


def test_a_task_metric_may_be_worse_within_its_confidence_interval() -> None:
    theirs, ours = np.repeat([1.0, 0.0], [60, 40]), np.repeat([1.0, 0.0, 1.0, 0.0], [54, 6, 4, 36])
    behind, interval = below(theirs.tolist(), ours.tolist())
    assert behind == pytest.approx(0.02)
    assert interval == pytest.approx(1.96 * np.std(theirs, ddof=1) / 10)
    assert behind < interval


def test_a_process_that_takes_too_much_memory_is_killed_and_its_peak_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "greedy").mkdir()
    (tmp_path / "greedy/__init__.py").touch()
    (tmp_path / "greedy/tool.py").write_text("import time\nheld = bytearray(b'x' * (300 << 20))\ntime.sleep(60)\n")
    monkeypatch.setattr(processes, "__package__", "greedy")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = processes.run("tool", max_bytes=200 * MB)
    assert found["failed"] == "killed at 0.2 GB" or found["failed"] == "killed at 0.3 GB"
    assert found["peak"] > 200 * MB


def test_a_process_that_fails_says_its_last_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "failing").mkdir()
    (tmp_path / "failing/__init__.py").touch()
    (tmp_path / "failing/tool.py").write_text("raise SystemExit('no such model')\n")
    monkeypatch.setattr(processes, "__package__", "failing")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert processes.run("tool")["failed"] == "exit code 1: no such model"


@pytest.mark.parametrize(("one", "other", "distance"), [("", "abc", 3), ("kitten", "sitting", 3), ("same", "same", 0)])
def test_edits_are_counted(one: str, other: str, distance: int) -> None:
    assert edits(one, other) == edits(other, one) == distance


def test_there_are_sentences_for_calibration_and_as_many_others_to_judge_with() -> None:
    assert len(sentences()) == len(set(sentences())) >= 512 + 256
