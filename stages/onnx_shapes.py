"""Types and shapes of an ONNX model's tensors, inferred without carrying its weights around."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from stages import onnx_data, onnx_file, onnx_graph
from stages.wording import first_line

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, TensorProto, TypeProto, ValueInfoProto

HEAVY_BYTES = 1024
"""Initializers above this are weights: no shape is computed from them, so shape inference need not see them."""


ONNX_DOMAINS = ("", "ai.onnx")


def infer(model: ModelProto, *, strict: bool = False) -> ModelProto:
    """The graph of `model` without its heavy initializers, with the types and shapes that follow from the inputs alone.

    What the model declares for tensors between inputs and outputs is not trusted (TensorRT's parser does not either,
    and a wrong declaration would turn into a wrong constant), except for the results of operators that ONNX does not
    know. Dimensions that nothing is known about get names such as `unk__0`.

    Operators of a domain that the model does not import are unknown ones, not errors: what does not know them leaves
    them alone, and the builder says what is wrong. A dimension of -1 or `?` is one without a size and a name.

    Args:
        model: Any model; unchanged.
        strict: Raise at the first node whose inference fails. If not, only what follows from it stays unknown.

    Raises:
        Exception: Whatever `onnx.shape_inference` raises; the message is for people.
    """
    from onnx import shape_inference

    light = lighten(model)
    _distrust(light.graph)
    for node in onnx_file.walk(light.graph.node):
        for graph in onnx_graph.subgraphs(node):
            _distrust(graph)
            if node.domain in ONNX_DOMAINS:  # what goes into a body follows from what goes into the node
                _forget_shapes(graph.input)
    return shape_inference.infer_shapes(light, strict_mode=strict, data_prop=True)


def infer_what_can_be(model: ModelProto) -> tuple[ModelProto | None, str]:
    """`infer`, and what it complained about: where one node fails, the others still have shapes."""
    problem = ""
    for strict in (True, False):
        try:
            return infer(model, strict=strict), problem
        except Exception as error:  # C++ raises InferenceError, RuntimeError and others
            problem = problem or first_line(error)
    return None, problem


def _distrust(graph: GraphProto) -> None:
    """Removes from one graph the shapes that are to be inferred, and dimensions that are none."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if onnx_file.dimension(dim) is None:
                dim.Clear()
    known = {name for node in graph.node if node.domain in ONNX_DOMAINS for name in node.output}
    declared = [value for value in graph.value_info if value.name not in known]
    del graph.value_info[:]
    graph.value_info.extend(declared)
    _forget_shapes(value for value in graph.output if value.name in known)


def _forget_shapes(values: Iterable[ValueInfoProto]) -> None:
    for value in values:
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")


def lighten(model: ModelProto) -> ModelProto:
    """A copy of `model` in which each initializer above 1 KiB is an input instead, without its values.

    It imports every domain that its operators stand in: ONNX's inference, converter and checker refuse others.
    """
    from onnx import GraphProto, ModelProto, helper

    source, graph = model.graph, GraphProto(name=model.graph.name or "graph")
    graph.node.extend(source.node)
    graph.input.extend(source.input)
    graph.output.extend(source.output)
    graph.value_info.extend(source.value_info)
    graph.sparse_initializer.extend(source.sparse_initializer)
    listed = {value.name for value in source.input}
    for tensor in source.initializer:
        if is_light(tensor):
            graph.initializer.append(tensor)
        elif tensor.name not in listed:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    light = ModelProto(
        ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions, graph=graph
    )
    for body, nodes in ((light, light.graph.node), *((each, each.node) for each in light.functions)):
        imported = {"", "ai.onnx", *(entry.domain for entry in body.opset_import)}
        for domain in sorted({node.domain for node in onnx_file.walk(nodes)} - imported):
            body.opset_import.add(domain=domain, version=1)
    return light


def is_light(tensor: TensorProto) -> bool:
    """Whether the tensor is small, and its values are in the model, so that shapes may be computed from it."""
    return not onnx_data.is_external(tensor) and bool(tensor.ByteSize() <= HEAVY_BYTES)


def known_types(model: ModelProto) -> dict[str, TypeProto]:
    """The type of every tensor of any `model`, as far as it can be inferred."""
    inferred, _ = infer_what_can_be(model)
    return graph_types(inferred.graph if inferred is not None else model.graph)


def value_info(name: str, type_: TypeProto | None) -> ValueInfoProto:
    """A description of the tensor `name`; of no type where that is not known."""
    from onnx import ValueInfoProto

    return ValueInfoProto(name=name, type=type_)


def tensor_types(inferred: ModelProto) -> dict[str, TypeProto]:
    """The type of every tensor of a model that `infer` returned, weights included, as far as it is known."""
    return graph_types(inferred.graph)


def graph_types(graph: GraphProto) -> dict[str, TypeProto]:
    """The type of every tensor of one graph of such a model; what is inside its subgraphs is not among them."""
    from onnx import helper

    found = {t.name: helper.make_tensor_type_proto(t.data_type, list(t.dims)) for t in graph.initializer}
    for value in (*graph.value_info, *graph.output, *graph.input):
        found[value.name] = value.type
    return found
