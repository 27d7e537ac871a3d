"""Identity nodes, chains of them, and Dropout outside of training go; inputs and outputs keep their names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages import onnx_graph
from stages.onnx_opset import opset
from stages.passes.contract import NoOptions, Pass
from stages.stage import Metrics

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto


def drop_identities(model: ModelProto, options: NoOptions) -> Metrics:
    """Drops them, in subgraphs too."""
    return {"dropped": _drop(model.graph, opset(model))}


def _drop(graph: GraphProto, version: int) -> int:
    dropped = sum(_drop(inner, version) for node in graph.node for inner in onnx_graph.subgraphs(node))
    aliases = [node for node in graph.node if _is_alias(node, version)]
    if not aliases:
        return dropped
    returned = {value.name for value in graph.output}
    made = {name for node in graph.node for name in node.output} - returned
    # A subgraph may have a tensor of its own of the name that it would read from here.
    hidden = onnx_graph.inner_names(graph)
    new_name: dict[str, str] = {}
    gone = set()
    for node in aliases:
        source, result = _follow(node.input[0], new_name), node.output[0]
        if source in hidden or result in hidden:
            continue
        if result not in returned:
            new_name[result] = source
        elif source in made:  # the maker of the source shall make the output itself
            new_name[source] = result
            made.discard(source)
        else:
            continue
        gone.add(result)
    kept = [node for node in graph.node if not (_is_alias(node, version) and node.output[0] in gone)]
    final = {name: _follow(name, new_name) for name in new_name}
    onnx_graph.rename_reads(kept, final)
    for node in kept:
        node.output[:] = [final.get(name, name) for name in node.output]
    onnx_graph.replace_nodes(graph, kept)
    return dropped + len(gone)


def _follow(name: str, new_name: dict[str, str]) -> str:
    while name in new_name:
        name = new_name[name]
    return name


def _is_alias(node: NodeProto, version: int) -> bool:
    if node.domain not in ("", "ai.onnx") or not node.input or not node.output[0]:
        return False
    idle = node.op_type == "Dropout" and version >= 7 and len(node.input) < 3 and not any(node.output[1:])
    return node.op_type == "Identity" or idle


PASS = Pass("drop_identities", NoOptions, drop_identities)
