"""Nodes that compute the same from the same become one (common subexpressions)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages import onnx_graph
from stages.folding import KNOWN_DOMAINS, RANDOM
from stages.passes.contract import NoOptions, Pass
from stages.stage import Metrics

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


def merge_equal(model: ModelProto, options: NoOptions) -> Metrics:
    """Keeps the first of each, in one pass over the sorted graph; what makes an output of the model stays."""
    graph = model.graph
    returned = {value.name for value in graph.output}
    hidden = onnx_graph.inner_names(graph)
    first: dict[object, NodeProto] = {}
    new_name: dict[str, str] = {}
    kept = []
    for node in graph.node:
        onnx_graph.rename_reads([node], new_name)
        other = first.setdefault(_what(node), node) if _is_pure(node) else node
        names = dict(zip(node.output, other.output, strict=True)) if other is not node else {}
        if not names or set(names) & returned or (set(names) | set(names.values())) & hidden:
            kept.append(node)
        else:
            new_name.update(names)
    merged = len(graph.node) - len(kept)
    if merged:
        onnx_graph.replace_nodes(graph, kept)
        onnx_graph.drop_stale_values(graph)
    return {"merged": merged}


def _is_pure(node: NodeProto) -> bool:
    known = node.domain in KNOWN_DOMAINS and node.op_type not in RANDOM and not any(onnx_graph.subgraphs(node))
    return known and not (node.op_type == "Dropout" and len(node.input) > 2)


def _what(node: NodeProto) -> object:
    """All but the names: nodes with the same of these give the same."""
    attributes = sorted((attribute.name, attribute.SerializeToString()) for attribute in node.attribute)
    return node.domain, node.op_type, tuple(node.input), tuple(map(bool, node.output)), tuple(attributes)


PASS = Pass("merge_equal", NoOptions, merge_equal)
