"""What a rule of placement is: a function that says which inputs of which nodes shall read a quantized tensor.

A rule is a file of its own, a function from the graph and what earlier rules chose to further reads, with a picture of
before and after in its docstring, and a line in `stages/quantization.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, TypeAlias

from stages import onnx_graph

if TYPE_CHECKING:
    from onnx import GraphProto, NodeProto


@dataclass(frozen=True)
class Read:
    """One input of one node that shall read a quantized tensor.

    Attributes:
        node: The index of the node in the graph.
        input: The index of the node's input.
        tensor: What it reads now.
        axis: The axis of a weight's channels; None for an activation, which has one scale for the whole tensor.
    """

    node: int
    input: int
    tensor: str
    axis: int | None = None


@dataclass(frozen=True)
class Placement:
    """Where Q/DQ go.

    Attributes:
        reads: Every input that gets Q/DQ, in the graph's order; equal tensors (and axes) share one pair.
        weighted: The labels of all operators that could run in INT8 or FP8.
        quantized: The labels of those that will.
        shared: Groups of activations that have one scale, the largest of theirs.
    """

    reads: tuple[Read, ...]
    weighted: tuple[str, ...]
    quantized: tuple[str, ...]
    shared: tuple[tuple[str, ...], ...] = ()

    @property
    def activations(self) -> list[str]:
        """The tensors that need a range, each once, in the graph's order."""
        return list(dict.fromkeys(read.tensor for read in self.reads if read.axis is None))

    def unified(self, ranges: Mapping[str, float]) -> dict[str, float]:
        """`ranges` (the amax of each activation) with the largest of its group for every tensor that shares a scale."""
        found = dict(ranges)
        for group in self.shared:
            found.update(dict.fromkeys(group, max(ranges[name] for name in group)))
        return found


@dataclass
class Choice:
    """What the rules so far have chosen.

    Attributes:
        in_float: The labels of the nodes that the user keeps in float.
        attention: `none`, or `qk_pv`: the products of attention are quantized, too.
        reads: The inputs that get Q/DQ.
        quantized: The labels of the operators that will run quantized, in the order of the rules.
    """

    in_float: Collection[str]
    attention: str
    reads: list[Read] = field(default_factory=list)
    quantized: list[str] = field(default_factory=list)


class View:
    """The nodes of a graph and who makes and reads what, captured names included."""

    def __init__(self, graph: GraphProto) -> None:
        self.graph = graph
        self.nodes: Sequence[NodeProto] = list(graph.node)
        self.constants = onnx_graph.constants(graph)
        self._makers = {name: index for index, node in enumerate(self.nodes) for name in node.output if name}
        self.uses: dict[str, int] = {}
        self.readers: dict[str, list[tuple[int, int]]] = {}
        for index, node in enumerate(self.nodes):
            for position, name in enumerate(node.input):
                self.readers.setdefault(name, []).append((index, position))
            for name in (*node.input, *onnx_graph.captures(node)):
                self.uses[name] = self.uses.get(name, 0) + 1
        for value in graph.output:
            self.uses[value.name] = self.uses.get(value.name, 0) + 1

    def maker(self, name: str) -> tuple[int, NodeProto] | None:
        """The node of ONNX's own operators that makes `name`, and its index; None for inputs, weights and others."""
        index = self._makers.get(name)
        return None if index is None or not is_onnx(self.nodes[index]) else (index, self.nodes[index])

    def moving(self, node: NodeProto) -> list[str]:
        """The inputs of `node` that are not constant."""
        return [name for name in node.input if name and name not in self.constants]

    @cached_property
    def depth(self) -> dict[str, int]:
        """How many nodes at most lie between the inputs and each tensor that a node makes."""
        found: dict[str, int] = {}
        for node in self.nodes:
            level = 1 + max((found.get(name, 0) for name in onnx_graph.reads(node)), default=0)
            found.update(dict.fromkeys(node.output, level))
        return found

    def comes_from(self, name: str, origin: str) -> bool:
        """Whether `name` is `origin` or computed from it."""
        todo, seen = [name], {name}
        while todo:
            each = todo.pop()
            if each == origin:
                return True
            index = self._makers.get(each)
            # What is not deeper than the origin cannot come from it: the search stays between the two.
            if index is None or self.depth[each] <= self.depth.get(origin, 0):
                continue
            new = onnx_graph.reads(self.nodes[index]) - seen
            seen |= new
            todo += new
        return False


Rule: TypeAlias = Callable[[View, Choice], None]
"""Adds its reads to the choice."""


def is_onnx(node: NodeProto) -> bool:
    """Whether `node` is one of ONNX's own operators."""
    return node.domain in ("", "ai.onnx")
