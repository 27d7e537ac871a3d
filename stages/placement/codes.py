"""Which codes a Q gives and a DQ takes: the type and the zero point that the graph says."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.placement.contract import View

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto


def code_type(view: View, node: NodeProto) -> str | None:
    """ONNX's name of the type that a Q gives or a DQ takes; None where the graph does not say it there.

    It is that of the zero point; without one, of what a DQ reads, and for a Q `output_dtype`, else UINT8.
    """
    from onnx import TensorProto

    said = next((a.i for a in node.attribute if a.name == "output_dtype" and node.op_type == "QuantizeLinear"), 0)
    known = zero_point(view, node) or (view.constants.get(node.input[0]) if node.op_type != "QuantizeLinear" else None)
    kind = known.data_type if known is not None else said
    if not kind and node.op_type == "QuantizeLinear" and len(node.input) < 3:
        kind = TensorProto.UINT8
    return TensorProto.DataType.Name(kind) if kind else None


def zero_point(view: View, node: NodeProto) -> TensorProto | None:
    """The zero point of a Q or DQ, if it has a constant one."""
    return view.constants.get(node.input[2]) if len(node.input) > 2 else None
