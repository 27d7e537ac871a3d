"""Types and shapes of an ONNX model's tensors, inferred without carrying its weights around."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages import onnx_file

if TYPE_CHECKING:
    from onnx import ModelProto, TypeProto

HEAVY_BYTES = 1024
"""Initializers above this are weights: no shape is computed from them, so shape inference need not see them."""


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
    for value in (*light.graph.input, *light.graph.output, *light.graph.value_info):
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if onnx_file.dimension(dim) is None:
                dim.Clear()
    known = {name for node in light.graph.node if node.domain in ("", "ai.onnx") for name in node.output}
    declared = [value for value in light.graph.value_info if value.name not in known]
    del light.graph.value_info[:]
    light.graph.value_info.extend(declared)
    for value in light.graph.output:
        if value.name in known and value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    return shape_inference.infer_shapes(light, strict_mode=strict, data_prop=True)


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
        if tensor.ByteSize() <= HEAVY_BYTES:
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


def tensor_types(inferred: ModelProto) -> dict[str, TypeProto]:
    """The type of every tensor of a model that `infer` returned, weights included, as far as it is known."""
    from onnx import helper

    graph = inferred.graph
    found = {t.name: helper.make_tensor_type_proto(t.data_type, list(t.dims)) for t in graph.initializer}
    for value in (*graph.value_info, *graph.output, *graph.input):
        found[value.name] = value.type
    return found
