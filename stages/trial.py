"""Trying ranges out: the model with Q/DQ beside the float32 one on some batches, for each candidate.

Better ranges of single tensors are not always a better model, so what is measured is the model's outputs. One session
serves every candidate: the scales of the activations are inputs of it, so memory is that of two models and one batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log10
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import batches, exact_runs, quantization, quantize
from stages.comparison import Comparison
from stages.stage import JSON, Progress, StageError

if TYPE_CHECKING:
    from onnx import ModelProto

    from stages.batches import Array, Batch

Ranges = Mapping[str, float]
"""The amax of each activation."""


@dataclass(frozen=True)
class Score:
    """How one candidate did.

    Attributes:
        sqnr_db: Of the worst output, to 0.01 dB; infinity without any error.
        accuracy: The share of right labels; None without labels.
        refused: Why it cannot be compared: an output is not finite, or of another shape.
    """

    sqnr_db: float
    accuracy: float | None = None
    refused: str | None = None

    @property
    def rank(self) -> tuple[float, float]:
        """Larger is better: the user's metric where there is one, then SQNR."""
        return (-inf, -inf) if self.refused else (self.accuracy or 0.0, self.sqnr_db)

    def result(self) -> dict[str, JSON]:
        """As the report holds it; null for a ratio without error or signal."""
        decibels = self.sqnr_db if abs(self.sqnr_db) < inf and not self.refused else None
        return {"sqnr_db": decibels, "accuracy": self.accuracy, "refused": self.refused}


@dataclass
class Slice:
    """Some batches of the data, spread evenly over it, so that sorted data do not mislead.

    Attributes:
        files: The data.
        inputs: What is read.
        wanted: About how many samples; at least one batch, at most all.
        batch_size: Samples of a batch; None: each file is one.
        max_samples: Nothing after so many samples; None: all.
        batches: How many were given.
        samples: How many samples these had.
    """

    files: Sequence[Path]
    inputs: Sequence[batches.Input]
    wanted: int
    batch_size: int | None = None
    max_samples: int | None = None
    batches: int = 0
    samples: int = 0

    def __iter__(self) -> Iterator[Batch]:
        there = batches.count_samples(self.files, self.inputs)
        number = max(1, round(self.wanted / (self.batch_size or there / len(self.files))))
        total = there if self.max_samples is None else min(there, self.max_samples)
        places = sorted({index * total // number for index in range(number)})
        start = 0
        for batch in batches.read_batches(self.files, self.inputs, self.batch_size, self.max_samples):
            stop = start + batches.size(batch)
            if start <= places[0] < stop:
                places = [place for place in places if place >= stop]
                self.batches += 1
                self.samples += stop - start
                yield batch
            if not places:
                return
            start = stop


def compare(
    reference: ModelProto,
    candidate: ModelProto,
    choices: Mapping[str, Ranges],
    feeds: Iterable[Batch],
    labels: str | None,
    progress: Progress,
) -> dict[str, Score]:
    """The score of each of `choices`.

    Args:
        reference: The model in float32; changed.
        candidate: The same model, another object; gets Q/DQ.
        choices: The ranges by the candidate's name.
        feeds: What to run both on.
        labels: The array in each feed that holds the labels; None: SQNR alone decides.
        progress: Told of each batch.

    Raises:
        StageError: A model cannot run on a batch, or has no output to compare.
    """
    names = _tensors(reference)
    scales = _scale_inputs(candidate, next(iter(choices.values())))
    float_session, session = exact_runs.open_exact(reference), exact_runs.open_exact(candidate)
    compared = {choice: Comparison(choice) for choice in choices}
    refused: dict[str, str] = {}
    for number, batch in enumerate(feeds):
        truth = batch.pop(labels) if labels is not None else None
        expected = exact_runs.run(float_session, names, batch, number)
        for choice in [name for name in choices if name not in refused]:
            fed = {**batch, **{name: _scale(choices[choice][tensor], kind) for tensor, (name, kind) in scales.items()}}
            got = exact_runs.run(session, names, fed, number)
            try:
                compared[choice].add(expected, got, truth)
            except StageError as error:
                refused[choice] = error.what
        progress("trying ranges", None)
    return {choice: _score(found, refused.get(choice)) for choice, found in compared.items()}


def _tensors(model: ModelProto) -> list[str]:
    """The outputs that can be compared: sequences, maps and optionals have no distance."""
    names = [value.name for value in model.graph.output if value.type.HasField("tensor_type")]
    if not names:
        raise StageError(
            f"none of the outputs is a tensor: {', '.join(value.name for value in model.graph.output)}; "
            "ranges cannot be compared by them",
            "name an algorithm: steps.ranges.config.algorithm=mse",
        )
    return names


def _scale_inputs(model: ModelProto, ranges: Ranges) -> dict[str, tuple[str, int]]:
    """Gives `model` Q/DQ whose activation scales are inputs.

    Returns:
        dict: Name and ONNX element type of the scale of each activation.
    """
    from onnx import helper

    quantize.prepare(model)
    placement = quantization.place(model)
    quantize.insert(model, placement, ranges)
    activations, graph = set(placement.activations), model.graph
    scale = {
        node.input[0]: node.input[1]
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in activations
    }
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kept = [tensor for tensor in graph.initializer if tensor.name not in set(scale.values())]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    graph.input.extend(helper.make_tensor_value_info(name, kinds[name], []) for name in scale.values())
    return {tensor: (name, kinds[name]) for tensor, name in scale.items()}


def _scale(amax: float, kind: int) -> Array:
    from onnx import numpy_helper

    array: Array = numpy_helper.to_array(quantize.scale_of(amax, kind, "scale"))
    return array


def _score(compared: Comparison, refused: str | None) -> Score:
    if refused is not None:
        return Score(-inf, None, refused)
    ratio = max(found.noise_ratio for found in compared.outputs.values())
    decibels = inf if ratio == 0 else -inf if ratio == inf else round(-10 * log10(ratio), 2)
    accuracy: Any = compared.accuracy.result()["candidate"] if compared.accuracy else None
    return Score(decibels, accuracy)
