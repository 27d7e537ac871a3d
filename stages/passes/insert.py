"""A node, or a few, on a tensor: whoever read the tensor reads what the new node gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import onnx_graph, written_nodes
from stages.passes.contract import Pass
from stages.stage import Metrics, StageError

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Options:
    """What to insert, and where.

    Attributes:
        tensor: The tensor that the first node reads as `x`.
        nodes: The nodes in ONNX's text form, one a line; the last gives `y`: `y = acme.Probe<level = 2>(x)`. Other
            names that no line gives are tensors of the model.
    """

    tensor: str
    nodes: str

    def __post_init__(self) -> None:
        written_nodes.require_nodes(self.nodes, "nodes")


def insert(model: ModelProto, options: Options) -> Metrics:
    """Inserts them. On an output of the model, what they give becomes the output.

    Raises:
        StageError: There is no such tensor, or the nodes cannot be read or do not lead from `x` to `y`.
    """
    graph = model.graph
    nodes = written_nodes.parse(options.nodes, "insert.nodes")
    given = {name for node in nodes for name in node.output if name}
    if "y" not in given or not any("x" in node.input for node in nodes):
        raise StageError(f"insert.nodes: {options.nodes!r} does not lead from x to y", "read x, and call the result y")
    own = onnx_graph.own_names(graph)
    onnx_graph.require_known(options.tensor, own, "insert.tensor", "tensor")
    for name in {name for node in nodes for name in node.input if name} - given - {"x"}:
        onnx_graph.require_known(name, own, "insert.nodes", "tensor")
    taken = onnx_graph.names(graph)
    called = {name: onnx_graph.fresh(f"{options.tensor}_{name}", taken) for name in sorted(given)}
    called["x"] = options.tensor
    if any(value.name == options.tensor for value in graph.output):
        called["x"] = onnx_graph.fresh(f"{options.tensor}_before", taken)
        onnx_graph.set_aside(graph, options.tensor, called["x"])
        called["y"] = options.tensor
    onnx_graph.rename_reads(graph.node, {called["x"]: called["y"]})
    onnx_graph.rename_reads(nodes, called)
    for node in nodes:
        node.output[:] = [called[name] if name else "" for name in node.output]
        node.name = node.name or node.output[0]
    written_nodes.import_domains(model, nodes)
    graph.node.extend(nodes)
    onnx_graph.sort(graph)
    return {"inserted": [onnx_graph.label(node) for node in nodes]}


PASS = Pass("insert", Options, insert, keeps_results=False)
