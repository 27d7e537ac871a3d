"""What the stages that rewrite ONNX graphs share: names, uses and order of the nodes of the top-level graph.

A name read inside a subgraph (`If`, `Loop`, `Scan`) from the graph around it is *captured*: it counts as a use of
the node that holds the subgraph, and nothing here renames it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, MutableSequence, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from stages.stage import StageError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

MAX_ORT_IR = 13
"""The newest IR version that ONNX Runtime 1.31 loads; onnx 1.23 writes 14 by default."""


def label(node: NodeProto) -> str:
    """What a person calls `node`: its name, or for an unnamed one the name of its first output."""
    return str(node.name or next(iter(node.output), node.op_type))


def matching(nodes: Iterable[NodeProto], patterns: Iterable[str], option: str) -> set[str]:
    """The labels of the nodes that one of the glob `patterns` matches.

    Raises:
        StageError: A pattern matches no node, so that a misspelt one cannot pass for a choice.
    """
    labels = [label(node) for node in nodes]
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in labels if fnmatchcase(name, pattern)}
        if not hits:
            examples = ", ".join(labels[:5]) or "none"
            raise StageError(
                f"{option}: no node is called {pattern!r}; the model has {len(labels)} nodes: {examples}, …",
                f"correct or remove the pattern {pattern!r} in {option}",
            )
        found |= hits
    return found


def matching_names(names: Iterable[str], patterns: Iterable[str], option: str, what: str) -> set[str]:
    """Those of `names` that one of the glob `patterns` matches.

    Raises:
        StageError: A pattern matches none.
    """
    known = list(names)
    found: set[str] = set()
    for pattern in patterns:
        hits = {name for name in known if fnmatchcase(name, pattern)} or {name for name in known if name == pattern}
        if not hits:
            require_known(pattern, known, option, what)
        found |= hits
    return found


def require_known(name: str, known: Collection[str], option: str, what: str) -> None:
    """Holds a name in the config to those that the model has.

    Raises:
        StageError: The model has no such one.
    """
    if name not in known:
        near = get_close_matches(name, known, n=3) or sorted(known)[:5]
        examples = ", ".join(near) or "none"
        raise StageError(
            f"{option}: the model has no {what} {name!r}; it has, among others: {examples}", f"correct {option}"
        )


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """The graphs that `node` holds in its attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def captures(node: NodeProto) -> set[str]:
    """The names that the subgraphs of `node` read from outside of themselves."""
    return set().union(*(_free_names(graph) for graph in subgraphs(node)))


def _free_names(graph: GraphProto) -> set[str]:
    read = {value.name for value in graph.output}
    for node in graph.node:
        read |= reads(node)
    return read - own_names(graph)


def own_names(graph: GraphProto) -> set[str]:
    """The names that `graph` itself gives to tensors; those inside its subgraphs are not among them."""
    own = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    own |= {tensor.values.name for tensor in graph.sparse_initializer}
    return own | {name for node in graph.node for name in node.output if name}


def reads(node: NodeProto) -> set[str]:
    """The names that `node` needs: its inputs and what its subgraphs capture."""
    return {name for name in node.input if name} | captures(node)


def inner_names(graph: GraphProto) -> set[str]:
    """The names that subgraphs of `graph` give to their own: one of `graph` that is the same is hidden there."""
    return {name for node in graph.node for inner in subgraphs(node) for name in own_names(inner)}


def captured(graph: GraphProto) -> set[str]:
    """The names of `graph` that subgraphs read."""
    return set().union(*(captures(node) for node in graph.node))


def consumers(graph: GraphProto) -> dict[str, list[NodeProto]]:
    """The nodes that read each name, captured names included."""
    found: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in sorted(reads(node)):
            found.setdefault(name, []).append(node)
    return found


def producers(graph: GraphProto) -> dict[str, NodeProto]:
    """The node that makes each name."""
    return {name: node for node in graph.node for name in node.output if name}


def constants(graph: GraphProto) -> dict[str, TensorProto]:
    """The tensors that are known before anything runs: initializers, and `Constant` nodes that hold a tensor."""
    found = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return found


def names(graph: GraphProto) -> set[str]:
    """Every tensor name that `graph` uses, those inside subgraphs included."""
    found = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    found |= {value.name for value in graph.output} | {tensor.values.name for tensor in graph.sparse_initializer}
    for node in graph.node:
        found.update(node.input)
        found.update(node.output)
        for inner in subgraphs(node):
            found |= names(inner)
    return found


def fresh(name: str, taken: set[str]) -> str:
    """`name`, or `name_2`, `name_3`, … if it is taken; taken from now on."""
    candidate, number = name, 1
    while candidate in taken:
        number += 1
        candidate = f"{name}_{number}"
    taken.add(candidate)
    return candidate


def sort(graph: GraphProto) -> None:
    """Orders the nodes so that each stands after those it reads, otherwise as they stood.

    Raises:
        StageError: The nodes read each other in a circle.
    """
    maker = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = [{maker[name] for name in reads(node) if name in maker} for node in graph.node]
    readers: dict[int, list[int]] = {}
    for index, needed in enumerate(needs):
        for other in needed:
            readers.setdefault(other, []).append(index)
    ready = [index for index, needed in enumerate(needs) if not needed]
    order: list[int] = []
    while ready:
        done = heappop(ready)
        order.append(done)
        for index in readers.get(done, ()):
            needs[index].discard(done)
            if not needs[index]:
                heappush(ready, index)
    if len(order) < len(needs):
        circle = label(graph.node[min(set(range(len(needs))) - set(order))])
        raise StageError(f"the nodes read each other in a circle, at or before {circle!r}", "export the model again")
    if order != list(range(len(order))):
        replace_nodes(graph, [graph.node[index] for index in order])


