"""How many multiply-accumulates the convolutions and matrix products of an ONNX model take, at given input shapes.

One multiply-accumulate (MAC) is a multiplication and an addition, two FLOPs:

============= ===========================================================================
Conv          elements of the output x (C / groups) x elements of the kernel
ConvTranspose elements of the input x (M / groups) x elements of the kernel
Gemm, MatMul  elements of the output x K
============= ===========================================================================

Others (Einsum, LSTM, a whole Attention) are not counted, nor is what lies inside `If`, `Loop` and `Scan`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING

from stages import folding, onnx_shapes
from stages.folding import Folding
from stages.placement.weighted import is_weighted
from stages.profiles import Profile

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TypeProto

_ROUNDS = 8
"""Each makes more shapes known, which a later one computes with; models have needed 2."""

_MOST_BYTES = 1 << 20
"""Shapes, positions and masks are smaller; weights are not among the constants."""


def plan_name(node: NodeProto) -> str:
    """What a plan calls `node`: by its name, or for an unnamed one after its first output."""
    return node.name or f"node_of_{node.output[0]}"


def macs(model: ModelProto, profile: Profile | None) -> dict[str, int | None]:
    """The multiply-accumulates of each convolution and matrix product, by the names that a plan gives them.

    Args:
        model: Any model; unchanged.
        profile: Whose `opt` the dynamic inputs have; None: the shapes are those that the model declares.

    Returns:
        None for one whose shapes cannot be inferred.
    """
    light = _at_opt(model, profile)
    found = _counted(model, onnx_shapes.known_types(light))
    return _counted(model, _computed_types(light)) if None in found.values() else found


def _counted(model: ModelProto, types: Mapping[str, TypeProto]) -> dict[str, int | None]:
    return {plan_name(node): _of(node, types) for node in model.graph.node if is_weighted(node)}


def _computed_types(light: ModelProto) -> dict[str, TypeProto]:
    """The types of all tensors where shapes are computed in the graph: what they are computed from is constant here.

    Inference alone follows `Shape` through few operators (no Range, no Reshape to a Concat of sizes). It changes
    `light`.
    """
    for _ in range(_ROUNDS):
        inferred, _ = onnx_shapes.infer_what_can_be(light)
        if not folding.fold(light, inferred, Folding(_MOST_BYTES, _MOST_BYTES)):
            break
        # What a model declares of a tensor would be believed over the constant that it has become.
        constant = {tensor.name for tensor in light.graph.initializer}
        declared = [value for value in light.graph.value_info if value.name not in constant]
        del light.graph.value_info[:]
        light.graph.value_info.extend(declared)
    return onnx_shapes.known_types(light)


def _at_opt(model: ModelProto, profile: Profile | None) -> ModelProto:
    """`model` without its weights, its dynamic inputs at the profile's `opt`, shape tensors as constants."""
    from onnx import helper

    light = onnx_shapes.lighten(model)
    for name, found in profile.ranges.items() if profile else ():
        value = next((each for each in light.graph.input if each.name == name), None)
        if value is None:
            continue
        tensor = value.type.tensor_type
        if found.values:
            dims = [dim.dim_value for dim in tensor.shape.dim]
            light.graph.initializer.append(helper.make_tensor(name, tensor.elem_type, dims, found.opt))
            light.graph.input.remove(value)
        else:
            value.CopyFrom(helper.make_tensor_value_info(name, tensor.elem_type, found.opt))
    return light


def _of(node: NodeProto, types: Mapping[str, TypeProto]) -> int | None:
    left, right, out = (_shape(types, name) for name in (*node.input[:2], node.output[0]))
    if node.op_type == "Conv":
        return None if out is None or right is None else prod(out) * prod(right[1:])
    if node.op_type == "ConvTranspose":
        return None if left is None or right is None else prod(left) * prod(right[1:])
    if not left or out is None:
        return None
    transposed = node.op_type == "Gemm" and any(each.name == "transA" and each.i for each in node.attribute)
    return prod(out) * left[0 if transposed else -1]


def _shape(types: Mapping[str, TypeProto], name: str) -> list[int] | None:
    """The sizes of a tensor; None where one of them, or its rank, is not known."""
    found = types.get(name)
    if found is None or not found.tensor_type.HasField("shape"):
        return None
    dims = found.tensor_type.shape.dim
    return [dim.dim_value for dim in dims] if all(dim.HasField("dim_value") for dim in dims) else None
