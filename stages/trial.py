"""Trying ranges out: the model with Q/DQ beside the float32 one on some batches, for each candidate.

Better ranges of single tensors are not always a better model, so what is measured is the model's outputs. One session
serves every candidate: the scales of the activations are inputs of it, so memory is that of one model and one batch.
A candidate that is far behind after a quarter of the batches is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log10
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stages import batches, exact_runs, onnx_data, onnx_graph, quantization, quantize
from stages.comparison import Comparison
from stages.placement.contract import Placement
from stages.quantize import QuantizeConfig
from stages.stage import JSON, Progress, StageError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

    from stages.batches import Array, Batch
    from stages.data.reading import Batches

Ranges = Mapping[str, float]
"""The amax of each activation."""

GIVE_UP_AFTER, GIVE_UP_DB = 4, 3.0
"""After a quarter of the batches a candidate so far below the best is given up. Of four models' candidates, none that
was 3 dB behind by then came first."""


@dataclass(frozen=True)
class Score:
    """How one candidate did.

    Attributes:
        sqnr_db: Of the worst output, to 0.01 dB; infinity without any error.
        accuracy: The share of right labels; None without labels.
        refused: Why it cannot be compared: an output is not finite, or of another shape.
        samples: On how many samples it was tried.
        finished: Whether it was tried on all of them.
    """

    sqnr_db: float
    accuracy: float | None = None
    refused: str | None = None
    samples: int = 0
    finished: bool = True

    @property
    def rank(self) -> tuple[bool, float, float]:
        """Larger is better: the user's metric where there is one, then SQNR; what was given up comes last but one."""
        return (False, -inf, -inf) if self.refused else (self.finished, self.accuracy or 0.0, self.sqnr_db)

    def result(self) -> dict[str, JSON]:
        """As the report holds it; null for a ratio without error or signal."""
        decibels = self.sqnr_db if abs(self.sqnr_db) < inf and not self.refused else None
        return {
            "sqnr_db": decibels,
            "accuracy": self.accuracy,
            "refused": self.refused,
            "samples": self.samples,
        }


