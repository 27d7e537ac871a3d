"""Held-out samples that the model was calibrated with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages import overlap
from stages.batches import Input
from stages.overlap import Overlap
from stages.stage import Job
from stages.validate import ValidateConfig

X = [Input("x", "float32", ("n", 3)), Input("y", "int64", ("n",))]


@pytest.fixture
def samples() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    return {"x": random.standard_normal((40, 3)).astype(np.float32), "y": np.arange(40)}


def opened(tmp_path: Path, calibration: dict[str, Any], said: dict[str, Any] | None = None) -> Overlap:
    np.savez(tmp_path / "calibration.npz", **calibration)
    files = {"calibration": [tmp_path / "calibration.npz"], "holdout": []}
    facts = {"calibration": said or {}, "holdout": {}}
    return overlap.opened(Job(ValidateConfig(), files, facts, tmp_path), X)


def test_samples_are_the_same_by_content_wherever_they_stand(samples: dict[str, np.ndarray], tmp_path: Path) -> None:
    order = np.random.default_rng(1).permutation(20)
    found = opened(tmp_path, {name: values[:20][order] for name, values in samples.items()}, {"batch_size": 7})
    for start in (15, 25, 35):  # 15 to 19 are in both
        found.add({name: values[start : start + 10][:10] for name, values in samples.items()})
    assert found.result() == {
        "count": 5,
        "held_out_samples": 25,
        "calibration_samples": 20,
        "first_samples": [0, 1, 2, 3, 4],
    }


def test_one_value_of_one_input_makes_another_sample(samples: dict[str, np.ndarray], tmp_path: Path) -> None:
    found = opened(tmp_path, samples)
    found.add({**samples, "y": samples["y"] + 1})
    assert found.count == 0
    found.add(samples)
    assert found.count == 40 and len(found.first) == overlap.SHOWN


def test_random_samples_and_data_of_other_inputs_are_not_compared(
    samples: dict[str, np.ndarray], tmp_path: Path
) -> None:
    assert opened(tmp_path, samples, {"random": 4}).result() is None
    other = opened(tmp_path, {"z": samples["x"]})
    assert other.result() is None and "x" in str(other.reason)
