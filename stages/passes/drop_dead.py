"""Nodes and initializers that no output depends on go."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages import onnx_graph
from stages.passes.contract import NoOptions, Pass
from stages.stage import Metrics

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto


def drop_dead(model: ModelProto, options: NoOptions) -> Metrics:
    """Drops them, in subgraphs too."""
    nodes, initializers = drop(model.graph)
    return {"dropped": nodes, "initializers_dropped": initializers}


def drop(graph: GraphProto) -> tuple[int, int]:
    """Drops what no output of `graph` depends on, and says how many nodes and initializers that were."""
    needed, dead, unused = {value.name for value in graph.output}, 0, 0
    alive = []
    for node in reversed(graph.node):
        if not needed.intersection(filter(None, node.output)):
            dead += 1
            continue
        for inner in onnx_graph.subgraphs(node):  # what goes there is not needed here either
            nodes, initializers = drop(inner)
            dead, unused = dead + nodes, unused + initializers
        alive.append(node)
        needed |= onnx_graph.reads(node)
    if len(alive) < len(graph.node):
        onnx_graph.replace_nodes(graph, reversed(alive))
    return dead, unused + onnx_graph.drop_initializers(graph, {t.name for t in graph.initializer} - needed)


PASS = Pass("drop_dead", NoOptions, drop_dead)
