"""Rule, where the user asks for it: the two matrix products of attention read both of their inputs quantized.

    q ─ MatMul ─ Mul ─ Softmax ─ MatMul ─          q ─ Q ─ DQ ─ MatMul ─ Mul ─ Softmax ─ Q ─ DQ ─ MatMul ─
    k ────┘                  v ────┘        →      k ─ Q ─ DQ ────┘                  v ─ Q ─ DQ ────┘

It is off by default: on one layer of random weights it cost 5 dB (26.4 for 31.8), and TensorRT-RTX 1.7.1 has the fused
kernel (`_gemm_mha_v2`) for float16 as well as for INT8 and FP8; float32 alone has none. Other products of two
activations stay in float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages import onnx_graph
from stages.placement.contract import Choice, Read, View, is_onnx
from stages.placement.shared import COMMUTING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from onnx import NodeProto

BEFORE_SOFTMAX = COMMUTING | {"Add", "Cast", "Clip", "Div", "Dropout", "Mul", "Sub", "Where"}
"""What stands between the product of q and k and the Softmax: scaling, a mask, a position bias."""

AFTER_SOFTMAX = COMMUTING | {"Cast", "Dropout", "Mul", "Where"}
"""What stands between the Softmax and the product with v."""


def quantize_attention(view: View, choice: Choice) -> None:
    """Chooses both inputs of each product before and behind a Softmax."""
    if choice.attention == "none":
        return
    products = {
        index
        for node in view.nodes
        if node.op_type == "Softmax" and is_onnx(node)
        for index in (*_before(view, node), *_behind(view, node))
    }
    for index in sorted(products):
        node = view.nodes[index]
        if onnx_graph.label(node) not in choice.in_float:
            choice.quantized.append(onnx_graph.label(node))
            choice.reads += [Read(index, position, node.input[position]) for position in (0, 1)]


def _is_product(view: View, node: NodeProto) -> bool:
    """Whether `node` is a MatMul of two activations."""
    return node.op_type == "MatMul" and is_onnx(node) and len(view.moving(node)) == 2


def _before(view: View, softmax: NodeProto) -> Iterator[int]:
    todo, seen = [softmax.input[0]], set(softmax.input[:1])
    while todo:
        made = view.maker(todo.pop())
        if made is None:
            continue
        index, node = made
        if _is_product(view, node):
            yield index
        elif node.op_type in BEFORE_SOFTMAX:
            new = set(view.moving(node)) - seen
            seen |= new
            todo += new


def _behind(view: View, softmax: NodeProto) -> Iterator[int]:
    todo, seen = [softmax.output[0]], set(softmax.output[:1])
    while todo:
        for index, _ in view.readers.get(todo.pop(), ()):
            node = view.nodes[index]
            if _is_product(view, node):
                yield index
            elif node.op_type in AFTER_SOFTMAX and is_onnx(node):
                new = set(node.output) - seen
                seen |= new
                todo += new
