"""What differs between two structures, in words: which node, which of its attributes or edges, which initializer."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import onnx_data, onnx_file, onnx_graph
from stages.structure import has_values

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto

_MOST_VALUES = 8
"""So many values of a tensor fit a line; of more, a digest tells that they differ."""

_DIGITS = 12
"""Of a digest that only people read."""

_OPERATOR = "operator"


def between(before: Sequence[Path], after: Sequence[Path]) -> list[str]:
    """`changes` of the structures in these files, each with its data file where it has one.

    Raises:
        StageError: One cannot be read.
    """
    return changes(onnx_file.read(before), onnx_file.read(after))


def changes(before: ModelProto, after: ModelProto) -> list[str]:
    """What differs between two structures in canonical form, one line each; empty where they are the same.

    Nodes are compared with those of the same name; those without, in the order in which they stand.
    """
    told = [*_of_opsets(before, after), *_of_nodes(before.graph, after.graph), *_of_values(before.graph, after.graph)]
    if not told and before.SerializeToString(deterministic=True) != after.SerializeToString(deterministic=True):
        told.append("nodes without names, functions, or values of integers differ")
    return told


def _of_nodes(before: GraphProto, after: GraphProto) -> list[str]:
    old, new = _named(before), _named(after)
    told = _of_each(
        "node", {name: one[_OPERATOR] for name, one in old.items()}, {n: o[_OPERATOR] for n, o in new.items()}
    )
    for name in sorted(old.keys() & new.keys()):
        for key in {**old[name], **new[name]}:
            one, other = old[name].get(key), new[name].get(key)
            if key != _OPERATOR and one != other:
                told.append(f"node {name}: {key} {one} -> {other}")
    return told


def _of_values(before: GraphProto, after: GraphProto) -> list[str]:
    told: list[str] = []
    for what in ("input", "output", "initializer"):
        one, other = ({each.name: _spelled(each) for each in getattr(graph, what)} for graph in (before, after))
        told += _of_each(what, one, other)
        if one == other and list(one) != list(other):
            told.append(f"{what}s: {', '.join(one)} -> {', '.join(other)}")
    return told


def _of_opsets(before: ModelProto, after: ModelProto) -> list[str]:
    one, other = ({each.domain: each.version for each in model.opset_import} for model in (before, after))
    told = [
        f"opset{f' of {domain}' if domain else ''} {one.get(domain)} -> {other.get(domain)}"
        for domain in sorted({*one, *other})
        if one.get(domain) != other.get(domain)
    ]
    if before.ir_version != after.ir_version:
        told.append(f"IR version {before.ir_version} -> {after.ir_version}")
    return told


def _of_each(what: str, before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    told = [f"{what} {name}: gone ({before[name]})" for name in sorted(before.keys() - after.keys())]
    told += [f"{what} {name}: new ({after[name]})" for name in sorted(after.keys() - before.keys())]
    both = sorted(before.keys() & after.keys())
    return told + [f"{what} {name}: {before[name]} -> {after[name]}" for name in both if before[name] != after[name]]


def _spelled(value: Any) -> str:
    """Type and shape of an input, an output or an initializer, and the values of a small one that is no weight."""
    from onnx import TensorProto

    if isinstance(value, TensorProto):
        kind = f"{TensorProto.DataType.Name(value.data_type).lower()} {list(value.dims)}"
        return f"{kind} {_content(value)}" if has_values(value) else kind
    tensor = value.type.tensor_type
    dims = [onnx_file.dimension(dim) for dim in tensor.shape.dim]
    return f"{TensorProto.DataType.Name(tensor.elem_type).lower()} [{', '.join(map(str, dims))}]"


def _content(tensor: TensorProto) -> str:
    values = onnx_data.array(tensor)
    if values.size <= _MOST_VALUES:
        return str(values.tolist())
    return f"of content {hashlib.sha256(values.tobytes()).hexdigest()[:_DIGITS]}"


def _named(graph: GraphProto) -> dict[str, dict[str, Any]]:
    """Every node by what people call it: its operator, attributes and edges."""
    nodes, makers = list(graph.node), onnx_graph.producers(graph)  # kept: they go by their identity
    counted: Counter[str] = Counter()
    labels: dict[int, str] = {}
    for node in nodes:
        label = node.name or f"{node.op_type} without a name"
        counted[label] += 1
        labels[id(node)] = label if counted[label] == 1 else f"{label} ({counted[label]})"

    def source(name: str) -> str:
        maker = makers.get(name)
        if maker is None:
            return name
        index = list(maker.output).index(name)
        return labels[id(maker)] + (f" (output {index})" if index else "")

    found: dict[str, dict[str, Any]] = {}
    outputs = {value.name for value in graph.output}
    for node in nodes:
        about: dict[str, Any] = {_OPERATOR: f"{node.domain}::{node.op_type}" if node.domain else node.op_type}
        about["reads"] = [source(name) for name in node.input]
        about["gives"] = [name if name in outputs else bool(name) for name in node.output]
        for attribute in node.attribute:
            about[f"attribute {attribute.name}"] = _attribute(attribute)
        found[labels[id(node)]] = about
    return found


def _attribute(attribute: Any) -> Any:
    from onnx import AttributeProto, helper

    if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
        return f"subgraph {hashlib.sha256(attribute.SerializeToString(deterministic=True)).hexdigest()[:_DIGITS]}"
    if attribute.type == AttributeProto.TENSOR:
        return _spelled(attribute.t)
    value = helper.get_attribute_value(attribute)
    return value.decode(errors="replace") if isinstance(value, bytes) else value
