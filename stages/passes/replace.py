r"""A pattern of nodes gives way to other nodes: a subgraph that a plugin does better becomes the plugin's node.

`{pass: replace, find: "s = Sigmoid(x)\n y = Mul(x, s)", put: "y = acme.Silu<plugin_version = \"1\">(x)"}`
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import onnx_graph, written_nodes
from stages.passes.contract import Pass
from stages.stage import Metrics, StageError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Equal", "Max", "Min", "Sum", "Mean"})
"""Their inputs are also tried the other way round."""


@dataclass(frozen=True)
class Options:
    """What for what, both in ONNX's text form, one node a line.

    Attributes:
        find: The pattern: names that no line gives stand for any tensor; the last line gives its one result. An
            attribute that is written must be there with that value, others may be what they are.
        put: The nodes in its place; they read names of the pattern, and the last gives the pattern's result.
    """

    find: str
    put: str

    def __post_init__(self) -> None:
        written_nodes.require_nodes(self.find, "find")
        written_nodes.require_nodes(self.put, "put")


def replace(model: ModelProto, options: Options) -> Metrics:
    """Replaces every match; matches that share a node are taken in the order of the nodes.

    Raises:
        StageError: Pattern or replacement cannot be read or do not fit together, or the pattern matches nowhere.
    """
    graph = model.graph
    pattern = written_nodes.parse(options.find, "replace.find")
    new = written_nodes.parse(options.put, "replace.put")
    _check(pattern, new, options)
    search = _Search(graph, pattern)
    taken, places = onnx_graph.names(graph), []
    for anchor in list(graph.node):
        match = search.at(anchor)
        if match is None:
            continue
        graph.node.extend(_written(new, match, pattern[-1].output[0], taken))
        search.used.update(id(node) for node in match.nodes)
        places.append(onnx_graph.label(anchor))
    if not places:
        raise StageError(
            f"replace.find: the pattern {options.find!r} matches nowhere in the model",
            "look at the model after the passes before this one: `{pass: mark_outputs, …}`, `trtforge inspect`",
        )
    onnx_graph.replace_nodes(graph, [node for node in graph.node if id(node) not in search.used])
    written_nodes.import_domains(model, new)
    onnx_graph.sort(graph)
    onnx_graph.drop_stale_values(graph)
    return {"replaced": places}


@dataclass(frozen=True)
class _Match:
    bound: Mapping[str, str]
    nodes: list[NodeProto]


class _Search:
    """Finds a pattern in a graph, from the node that gives its result backwards."""

    def __init__(self, graph: GraphProto, pattern: list[NodeProto]) -> None:
        self.pattern = pattern
        self.gives = {name: node for node in pattern for name in node.output if name}
        self.makers = onnx_graph.producers(graph)
        self.readers = onnx_graph.consumers(graph)
        self.returned = {value.name for value in graph.output}
        self.used: set[int] = set()

    def at(self, anchor: NodeProto) -> _Match | None:
        for bound, nodes in self._match(self.pattern[-1], anchor, {}, []):
            if len(nodes) == len(self.pattern) and self._is_closed(bound, nodes):
                return _Match(bound, nodes)
        return None

    def _match(
        self, wanted: NodeProto, node: NodeProto, bound: Mapping[str, str], nodes: list[NodeProto]
    ) -> Iterable[tuple[dict[str, str], list[NodeProto]]]:
        if id(node) in self.used or not _alike(wanted, node):
            return
        if any(node is other for other in nodes):
            if all(bound.get(name) == got for name, got in zip(wanted.output, node.output, strict=False)):
                yield dict(bound), nodes
            return
        results = dict(bound)
        for name, got in zip(wanted.output, node.output, strict=False):
            if results.setdefault(name, got) != got:
                return
        orders = [list(node.input)]
        if wanted.op_type in COMMUTATIVE and len(node.input) == 2:
            orders.append(orders[0][::-1])
        for order in orders:
            yield from self._match_inputs(list(zip(wanted.input, order, strict=True)), results, [*nodes, node])

    def _match_inputs(
        self, pairs: list[tuple[str, str]], bound: dict[str, str], nodes: list[NodeProto]
    ) -> Iterable[tuple[dict[str, str], list[NodeProto]]]:
        if not pairs:
            yield bound, nodes
            return
        (name, got), *rest = pairs
        if bound.get(name, got) != got or (not name) != (not got):
            return
        if name not in self.gives or name in bound:
            yield from self._match_inputs(rest, {**bound, name: got}, nodes)
        elif got in self.makers:
            for inner, found in self._match(self.gives[name], self.makers[got], bound, nodes):
                yield from self._match_inputs(rest, inner, found)

    def _is_closed(self, bound: Mapping[str, str], nodes: list[NodeProto]) -> bool:
        """Whether nothing outside of the match reads what it computes on the way."""
        result = bound[self.pattern[-1].output[0]]
        inner = {name for node in nodes for name in node.output if name} - {result}
        return not inner & self.returned and all(
            any(reader is node for node in nodes) for name in inner for reader in self.readers.get(name, ())
        )


def _alike(wanted: NodeProto, node: NodeProto) -> bool:
    have = {attribute.name: attribute for attribute in node.attribute}
    return (
        (wanted.op_type, wanted.domain.replace("ai.onnx", "")) == (node.op_type, node.domain.replace("ai.onnx", ""))
        and len(wanted.input) == len(node.input)
        and len(wanted.output) <= len(node.output)
        and all(attribute.name in have and have[attribute.name] == attribute for attribute in wanted.attribute)
    )


def _check(pattern: list[NodeProto], new: list[NodeProto], options: Options) -> None:
    result = pattern[-1].output[0]
    given = {name for node in new for name in node.output}
    names = {name for node in pattern for name in node.input if name}
    names -= {name for node in pattern for name in node.output}
    strange = {name for node in new for name in node.input if name} - given - names
    if result not in given or strange:
        what = f"reads {', '.join(sorted(strange))}, which the pattern does not" if strange else f"gives no {result}"
        raise StageError(f"replace.put: {options.put!r} {what}", f"read {', '.join(sorted(names))} and give {result}")


def _written(new: list[NodeProto], match: _Match, result: str, taken: set[str]) -> list[NodeProto]:
    """The nodes of the replacement with the names of this match; what they give on the way gets fresh ones."""
    from onnx import NodeProto

    called = dict(match.bound)
    for name in (name for node in new for name in node.output if name and name != result):
        called[name] = onnx_graph.fresh(f"{match.bound[result]}_{name}", taken)
    nodes = []
    for node in new:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [called[name] if name else "" for name in node.input]
        copy.output[:] = [called[name] if name else "" for name in node.output]
        copy.name = copy.output[0]
        nodes.append(copy)
    return nodes


PASS = Pass("replace", Options, replace, keeps_results=False)
