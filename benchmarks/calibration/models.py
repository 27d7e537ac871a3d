"""Prepares the models that are measured: the same `model.onnx` for all tools, and data to calibrate and judge with.

    python -m benchmarks.calibration.models NAME FOLDER

writes `model.onnx`, after surgery; `calibration/`, a file for each sample; `heldout/`, batches of inputs that are in no
calibration file; `labels.json`, where there are any; and `reference/`, what the float32 model makes of the latter. All
tools are given the same `model.onnx`: as the OCR recognizer comes, with its weights in `Constant` nodes, onnxruntime
and modelopt would quantize them per tensor, and recognize nothing any more. Its opset is raised to 13: at 12
onnxruntime writes what it cannot load.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from benchmarks.models import SUBJECTS, Feed
from stages import exact_runs, onnx_file, onnx_opset, surgery
from stages.stage import Job

OPSET = 13
"""The first whose QuantizeLinear has an axis."""


def prepare(name: str, folder: Path) -> None:
    """Writes model and data of `SUBJECTS[name]` into `folder`."""
    subject = SUBJECTS[name]
    with TemporaryDirectory() as scratch:
        given, facts = Path(scratch) / "given.onnx", {"profiles": {}, "pass_packages": {}}
        model = subject.model()
        onnx_opset.raise_opset(model, OPSET)
        onnx.save(model, str(given))
        surgery.STAGE.run(Job(surgery.SurgeryConfig(), {"onnx": [given]}, facts, folder))
    for index, feed in enumerate(subject.calibration()):
        _store(folder / "calibration", index, feed)
    session, labels = exact_runs.open_exact(onnx_file.read(folder / "model.onnx")), []
    outputs = [output.name for output in session.get_outputs()]
    for index, (feed, right) in enumerate(subject.heldout()):
        _store(folder / "heldout", index, feed)
        _store(folder / "reference", index, exact_runs.run(session, outputs, feed, index))
        labels.append(right)
    (folder / "labels.json").write_text(json.dumps(labels))


def _store(folder: Path, index: int, arrays: Feed) -> None:
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{index:04}.npz", **arrays)


if __name__ == "__main__":
    prepare(sys.argv[1], Path(sys.argv[2]))
    print("{}")