@dataclass
class Slice:
    """Some batches of the data, spread evenly over it, so that sorted data do not mislead.

    Attributes:
        data: The data.
        wanted: About how many samples; at least one batch, at most all.
        batches: How many were given.
        samples: How many samples these had.
    """

    data: Batches
    wanted: int
    batches: int = 0
    samples: int = 0

    def __iter__(self) -> Iterator[Batch]:
        total, there = self.data.extent
        number = max(1, round(self.wanted / (self.data.batch_size or total / there)))
        places = sorted({index * total // number for index in range(number)})
        start = 0
        for batch in self.data:
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
    read: Callable[[], ModelProto],
    choices: Mapping[str, Ranges],
    feeds: Iterable[Batch],
    labels: str | None,
    progress: Progress,
    options: QuantizeConfig,
    scratch: Path,
) -> dict[str, Score]:
    """The score of each of `choices`.

    The float32 model runs first, then the one with Q/DQ; what the first was given and gave is kept on disk, so that one
    of the two is in memory at a time.

    Args:
        read: Gives the model in float32, each time a new object.
        choices: The ranges by the candidate's name.
        feeds: What to run both on; gone through once.
        labels: The array in each feed that holds the labels; None: SQNR alone decides.
        progress: Told of each batch.
        options: What `quantize` will do.
        scratch: A directory for what is kept meanwhile.

    Raises:
        StageError: A model cannot run on a batch, or has no output to compare.
    """
    with TemporaryDirectory(dir=scratch) as folder:
        kept = Kept(Path(folder))
        run_float(read(), feeds, labels, kept, progress)
        model, placement, scales = _scale_inputs(read(), next(iter(choices.values())), options)
        # Tensors that share a scale get the largest of theirs, as `quantize` will give it.
        given = {choice: placement.unified(ranges) for choice, ranges in choices.items()}
        session = exact_runs.open_exact(model)
        del model
        return _run_candidates(session, scales, given, kept, progress, options.precision)


class Kept:
    """Feeds, what the float32 model made of each, and its labels, in files: they may be larger than the model.

    Args:
        folder: Where the files go.
    """

    def __init__(self, folder: Path) -> None:
        self._folder, self._names = folder, list[tuple[list[str], list[str], bool]]()

    def add(self, feed: Batch, expected: Batch, truth: Array | None) -> None:
        """Keeps one batch."""
        import numpy as np

        arrays = [*feed.values(), *expected.values(), *([] if truth is None else [truth])]
        np.savez(self._folder / f"{len(self._names)}.npz", *arrays)
        self._names.append((list(feed), list(expected), truth is not None))

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[tuple[Batch, Batch, Array | None]]:
        import numpy as np

        for index, (feed, expected, labelled) in enumerate(self._names):
            with np.load(self._folder / f"{index}.npz") as file:
                arrays = [file[f"arr_{place}"] for place in range(len(file.files))]
            truth = arrays.pop() if labelled else None
            made = dict(zip(expected, arrays[len(feed) :], strict=True))
            yield dict(zip(feed, arrays, strict=False)), made, truth


def run_float(model: ModelProto, feeds: Iterable[Batch], labels: str | None, kept: Kept, progress: Progress) -> None:
    """Runs the float32 model on each of `feeds`, and keeps what it makes of it."""
    names = output_tensors(model)
    session = exact_runs.open_exact(model)
    del model
    for number, batch in enumerate(feeds):
        truth = batch.pop(labels) if labels is not None else None
        kept.add(batch, exact_runs.run(session, names, batch, number), truth)
        progress("trying ranges: float32", None)


def _run_candidates(
    session: Any,
    scales: Mapping[str, tuple[str, int]],
    choices: Mapping[str, Ranges],
    kept: Kept,
    progress: Progress,
    precision: str,
) -> dict[str, Score]:
    compared = {choice: Comparison(choice) for choice in choices}
    out: dict[str, str] = {}
    for number, (batch, expected, truth) in enumerate(kept):
        for choice in [name for name in choices if name not in out]:
            given = {name: _scale(choices[choice][tensor], kind, precision) for tensor, (name, kind) in scales.items()}
            got = exact_runs.run(session, list(expected), {**batch, **given}, number)
            try:
                compared[choice].add(expected, got, truth)
            except StageError as error:
                out[choice] = error.what
        if truth is None and number + 1 == len(kept) // GIVE_UP_AFTER:
            out.update(dict.fromkeys(_hopeless({name: compared[name] for name in choices if name not in out}), ""))
        progress("trying ranges", (number + 1) / len(kept))
    return {choice: _score(found, out.get(choice)) for choice, found in compared.items()}


def _hopeless(compared: Mapping[str, Comparison]) -> list[str]:
    """Those that are so far behind that the rest of the batches cannot help."""
    decibels = {name: _decibels(found) for name, found in compared.items()}
    best = max(decibels.values(), default=0.0)
    return [name for name, each in decibels.items() if each < best - GIVE_UP_DB]


def output_tensors(model: ModelProto) -> list[str]:
    """The outputs that can be compared: sequences, maps, optionals and strings have no distance."""
    from onnx import TensorProto

    names = [
        value.name
        for value in model.graph.output
        if value.type.HasField("tensor_type") and value.type.tensor_type.elem_type != TensorProto.STRING
    ]
    if not names:
        raise StageError(
            f"none of the outputs is a tensor of numbers: {', '.join(value.name for value in model.graph.output)}; "
            "ranges cannot be compared by them",
            "name an algorithm: steps.ranges.config.algorithm=mse",
        )
    return names


def _scale_inputs(
    model: ModelProto, ranges: Ranges, options: QuantizeConfig
) -> tuple[ModelProto, Placement, dict[str, tuple[str, int]]]:
    """Q/DQ in `model`, whose activation scales are inputs and whose weights are rounded already.

    Returns:
        tuple: The model, where they are, and the name and ONNX element type of the scale of each activation.
    """
    from onnx import ModelProto, helper

    quantize.prepare(model, options.precision)
    placement = quantization.place(model, quantize.in_float(model, options), options.attention)
    if not placement.reads:
        raise StageError("the options of quantize leave nothing to quantize", "keep fewer nodes in float")
    quantize.insert(model, placement, ranges, options.precision)
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
    round_weights(model)
    # What was deleted from a protobuf message stays in memory as long as any part of it: another one holds the result.
    content = model.SerializeToString()
    del model, graph, kept
    return ModelProto.FromString(content), placement, {tensor: (name, kinds[name]) for tensor, name in scale.items()}


def round_weights(model: ModelProto) -> None:
    """Computes the Q/DQ of weights once: in each run they took a third of an OCR recognizer's time.

    Weights in external files stay as they are: rounded ones would have to be in memory, all of them.
    """
    from onnx import numpy_helper

    graph = model.graph
    weights = {tensor.name: tensor for tensor in graph.initializer if not onnx_data.is_external(tensor)}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in weights]
    makers = {node.output[0]: node for node in quantizers}
    done = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in makers]
    for node in done:
        pair = [makers[node.input[0]], node]
        rounded = _computed(model, pair, [weights[name] for name in dict.fromkeys((*pair[0].input, *node.input[1:]))])
        graph.initializer.append(numpy_helper.from_array(rounded, node.output[0]))
    dropped = {node.output[0] for node in (*done, *makers.values())}
    onnx_graph.replace_nodes(graph, [node for node in graph.node if node.output[0] not in dropped])
    used = {name for node in graph.node for name in (*node.input, *onnx_graph.captures(node))}
    used |= {value.name for value in graph.output}
    for index in reversed(range(len(graph.initializer))):
        if graph.initializer[index].name not in used:
            del graph.initializer[index]


def _computed(model: ModelProto, nodes: Sequence[NodeProto], constants: Sequence[TensorProto]) -> Array:
    """What the last of `nodes` gives, of constants alone, by the kernels that the whole model runs on."""
    from onnx import ValueInfoProto, helper

    last = nodes[-1].output[0]
    graph = helper.make_graph(nodes, "weights", [], [ValueInfoProto(name=last)], constants)
    part = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    return exact_runs.run(exact_runs.open_exact(part), [last], {}, 0)[last]


def _scale(amax: float, kind: int, precision: str) -> Array:
    from onnx import numpy_helper

    array: Array = numpy_helper.to_array(quantize.scale_of(amax, kind, "scale", precision))
    return array


def _decibels(compared: Comparison) -> float:
    ratio = max((found.noise_ratio for found in compared.outputs.values()), default=inf)
    return inf if ratio == 0 else -inf if ratio == inf else round(-10 * log10(ratio), 2)


def _score(compared: Comparison, out: str | None) -> Score:
    if out:
        return Score(-inf, None, out, compared.samples)
    accuracy: Any = compared.accuracy.result()["candidate"] if compared.accuracy else None
    return Score(_decibels(compared), accuracy, None, compared.samples, finished=out is None)