def rename_reads(nodes: Iterable[NodeProto], new_name: Mapping[str, str]) -> None:
    """Makes `nodes`, and the subgraphs they hold, read `new_name[name]` where they read `name` of the graph around.

    A subgraph that has a name of its own keeps it.
    """
    for node in nodes:
        if any(name in new_name for name in node.input):
            node.input[:] = [new_name.get(name, name) for name in node.input]
        for graph in subgraphs(node):
            own = own_names(graph)
            visible = {old: new for old, new in new_name.items() if old not in own}
            if visible:
                rename_reads(graph.node, visible)
                for value in graph.output:
                    value.name = visible.get(value.name, value.name)


def replace_nodes(graph: GraphProto, nodes: Iterable[NodeProto]) -> None:
    """Makes `nodes` the nodes of `graph`."""
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)


def set_aside(graph: GraphProto, output: str, name: str) -> None:
    """Calls what makes the model's output `output` by `name` from now on, so that a new node can make the output.

    Raises:
        StageError: The output is an input at the same time.
    """
    if any(value.name == output for value in graph.input):
        raise StageError(f"output {output!r} is an input of the model, too", "give the output a name of its own first")
    rename_reads(graph.node, {output: name})
    for node in graph.node:
        node.output[:] = [name if each == output else each for each in node.output]
    for tensor in graph.initializer:
        tensor.name = name if tensor.name == output else tensor.name


def drop_stale_values(graph: GraphProto) -> None:
    """Drops what the graph says of tensors that no node makes any more."""
    made = {name for node in graph.node for name in node.output} - {value.name for value in graph.output}
    kept = [value for value in graph.value_info if value.name in made]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def replace_values(values: MutableSequence[ValueInfoProto], wanted: Iterable[ValueInfoProto]) -> None:
    """Makes `wanted` the inputs, outputs or descriptions `values` of a graph."""
    kept = list(wanted)
    del values[:]
    values.extend(kept)


def drop_initializers(graph: GraphProto, names: Collection[str]) -> int:
    """Drops the initializers of these names, without copying the others, and says how many."""
    gone = [index for index, tensor in enumerate(graph.initializer) if tensor.name in names]
    for index in reversed(gone):
        del graph.initializer[index]
    return len(gone)


def inlined(branch: GraphProto, outputs: Sequence[str], taken: set[str]) -> list[NodeProto]:
    """The nodes of `branch` as nodes of the graph around it, where they give `outputs`.

    Args:
        branch: A graph without inputs; changed: its initializers get the names that they have outside.
        outputs: What its outputs are called outside, in order; empty for one that nobody reads.
        taken: The names of the graph around; what is given to the branch is added.
    """
    from onnx import helper

    made = {name for node in branch.node for name in node.output if name}
    new_name: dict[str, str] = {}
    for value, name in zip(branch.output, outputs, strict=True):
        if name and value.name in made:
            new_name.setdefault(value.name, name)
    for name in sorted(own_names(branch) - new_name.keys()):
        new_name[name] = fresh(name, taken)
    nodes = list(branch.node)
    rename_reads(nodes, new_name)
    for node in nodes:
        node.output[:] = [new_name.get(name, name) for name in node.output]
    for tensor in branch.initializer:
        tensor.name = new_name[tensor.name]
    for value, name in zip(branch.output, outputs, strict=True):
        source = new_name.get(value.name, value.name)
        if name and source != name:
            nodes.append(helper.make_node("Identity", [source], [name]))
    return nodes


def replace_initializers(graph: GraphProto, tensors: Iterable[TensorProto]) -> None:
    """Makes `tensors` the initializers of `graph`."""
    kept = list(tensors)
    del graph.initializer[:]
    graph.initializer.extend(kept)


def adopt_weights(model: ModelProto) -> None:
    """Takes every initializer as a weight, also one that is listed as an input with a default value.

    IR version 3 had to list them so, and exporters went on for years; TensorRT's parser reads all of them as weights.
    The inputs that a caller must feed stay as they are.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) < len(model.graph.input):
        del model.graph.input[:]
        model.graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, 4)


def adopt_constants(graph: GraphProto) -> int:
    """Turns the `Constant` nodes of `graph` and of its subgraphs into initializers and says how many.

    Sparse ones stay nodes.
    """
    tensors, kept, inside = [], [], 0
    for node in graph.node:
        inside += sum(map(adopt_constants, subgraphs(node)))
        tensor = _constant_tensor(node)
        if tensor is None:
            kept.append(node)
        else:
            tensor.name = node.output[0]
            tensors.append(tensor)
    if tensors:
        replace_nodes(graph, kept)
        graph.initializer.extend(tensors)
    return len(tensors) + inside


def _constant_tensor(node: NodeProto) -> TensorProto | None:
    from onnx import TensorProto, helper

    if node.op_type != "Constant" or node.domain not in ("", "ai.onnx") or len(node.attribute) != 1:
        return None
    attribute = node.attribute[0]
    if attribute.name == "value":
        tensor: TensorProto = attribute.t
        return tensor
    kinds = {"value_float": TensorProto.FLOAT, "value_int": TensorProto.INT64, "value_string": TensorProto.STRING}
    kind = kinds.get(attribute.name.removesuffix("s"))
    if kind is None:
        return None
    value = helper.get_attribute_value(attribute)
    many = attribute.name.endswith("s")
    made: TensorProto = helper.make_tensor("", kind, [len(value)] if many else [], value if many else [value])
    return made
