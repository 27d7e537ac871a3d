"""Rule: of a residual Add the shortcut is read quantized, and only that one.

TensorRT takes the Add (and the activation behind it) into the convolution before it. What the shortcut is read as
decides what comes out: read in float, it must be kept in float beside its codes; read quantized, there are the codes
only. Q/DQ on the convolution's side would part it from the Add.

    x ─┬─ Q/DQ ─ Conv ─ Relu ─ Q/DQ ─ Conv ─ Add ─ Relu        x ─ Q/DQ ─┬─ Conv ─ Relu ─ Q/DQ ─ Conv ─ Add ─ Relu
       └──────────────────────────────────────┘          →               └────────────────────────────────┘

The branch may end in an activation or a gate (SiLU, hard-swish, squeeze-and-excitation): the Add is then part of the
kernel that computes these, and reads the codes just so:

    x ─┬─ … ─ Conv ─┬─ Sigmoid ─ Mul ─ Add                     x ─ Q/DQ ─┬─ … ─ Conv ─┬─ Sigmoid ─ Mul ─ Add
       │            └─────────────┘     │                →               │            └─────────────┘     │
       └────────────────────────────────┘                                └────────────────────────────────┘

A matrix product's Add stays in float: its sums run through the whole of a transformer, and quantizing them is the
likely cause of 9 dB that another quantizer lost in MiniLM.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from stages import onnx_graph
from stages.placement.contract import Choice, Read, View, is_onnx

if TYPE_CHECKING:
    from onnx import NodeProto

LINEAR = ("Add", "BatchNormalization", "Div", "Identity", "Mul", "Sub")
"""With constants beside the input, these are folded into the convolution before them."""

POINTWISE = (
    *LINEAR,
    "Celu",
    "Clip",
    "Elu",
    "Erf",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "Max",
    "Min",
    "Mish",
    "PRelu",
    "Pow",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
)
"""Activations, and what they are written out as."""

SQUEEZE = ("GlobalAveragePool", "ReduceMean")


def quantize_shortcuts(view: View, choice: Choice) -> None:
    """Chooses the shortcut of each residual Add whose convolution is quantized."""
    quantized = frozenset(choice.quantized)
    for index, node in enumerate(view.nodes):
        if node.op_type != "Add" or not is_onnx(node) or len(view.moving(node)) != 2:
            continue
        main, convs = _branch(view, node)
        is_chosen = any(onnx_graph.label(conv) in quantized for conv in convs)
        if is_chosen and onnx_graph.label(node) not in choice.in_float:
            choice.reads.append(Read(index, 1 - main, node.input[1 - main]))


def quantize_gated(view: View, choice: Choice) -> None:
    """Chooses the pool and the product that read a shortcut which its own branch scales.

    A residual squeeze-and-excitation reads the shortcut three times. With one of them in float the convolution before
    it would write codes and floats: TensorRT-RTX then runs one kernel more than without any Q/DQ there.

        x ─┬─ GlobalAveragePool ─ … ─ Mul ─ Add         x ─ Q/DQ ─┬─ GlobalAveragePool ─ … ─ Mul ─ Add
           ├───────────────────────────┘     │     →              ├───────────────────────────┘     │
           └─────────────────────────────────┘                    └─────────────────────────────────┘
    """
    for read in list(choice.reads):
        add = view.nodes[read.node]
        made = view.maker(add.input[1 - read.input]) if add.op_type == "Add" else None
        if made is None or made[1].op_type != "Mul" or read.tensor not in made[1].input:
            continue
        choice.reads += [
            Read(index, position, read.tensor)
            for index, position in view.readers[read.tensor]
            if (index == made[0] or view.nodes[index].op_type in SQUEEZE)
            and onnx_graph.label(view.nodes[index]) not in choice.in_float
        ]


def _branch(view: View, add: NodeProto) -> tuple[int, list[NodeProto]]:
    """The side of `add` that is the branch, and the convolutions that it ends in; none where it is no residual."""
    direct = {side: conv for side in (0, 1) if (conv := _conv_of(view, add.input[side])) is not None}
    if direct:
        # Of a projection shortcut both sides are convolutions: the longer branch runs last and takes the Add along.
        main = max(direct, key=lambda side: (view.depth[add.input[side]], side))
        return main, [direct[main]]
    for side in (0, 1):
        shortcut = add.input[1 - side]
        convs = [conv for conv in _convs_behind(view, add.input[side]) if view.comes_from(conv.input[0], shortcut)]
        if convs:
            return side, convs
    return 0, []


def _conv_of(view: View, name: str) -> NodeProto | None:
    """The Conv that gives `name`, perhaps scaled and shifted by constants, if only one node reads it."""
    while (made := view.maker(name)) is not None and view.uses[name] == 1:
        node = made[1]
        if node.op_type == "Conv":
            return node
        moving = view.moving(node)
        if node.op_type not in LINEAR or len(moving) != 1:
            return None
        name = moving[0]
    return None


def _convs_behind(view: View, name: str) -> Iterator[NodeProto]:
    """The convolutions that `name` is computed from by activations and gates alone."""
    todo, seen = [name], {name}
    while todo:
        made = view.maker(todo.pop())
        if made is None:
            continue
        node = made[1]
        if node.op_type == "Conv":
            yield node
        elif node.op_type in POINTWISE and (len(view.moving(node)) == 1 or node.op_type == "Mul"):
            new = set(view.moving(node)) - seen
            seen |= new
            todo += new
