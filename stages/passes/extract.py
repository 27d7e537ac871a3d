"""A part of the model, cut out by the names of its tensors: the rest goes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages import onnx_graph, onnx_shapes
from stages.passes.contract import Pass
from stages.passes.drop_dead import drop
from stages.stage import Metrics, StageError

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class Options:
    """Where to cut.

    Attributes:
        outputs: The tensors that the part gives, in order; empty: the model's outputs.
        inputs: The tensors that it is given, in order; empty: those of the model's inputs that it needs.
    """

    outputs: list[str] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)


def extract(model: ModelProto, options: Options) -> Metrics:
    """Keeps what lies between the inputs and the outputs.

    Raises:
        StageError: There is no such tensor, or the outputs also depend on an input of the model that is not listed.
    """
    graph = model.graph
    known = {value.name for value in graph.input} | {name for node in graph.node for name in node.output if name}
    for key, listed in (("outputs", options.outputs), ("inputs", options.inputs)):
        for name in listed:
            onnx_graph.require_known(name, known, f"extract.{key}", "tensor")
    types = onnx_shapes.known_types(model)
    old = {value.name: value for value in (*graph.input, *graph.output)}
    described = {name: old.get(name) or onnx_shapes.value_info(name, types.get(name)) for name in known}
    outputs = [described[name] for name in options.outputs] or list(graph.output)
    inputs = [described[name] for name in options.inputs]
    for node in graph.node:  # what is given need not be made
        node.output[:] = ["" if result in options.inputs else result for result in node.output]
    onnx_graph.replace_values(graph.output, outputs)
    drop(graph)
    needed = {name for node in graph.node for name in onnx_graph.reads(node)} | {value.name for value in outputs}
    rest = [value for value in graph.input if value.name in needed and value.name not in options.inputs]
    if rest and inputs:
        names = ", ".join(value.name for value in rest)
        raise StageError(
            f"extract: the outputs also depend on the model's inputs {names}, which inputs does not list",
            "list them in extract.inputs, or cut further down",
        )
    onnx_graph.replace_values(graph.input, inputs or rest)
    onnx_graph.drop_stale_values(graph)
    return {"inputs": [value.name for value in graph.input], "outputs": [value.name for value in graph.output]}


PASS = Pass("extract", Options, extract, keeps_results=False)
