"""Inputs, outputs, tensors inside and nodes get other names."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages import onnx_graph
from stages.passes.contract import Pass
from stages.stage import Metrics, StageError

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Options:
    """What is called otherwise.

    Attributes:
        tensors: New names of tensors by the old ones, inputs and outputs among them.
        nodes: New names of nodes by the old ones.
    """

    tensors: dict[str, str] = field(default_factory=dict)
    nodes: dict[str, str] = field(default_factory=dict)


def rename(model: ModelProto, options: Options) -> Metrics:
    """Renames them all at once: two tensors may change places.

    Raises:
        StageError: There is none of the old name, or the new one is taken.
    """
    graph = model.graph
    own = onnx_graph.own_names(graph)
    _check(options.tensors, own, onnx_graph.names(graph), "tensor")
    node_names = {node.name for node in graph.node if node.name}
    _check(options.nodes, node_names, node_names, "node")
    onnx_graph.rename_reads(graph.node, options.tensors)
    for node in graph.node:
        node.output[:] = [options.tensors.get(name, name) for name in node.output]
        node.name = options.nodes.get(node.name, node.name)
    for value in (*graph.input, *graph.output, *graph.initializer, *graph.value_info):
        value.name = options.tensors.get(value.name, value.name)
    for sparse in graph.sparse_initializer:
        sparse.values.name = options.tensors.get(sparse.values.name, sparse.values.name)
    return {"renamed": len(options.tensors) + len(options.nodes)}


def _check(wanted: dict[str, str], known: set[str], taken: set[str], what: str) -> None:
    for old in wanted:
        onnx_graph.require_known(old, known, f"rename.{what}s", what)
    kept = taken - wanted.keys()
    news = list(wanted.values())
    for old, new in wanted.items():
        if not new or new in kept or news.count(new) > 1:
            raise StageError(
                f"rename.{what}s: {old!r} cannot be called {new!r}: the model has a {what} of that name",
                "choose a name that is free",
            )


PASS = Pass("rename", Options, rename)
