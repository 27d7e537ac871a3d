"""Rule: convolutions and matrix products read their input and their weight quantized, and their bias in float.

    x ─────── Conv ─          x ─ Q ─ DQ ─ Conv ─
    w ─────────┤       →      w ─ Q ─ DQ ───┤
    b ─────────┘              b ────────────┘

The weight has one scale for each output channel. Where it is an initializer behind Identity, Transpose or Reshape, the
pair goes to the initializer, on the axis that becomes the channels; TensorRT takes the Transpose along:

    w ─ Transpose ─ MatMul    →    w ─ Q ─ DQ ─ Transpose ─ MatMul
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from stages import onnx_graph
from stages.placement.contract import Choice, Read, View, is_onnx

if TYPE_CHECKING:
    from onnx import NodeProto

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators that TensorRT runs in INT8 and FP8."""


def is_weighted(node: NodeProto) -> bool:
    """Whether `node` is an operator that TensorRT can run in INT8 or FP8."""
    return node.op_type in WEIGHTED and is_onnx(node)


def quantize_weighted(view: View, choice: Choice) -> None:
    """Chooses input and weight of each weighted operator that the user does not keep in float."""
    for index, node in enumerate(view.nodes):
        if not is_weighted(node) or onnx_graph.label(node) in choice.in_float:
            continue
        for position in (1, 0) if node.op_type == "MatMul" else (1,):
            weight = weight_read(view, index, position)
            if weight is not None and node.input[1 - position] in view.moving(node):
                choice.quantized.append(onnx_graph.label(node))
                choice.reads += [Read(index, 1 - position, node.input[1 - position]), weight]
                break


@dataclass(frozen=True)
class _Source:
    """Where a weight comes from.

    Attributes:
        read: Of the initializer; its axis is still to be set.
        dims: The shape that the weighted operator sees.
        axes: For each of these dims the initializer's axis that it is; None where a Reshape split or merged it.
    """

    read: Read
    dims: tuple[int, ...]
    axes: tuple[int | None, ...]


def weight_read(view: View, index: int, position: int) -> Read | None:
    """The read of the weight of node `index`, with the axis of its channels; None where it has none that can be."""
    source = _source(view, index, position)
    if source is None:
        return None
    channels = _channels(view.nodes[index], position, len(source.dims))
    axis = source.axes[channels] if channels is not None else None
    if axis is None:
        return None
    return Read(source.read.node, source.read.input, source.read.tensor, axis)


def _channels(node: NodeProto, position: int, rank: int) -> int | None:
    """The axis of the output channels in a weight of `rank` dims; None for one without.

    Conv (M, C/g, …): 0. ConvTranspose (C, M/g, …): 1, which its groups share, since an axis of C would scale within
    the sum. Gemm (K, N): 1, and 0 where transB. MatMul (…, K, N): the last, which all matrices of a batch share; on
    the left (…, M, K) the one before it.
    """
    if node.op_type == "MatMul":
        return None if rank < 2 else rank - 1 if position == 1 else rank - 2
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 0 if node.op_type == "Conv" else 1


def _source(view: View, index: int, position: int) -> _Source | None:
    """Follows input `position` of node `index` to a float initializer that reaches it by nodes of no other use."""
    from onnx import TensorProto

    name = view.nodes[index].input[position]
    tensor = view.constants.get(name)
    if tensor is not None:
        known = tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
        dims = tuple(tensor.dims)
        return _Source(Read(index, position, name), dims, tuple(range(len(dims)))) if known else None
    made = view.maker(name)
    if made is None or view.uses[name] > 1 or made[1].op_type not in ("Identity", "Transpose", "Reshape"):
        return None
    source = _source(view, made[0], 0)
    return None if source is None else _through(view, made[1], source)


def _through(view: View, node: NodeProto, source: _Source) -> _Source | None:
    """What `source` looks like behind `node`."""
    if node.op_type == "Identity":
        return source
    if node.op_type == "Transpose":
        given = next((list(a.ints) for a in node.attribute if a.name == "perm"), None)
        order = given if given is not None else list(range(len(source.dims)))[::-1]
        return _Source(source.read, tuple(source.dims[i] for i in order), tuple(source.axes[i] for i in order))
    return _reshaped(view, node, source)


def _reshaped(view: View, node: NodeProto, source: _Source) -> _Source | None:
    """A dim that stands after the same number of elements, with the same size, is the same dim."""
    from onnx import numpy_helper

    wanted = view.constants.get(node.input[1])
    if wanted is None or any(a.name == "allowzero" and a.i for a in node.attribute):
        return None
    dims = [source.dims[i] if size == 0 else int(size) for i, size in enumerate(numpy_helper.to_array(wanted))]
    if -1 in dims:
        dims[dims.index(-1)] = prod(source.dims) // max(1, -prod(dims))
    before = {
        (prod(source.dims[:i]), size): axis for i, (size, axis) in enumerate(zip(source.dims, source.axes, strict=True))
    }
    axes = [before.get((prod(dims[:i]), size)) for i, size in enumerate(dims)]
    return _Source(source.read, tuple(dims), tuple(axes))
