"""How far a quantized model is from the float32 one on held-out inputs, every node computed as it is written.

    python -m benchmarks.calibration.scores NAME MODEL_FOLDER CANDIDATE

prints a line of JSON: SQNR of the worst output in dB, and each of the model's own metrics, a number for each sample.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from stages import exact_runs, onnx_file, trial
from stages.comparison import Comparison

Arrays = Mapping[str, Any]
Metric = Callable[[Arrays, Arrays, list[Any]], Iterator[float]]
"""Reference outputs, the candidate's, what is right for each sample: a number for each, larger is better."""


def _only(outputs: Arrays) -> Any:
    return next(iter(outputs.values()))


def accuracy(reference: Arrays, candidate: Arrays, labels: list[Any]) -> Iterator[float]:
    """Whether the label is the largest."""
    del reference
    yield from (_only(candidate).argmax(axis=1) == np.asarray(labels)).astype(float)


def agreement(reference: Arrays, candidate: Arrays, labels: list[Any]) -> Iterator[float]:
    """Whether the largest is that of float32."""
    del labels
    yield from (_only(candidate).argmax(axis=1) == _only(reference).argmax(axis=1)).astype(float)


def cosine(reference: Arrays, candidate: Arrays, labels: list[Any]) -> Iterator[float]:
    """Of each sample's output, the mean over tokens where it has them (N, T, C): a sentence's embedding."""
    del labels
    for one, other in zip(_only(reference), _only(candidate), strict=True):
        a, b = (x.mean(axis=0) if x.ndim == 2 else x for x in (one, other))
        yield float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def _read(steps: Any) -> str:
    """The text of (T, classes): of equal classes in a row one counts, class 0 is none; without spaces at its ends."""
    from benchmarks.models import characters

    best = steps.argmax(axis=1)
    kept = best[(best > 0) & np.append(True, best[1:] != best[:-1])]
    return "".join(characters()[index] for index in kept).strip()


def edits(one: str, other: str) -> int:
    """The fewest insertions, deletions and replacements that make `other` of `one`."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def character_accuracy(reference: Arrays, candidate: Arrays, labels: list[Any]) -> Iterator[float]:
    """1 - edits / length of each line, at least 0."""
    del reference
    for steps, right in zip(_only(candidate), labels, strict=True):
        yield max(0.0, 1 - edits(_read(steps), right) / len(right))


def line_accuracy(reference: Arrays, candidate: Arrays, labels: list[Any]) -> Iterator[float]:
    """Whether the whole line is right."""
    del reference
    for steps, right in zip(_only(candidate), labels, strict=True):
        yield float(_read(steps) == right)


def _rounded(path: Path) -> ModelProto:
    """The model at `path`, the Q/DQ of its weights computed once: MiniLM's take most of the time of a run."""
    model = onnx_file.read(path)
    trial.round_weights(model)
    return model


METRICS: Mapping[str, Mapping[str, Metric]] = {
    "digits": {"accuracy": accuracy},
    "minilm": {"cosine": cosine},
    "resnet50": {"cosine": cosine, "top-1": agreement},
    "rec": {"characters": character_accuracy, "lines": line_accuracy},
}


def score(name: str, folder: Path, path: Path | None) -> dict[str, Any]:
    """SQNR and metrics of the model at `path`, over all held-out batches; None: of float32 itself."""
    session = exact_runs.open_exact(_rounded(path)) if path else None
    compared, labels = Comparison("it"), json.loads((folder / "labels.json").read_text())
    found: dict[str, list[float]] = {metric: [] for metric in METRICS[name]}
    for index, file in enumerate(sorted((folder / "heldout").iterdir())):
        reference = dict(np.load(folder / "reference" / file.name))
        got = exact_runs.run(session, list(reference), dict(np.load(file)), index) if session else reference
        compared.add(reference, got, None)
        for metric, values in METRICS[name].items():
            found[metric] += values(reference, got, labels[index])
    ratio = [difference.sqnr_db for difference in compared.outputs.values()]
    return {"sqnr_db": min((db for db in ratio if db is not None), default=None), "metrics": found}


if __name__ == "__main__":
    given = sys.argv[3]
    print(json.dumps(score(sys.argv[1], Path(sys.argv[2]), None if given == "float32" else Path(given))))
