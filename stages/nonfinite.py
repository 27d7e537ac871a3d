"""Where NaN and infinities come from: the first node of a model, in the order of its graph, whose output is not finite.

They need not stay: a Softmax or a Clip behind an infinity gives finite numbers again, so that no bisection would find
the first. The model is run with some of its tensors as outputs at a time instead, from the front, until one is not
finite; so many tensors of one sample are what is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stages import batches, onnx_file, onnx_graph, onnx_shapes
from stages.metrics import is_float
from stages.runtimes import open_model
from stages.stage import StageError

if TYPE_CHECKING:
    from pathlib import Path

    from onnx import ModelProto, NodeProto

    from stages.batches import Batch

AT_ONCE = 32
"""Tensors looked at in one run: a ResNet-50 takes four runs."""


def origin(paths: Sequence[Path], batch: Batch, row: int | None) -> str:
    """In words, where values that are not finite first appear while the model runs on `batch`.

    Args:
        paths: The ONNX file, and its data where it has any.
        batch: What the model was fed.
        row: The sample that they were seen in; None where the output has no samples.
    """
    if wrong := next((name for name, values in batch.items() if _first_wrong(values) is not None), None):
        return f"the input {wrong!r} already holds {_first_wrong(batch[wrong])}"
    model = onnx_file.read(paths)
    onnx_graph.sort(model.graph)
    for feed in _smallest_first(batch, row):
        try:
            if found := _search(model, feed):
                return found
        except StageError as error:
            why = error.what  # of a fixed batch one sample alone is refused
        else:
            why = "run once more, every tensor is finite"
    return f"the node that it comes from was not found: {why}"


def _smallest_first(batch: Batch, row: int | None) -> Iterator[Batch]:
    if row is not None and row < batches.size(batch) > 1:
        yield batches.cut(batch, row, row + 1)
    yield batch


def _search(model: ModelProto, feed: Batch) -> str:
    for nodes in _some_at_a_time(model):
        wanted = {name: node for node in nodes for name in node.output if name}
        given = open_model(_with_outputs(model, list(wanted))).run(feed)
        for name, node in wanted.items():
            if (value := _first_wrong(given[name])) is not None:
                return (
                    f"it first appears in {node.op_type} {onnx_graph.label(node)!r}, whose output {name!r} has {value}"
                )
    return ""


def _some_at_a_time(model: ModelProto) -> Iterator[list[NodeProto]]:
    from onnx import TensorProto

    floats = {getattr(TensorProto, name) for name in ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")}
    types = onnx_shapes.known_types(model)
    nodes = [
        node
        for node in model.graph.node
        if any(name and (name not in types or types[name].tensor_type.elem_type in floats) for name in node.output)
    ]
    for start in range(0, len(nodes), AT_ONCE):
        yield nodes[start : start + AT_ONCE]


def _with_outputs(model: ModelProto, names: Sequence[str]) -> ModelProto:
    from onnx import ValueInfoProto

    del model.graph.output[:]
    model.graph.output.extend([ValueInfoProto(name=name) for name in names])
    return model


def _first_wrong(values: Any) -> float | None:
    """The first value that is not finite; None where all are, or where these are no floats."""
    import numpy as np

    if not hasattr(values, "dtype") or not is_float(values):
        return None
    flat = values.reshape(-1).astype(np.float64)
    bad = ~np.isfinite(flat)
    return float(flat[bad.argmax()]) if bad.any() else None
