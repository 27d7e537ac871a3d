"""Rule: tensors between which values only move, or the larger one is taken, are quantized at one scale.

TensorRT moves Q up and DQ down through operators that commute with them, so the operator reads and writes the 8-bit
codes and nothing needs to be inserted around it. It can do so only where the scales are equal: with two scales the
tensor is quantized twice, or kept in float beside its codes.

    x ─┬─ Q(s) ─ DQ ─ Conv                         x ─ Q(max) ─┬─ DQ ─ Conv
       └─ MaxPool ─ Q(t) ─ DQ ─ Conv        →                  └─ MaxPool ─ DQ ─ Conv

    a ─┬─ Q(s) ─ DQ ─ Conv                         a ─ Q(max) ─┬─ DQ ─ Conv
       └─ Concat ─ Q(t) ─ DQ ─ Conv         →                  └─ Concat ─ DQ ─ Conv
    b ────┘                                        b ─ Q(max) ────┘

The scale is the largest of the group, so that nothing is cut off which was not before. Averages (AveragePool,
GlobalAveragePool, Resize other than nearest) make values that no code stands for: they do not commute, and stay in
float.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.placement.contract import View

if TYPE_CHECKING:
    from collections.abc import Collection

    from onnx import NodeProto

MOVING = frozenset(
    {
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Values move or are repeated; input 0 is the tensor, the others say where to."""

COMMUTING = MOVING | {"Concat", "MaxPool", "Pad", "Resize"}
"""And those that do so with all inputs, pick the largest, or, by their attributes, add zeros or repeat the nearest."""


def share_scales(view: View, activations: Collection[str]) -> tuple[tuple[str, ...], ...]:
    """The groups of two and more `activations` that get one scale: each with those it is moved together from."""
    leader = {name: name for name in activations}

    def find(name: str) -> str:
        while leader[name] != name:
            name = leader[name]
        return name

    for name in activations:
        for source in _sources(view, name, leader):
            leader[find(name)] = find(source)
    groups: dict[str, list[str]] = {}
    for name in activations:
        groups.setdefault(find(name), []).append(name)
    return tuple(tuple(group) for group in groups.values() if len(group) > 1)


def _sources(view: View, name: str, activations: Collection[str]) -> set[str]:
    """The nearest of `activations` that `name` is moved together from."""
    found: set[str] = set()
    todo, seen = [name], {name}
    while todo:
        made = view.maker(todo.pop())
        for source in moved_from(view, made[1]) if made else ():
            if source in activations:
                found.add(source)
            elif source not in seen:
                seen.add(source)
                todo.append(source)
    return found


def moved_from(view: View, node: NodeProto) -> list[str]:
    """The tensors whose values make up what `node` gives; none where it computes others."""
    if node.op_type == "Concat":
        return view.moving(node)
    if node.op_type not in COMMUTING or (node.op_type == "Resize" and not _is_nearest(node)):
        return []
    if node.op_type == "Pad" and not _pads_with_zeros(view, node):
        return []
    return [name for name in node.input[:1] if name not in view.constants]


def _is_nearest(node: NodeProto) -> bool:
    return all(a.s == b"nearest" for a in node.attribute if a.name == "mode")


def _pads_with_zeros(view: View, node: NodeProto) -> bool:
    """Zero is a code at every scale; edge and reflect repeat values that are there."""
    from onnx import numpy_helper

    if any(a.name == "mode" and a.s != b"constant" for a in node.attribute):
        return True
    given = node.input[2] if len(node.input) > 2 else ""
    value = view.constants.get(given)
    if value is not None:
        return not numpy_helper.to_array(value).any()
    return not given and not any(a.name == "value" and a.f for a in node.attribute)
