"""UINT8 codes with zero point 128 = INT8 codes with zero point 0, 128 less: what TensorRT takes.

    x ─ Q(s, 128u) ─ DQ(s, 128u)    →    x ─ Q(s, 0) ─ DQ(s, 0)
    wu8 ─ DQ(s, 128u)               →    wi8 ─ DQ(s, 0)

The values are the same: 0 … 255 less 128 is -128 … 127. Other zero points have no such shift, and stay.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from stages import onnx_data, onnx_graph
from stages.passes.check_qdq import is_all
from stages.passes.contract import NoOptions, Pass
from stages.placement.codes import code_type, zero_point
from stages.placement.contract import View
from stages.stage import Metrics

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto


def shift_uint8(model: ModelProto, options: NoOptions) -> Metrics:
    """Shifts every tensor of codes that only such Q and DQ write and read."""
    view, graph = View(model.graph), model.graph
    returned = {value.name for value in graph.output}
    taken, made = onnx_graph.names(graph), dict[str, str]()
    shifted = 0
    for name in dict.fromkeys(codes for node in view.nodes if (codes := _codes(view, node)) and codes not in returned):
        nodes = [view.nodes[index] for index, _ in view.readers.get(name, [])]
        writer = view.maker(name)
        constant = view.constants.get(name)
        if view.uses.get(name) != len(nodes) or not all(_is_shiftable(view, n, "DequantizeLinear") for n in nodes):
            continue
        if writer is not None and constant is None and not _is_shiftable(view, writer[1], "QuantizeLinear"):
            continue
        if constant is not None:
            new = _shifted(model, constant, taken)
            for node in nodes:
                node.input[0] = new
        for node in [*nodes, *([writer[1]] if writer is not None and constant is None else [])]:
            node.input[2] = _zero(model, view, node, made, taken)
        shifted += 1
    onnx_graph.drop_stale_values(graph)
    return {"shifted": shifted}


def _codes(view: View, node: NodeProto) -> str | None:
    """The tensor of codes that a shiftable `node` writes or reads."""
    if _is_shiftable(view, node, "QuantizeLinear"):
        return str(node.output[0])
    return str(node.input[0]) if _is_shiftable(view, node, "DequantizeLinear") else None


def _is_shiftable(view: View, node: NodeProto, operator: str) -> bool:
    return node.op_type == operator and code_type(view, node) == "UINT8" and is_all(zero_point(view, node), 128)


def _shifted(model: ModelProto, codes: TensorProto, taken: set[str]) -> str:
    """The name of a new initializer: `codes`, 128 less."""
    import numpy as np
    from onnx import numpy_helper

    name = onnx_graph.fresh(f"{codes.name or 'codes'}_int8", taken)
    less = (onnx_data.array(codes).astype(np.int16) - 128).astype(np.int8)
    model.graph.initializer.append(numpy_helper.from_array(less, name))
    return name


def _zero(model: ModelProto, view: View, node: NodeProto, made: dict[str, str], taken: set[str]) -> str:
    """The name of the INT8 zero point that takes the place of the one of `node`."""
    from onnx import TensorProto

    old = node.input[2]
    if old not in made:
        dims = list(view.constants[old].dims)
        made[old] = onnx_graph.fresh(f"{old}_int8", taken)
        zero = TensorProto(name=made[old], data_type=TensorProto.INT8, dims=dims, raw_data=bytes(prod(dims)))
        model.graph.initializer.append(zero)
    return made[old]


PASS = Pass("shift_uint8", NoOptions, shift_uint8)
