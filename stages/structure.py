"""A model's structure: its graph in one canonical form, with every initializer named, typed and shaped.

Two models have one structure where they differ only in the values of their weights, in the order in which nodes and
initializers are listed, in the names of intermediate tensors, in doc strings, metadata and who exported them, and in
what no output depends on. Everything else is structure: attributes, shapes, types, edges, operators and opsets, the
names of inputs, outputs, initializers and nodes, and values that are no weights.

*Weights* are the float initializers that a plan reads as numbers. Integers are none: they are shapes, axes, indices and
codes. Nor are floats that TensorRT's parser makes settings of a layer of (the scales of a Resize, the limits of a
Clip), nor those that a shape is computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING

from stages import onnx_data, onnx_file, onnx_graph

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

WEIGHT_TYPES = ("FLOAT", "FLOAT16", "BFLOAT16", "DOUBLE")

STEERING: Mapping[str, int] = {
    "AffineGrid": 1,
    "CenterCropPad": 1,
    "Clip": 1,
    "Col2Im": 1,
    "ConstantOfShape": 0,
    "CumSum": 1,
    "Dropout": 1,
    "Expand": 1,
    "If": 0,
    "Loop": 0,
    "MaxUnpool": 2,
    "NonMaxSuppression": 2,
    "OneHot": 1,
    "Pad": 1,
    "Range": 0,
    "ReduceL1": 1,
    "ReduceL2": 1,
    "ReduceLogSum": 1,
    "ReduceLogSumExp": 1,
    "ReduceMax": 1,
    "ReduceMean": 1,
    "ReduceMin": 1,
    "ReduceProd": 1,
    "ReduceSum": 1,
    "ReduceSumSquare": 1,
    "Reshape": 1,
    "Resize": 1,
    "STFT": 1,
    "Slice": 1,
    "Split": 1,
    "Squeeze": 1,
    "Tile": 1,
    "TopK": 1,
    "Trilu": 1,
    "Unsqueeze": 1,
    "Upsample": 1,
}
"""The first input of each operator whose value, like that of all after it, decides what the layer is."""

_SHAPES = ("Shape", "Size")
"""What they give depends on no value."""

_GRAPH_NAME = "structure"


def split(
    model: ModelProto, choose: Callable[[set[str]], Collection[str]] = lambda names: names
) -> tuple[ModelProto, list[TensorProto]]:
    """The structure of `model`, in canonical form, and its weights.

    Nodes stand in the order in which a walk from the outputs, inputs first, is done with them: that order is the same
    for every listing of one graph. What no output depends on is left out.

    Args:
        model: As `onnx_file.read` gives it; it stays as it is.
        choose: Says which of its weights, by name, are taken out; the others stay in the structure, with their values.
    """
    shell = onnx_file.without_initializers(model)
    onnx_file.strip_provenance(shell)
    for name in ("producer_name", "producer_version", "domain", "model_version", "training_info"):
        shell.ClearField(name)
    graph = shell.graph
    graph.name = _GRAPH_NAME
    for name in ("value_info", "quantization_annotation"):
        graph.ClearField(name)
    shell.opset_import.sort(key=lambda opset: opset.domain)
    for node in onnx_file.iter_nodes(shell):
        node.attribute.sort(key=lambda attribute: attribute.name)
    onnx_graph.replace_nodes(graph, _in_order(graph))
    read = {value.name for value in graph.output}.union(*map(onnx_graph.reads, graph.node))
    _rename(graph, {tensor.name for tensor in model.graph.initializer})
    kept = sorted((t for t in model.graph.initializer if t.name in read), key=lambda tensor: tensor.name)
    graph.initializer.extend(onnx_data.described(tensor) for tensor in kept)
    taken = choose(weights(shell))
    del graph.initializer[:]
    graph.initializer.extend(_plain(tensor, with_values=tensor.name not in taken) for tensor in kept)
    return shell, [tensor for tensor in kept if tensor.name in taken]


def weights(model: ModelProto) -> set[str]:
    """The names of the initializers that are weights."""
    import onnx

    graph = model.graph
    types = {onnx.TensorProto.DataType.Value(name) for name in WEIGHT_TYPES}
    steering = _steering(graph) | onnx_graph.captured(graph)
    return {
        tensor.name
        for tensor in graph.initializer
        if tensor.data_type in types and tensor.name not in steering and onnx_data.nbytes(tensor)
    }


def empty(model: ModelProto) -> list[TensorProto]:
    """The initializers without values: the weights of a structure."""
    return [tensor for tensor in model.graph.initializer if not has_values(tensor) and onnx_data.nbytes(tensor)]


def has_values(tensor: TensorProto) -> bool:
    """Whether the values of `tensor` are there, in the model or in a file of its own."""
    return onnx_data.is_external(tensor) or any(
        field.name == "raw_data" or field.name.endswith("_data") for field, _ in tensor.ListFields()
    )


def _plain(tensor: TensorProto, with_values: bool) -> TensorProto:
    """A copy without what is noted about it, its values written in one way; external ones stay where they are."""
    from onnx import TensorProto

    copy = onnx_data.described(tensor)
    copy.ClearField("doc_string")
    copy.ClearField("metadata_props")
    if not with_values:
        return copy
    if onnx_data.is_external(tensor):
        at = onnx_data.place(tensor)
        onnx_data.put(copy, str(at.path), at.offset, at.length)
    elif tensor.data_type == TensorProto.STRING:
        copy.string_data.extend(tensor.string_data)
    elif has_values(tensor):
        copy.raw_data = onnx_data.packed(tensor)
    return copy


def _in_order(graph: GraphProto) -> list[NodeProto]:
    makers = onnx_graph.producers(graph)
    done: set[int] = set()
    ordered: list[NodeProto] = []
    # A stack of our own: a chain of nodes can be longer than Python's.
    for value in graph.output:
        stack: list[tuple[NodeProto, Iterator[str]]] = []
        _open(makers.get(value.name), done, stack)
        while stack:
            node, names = stack[-1]
            name = next(names, None)
            if name is None:
                stack.pop()
                ordered.append(node)
            else:
                _open(makers.get(name), done, stack)
    return ordered


def _open(node: NodeProto | None, done: set[int], stack: list[tuple[NodeProto, Iterator[str]]]) -> None:
    if node is not None and id(node) not in done:
        done.add(id(node))
        stack.append((node, iter([*node.input, *sorted(onnx_graph.captures(node))])))


def _rename(graph: GraphProto, initializers: Collection[str]) -> None:
    """Gives the tensors between nodes names that say only where they come from."""
    fixed = {value.name for value in (*graph.input, *graph.output)} | {*initializers} | onnx_graph.captured(graph)
    fixed |= onnx_graph.inner_names(graph)
    found: dict[str, str] = {}
    for number, node in enumerate(graph.node):
        for index, name in enumerate(node.output):
            if name and name not in fixed:
                found[name] = onnx_graph.fresh(f"t{number}_{index}", fixed)
    for node in graph.node:
        node.input[:] = [found.get(name, name) for name in node.input]
        node.output[:] = [found.get(name, name) for name in node.output]


def _steering(graph: GraphProto) -> set[str]:
    """The tensors whose values decide what a layer is, and those that these are computed from.

    The walk ends where values come from the model's inputs: what is computed from these is data.
    """
    data = {value.name for value in graph.input} - {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in _SHAPES and not data.isdisjoint(onnx_graph.reads(node)):
            data.update(node.output)
    found: set[str] = set()
    for node in reversed(graph.node):
        first = STEERING.get(node.op_type) if node.domain in ("", "ai.onnx") else 0
        if first is not None:
            found.update(node.input[first:])
        if node.op_type not in _SHAPES and not found.isdisjoint(set(node.output) - data):
            found.update(node.input)
    return found
