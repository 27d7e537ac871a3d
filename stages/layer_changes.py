"""What the layers of two plans of a model differ in: what each product computes in, and what is fused with what.

Layers are held against each other by the ONNX nodes that they compute, conversions (Q, DQ, Cast) aside, since a model
that is quantized has others. Layers that share nodes make a group, as small as can be::

    A: [conv1 relu1] [pool1]                 conv1 and relu1 were one layer and are two, pool1 is as it was
    B: [conv1] [relu1] [pool1]
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from stages.layer_report import Layer, ProfileLayers
from stages.placement.weighted import WEIGHTED

CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "Cast")


@dataclass(frozen=True)
class Product:
    """A convolution or matrix product of the model that computes in something else.

    Attributes:
        node: Its name.
        a: What it computes in, in the one plan.
        b: And in the other.
    """

    node: str
    a: str
    b: str


@dataclass(frozen=True)
class Fusion:
    """Nodes that are divided among layers otherwise.

    Attributes:
        nodes: Those of the model that the layers compute; empty for layers that name none.
        a: The layers of the one plan that compute them; none where only the other has such.
        b: Those of the other.
    """

    nodes: Sequence[str]
    a: Sequence[str]
    b: Sequence[str]


@dataclass(frozen=True)
class Changes:
    """What two lists of layers differ in.

    Attributes:
        same: How many layers both have: the same nodes, in the same types.
        retyped: How many have the same nodes, in other types.
        products: Those that compute in something else.
        fusions: What is fused otherwise, in the order of the one plan, then of the other.
    """

    same: int
    retyped: int
    products: Sequence[Product]
    fusions: Sequence[Fusion]


def changes(a: ProfileLayers, b: ProfileLayers) -> Changes:
    """What `b` has otherwise than `a`."""
    left, right = list(map(_Own, a.layers)), list(map(_Own, b.layers))
    same = retyped = 0
    fusions = []
    for ours, theirs in _groups(left, right):
        if _names(ours) == _names(theirs):
            types = Counter(each.types for each in ours) & Counter(each.types for each in theirs)
            same += types.total()
            retyped += len(ours) - types.total()
        else:
            nodes = list(dict.fromkeys(node for each in (*ours, *theirs) for node in each.nodes))
            fusions.append(Fusion(nodes, [each.name for each in ours], [each.name for each in theirs]))
    return Changes(same, retyped, _products(a.layers, b.layers), fusions)


class _Own:
    """A layer by what is its own: its nodes without conversions."""

    def __init__(self, layer: Layer) -> None:
        operators = [*layer.operators, *[None] * (len(layer.nodes) - len(layer.operators))]
        self.nodes = [n for n, operator in zip(layer.nodes, operators, strict=True) if operator not in CONVERSIONS]
        self.name = layer.name or layer.kind
        self.types = (layer.precision, *layer.reads, "->", *layer.writes)


def _names(group: Iterable[_Own]) -> Counter[tuple[str, ...]]:
    """What the layers of a group are, whatever they are called."""
    return Counter(tuple(sorted(each.nodes)) or (each.name,) for each in group)


def _groups(left: Sequence[_Own], right: Sequence[_Own]) -> list[tuple[list[_Own], list[_Own]]]:
    """The layers of both that share nodes, directly or through others; those without nodes by their names."""
    leader: dict[str, str] = {}

    def find(node: str) -> str:
        while leader.setdefault(node, node) != node:
            node = leader[node]
        return node

    def key(each: _Own) -> str:
        return find(each.nodes[0]) if each.nodes else f"\0{each.name}"  # no node is called so

    for each in (*left, *right):
        for node in each.nodes[1:]:
            leader[find(node)] = find(each.nodes[0])
    groups: defaultdict[str, tuple[list[_Own], list[_Own]]] = defaultdict(lambda: ([], []))
    for side, own in enumerate((left, right)):
        for each in own:
            groups[key(each)][side].append(each)
    return list(groups.values())


def _products(a: Sequence[Layer], b: Sequence[Layer]) -> list[Product]:
    before, after = _computed_in(a), _computed_in(b)
    both = [node for node in before if node in after]
    return [Product(node, before[node], after[node]) for node in both if before[node] != after[node]]


def _computed_in(layers: Sequence[Layer]) -> Mapping[str, str]:
    """What each product computes in; where the model is not known, every node in a layer that holds one."""
    found: dict[str, str] = {}
    for layer in layers:
        if layer.product:
            for node, operator in zip(layer.nodes, layer.operators or [None] * len(layer.nodes), strict=False):
                if operator is None or operator in WEIGHTED:
                    found.setdefault(node, layer.precision)
    return found
