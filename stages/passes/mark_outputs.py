"""Tensors inside of the model become outputs as well, to look at them while debugging."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import onnx_graph, onnx_shapes
from stages.passes.contract import Pass
from stages.stage import Metrics

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Options:
    """Which tensors.

    Attributes:
        tensors: Their names, or glob patterns of them: `[/layer1/*]`.
    """

    tensors: list[str]


def mark_outputs(model: ModelProto, options: Options) -> Metrics:
    """Adds the tensors to the outputs, after those that there are, in the order of the nodes.

    Raises:
        StageError: A pattern matches no tensor that a node makes.
    """
    graph = model.graph
    made = [name for node in graph.node for name in node.output if name]
    wanted = onnx_graph.matching_names(made, options.tensors, "mark_outputs.tensors", "tensor")
    wanted -= {value.name for value in graph.output}
    marked = [name for name in made if name in wanted]
    types = onnx_shapes.known_types(model)
    for name in marked:
        graph.output.append(onnx_shapes.value_info(name, types.get(name)))
    return {"marked": marked}


PASS = Pass("mark_outputs", Options, mark_outputs)
