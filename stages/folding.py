"""Constant folding by our own means: what does not depend on the inputs is run by ONNX Runtime, once, here.

Libraries were measured on 5,416 cases made of ONNX's backend tests: polygraphy and graphsurgeon broke 582 (they
ignore `start` and `end` of `Shape`, which torch exports), onnxsim 101, onnxslim 344, ONNX Runtime 1,082.

All constant nodes of a graph are run together, as one model: a session costs 0.14 ms, and real models have hundreds
of such nodes. Where that fails they are run one by one, and the one that fails stays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import prod
from typing import TYPE_CHECKING

from stages import onnx_data, onnx_graph, onnx_opset, onnx_shapes
from stages.partial_shapes import PartialShapes, static_dims
from stages.wording import first_line

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Another result every time."""

LEFT_ALONE = RANDOM | {"Constant", "QuantizeLinear", "DequantizeLinear"}
"""Q/DQ around a weight is what tells TensorRT to keep it in INT8; folded, it would be a float weight again."""


@dataclass
class Folding:
    """How far folding may go, and what it did.

    Attributes:
        max_bytes: A result larger than this, and larger than the constants it is made of, stays a node.
        max_growth_bytes: The constants of the whole model never grow by more than this.
        folded: How many nodes became constants.
        branches: How many `If` with a constant condition became the branch that is taken.
        grown_bytes: By how much the constants have grown; negative where they shrank.
        left: Why a node with constant inputs stayed, by the node's label.
    """

    max_bytes: int
    max_growth_bytes: int
    folded: int = 0
    branches: int = 0
    grown_bytes: int = 0
    left: dict[str, str] = field(default_factory=dict)


def fold(model: ModelProto, inferred: ModelProto | None, done: Folding) -> bool:
    """Replaces what does not depend on the inputs by initializers, in one pass over the sorted graph.

    Subgraphs are entered; an `If` with a constant condition gives way to the branch that is taken.

    Args:
        model: Changed in place.
        inferred: The same nodes with their types, as `onnx_shapes.infer` gives them; None where inference failed.
        done: The limits, and what was done so far.

    Returns:
        Whether anything was changed.
    """
    return _Scope(model, model.graph, inferred.graph if inferred else None, {}, done).fold()


class _Left(Exception):  # noqa: N818 - not an error: the reason why a node stays as it is
    pass


class _Scope:
    """One graph, the top-level one or a subgraph, while it is folded.

    Nodes that can be folded are *pending* until something needs their values: they are run together then, and only
    results that others read are kept.
    """

    def __init__(
        self,
        model: ModelProto,
        graph: GraphProto,
        inferred: GraphProto | None,
        outer: Mapping[str, TensorProto],
        done: Folding,
    ) -> None:
        self.model, self.graph, self.inferred, self.done = model, graph, inferred, done
        own = onnx_graph.own_names(graph) if outer else set()
        self.known = {name: tensor for name, tensor in outer.items() if name not in own}
        self.own = onnx_graph.constants(graph)
        self.known.update(self.own)
        self.types = onnx_shapes.graph_types(inferred) if inferred is not None else {}
        self.partial = PartialShapes(self.types, self.known)
        self.readers = Counter(name for node in graph.node for name in onnx_graph.reads(node))
        self.readers.update(value.name for value in graph.output)
        self.kept: list[NodeProto] = []
        self.made: list[TensorProto] = []
        self.pending: list[NodeProto] = []
        self.promised: dict[str, int] = {}  # sizes in bytes of what the pending nodes give
        self.changed = self.unsorted = False

    def fold(self) -> bool:
        twins: Sequence[NodeProto | None] = self.inferred.node if self.inferred is not None else []
        for index, node in enumerate(self.graph.node):
            self._visit(node, twins[index] if index < len(twins) else None)
        self._run_pending()
        if self.changed:
            onnx_graph.replace_nodes(self.graph, self.kept)
            onnx_graph.drop_initializers(self.graph, {name for name in self.own if not self.readers[name]})
            self.graph.initializer.extend(tensor for tensor in self.made if self.readers[tensor.name])
        if self.unsorted:
            onnx_graph.sort(self.graph)
        return self.changed

    def _visit(self, node: NodeProto, twin: NodeProto | None) -> None:
        shape = self.partial.result(node)
        if shape is not None:
            self._replace(node, [shape])
            return
        if any(onnx_graph.subgraphs(node)):
            self._visit_subgraphs(node, twin)
            return
        if node.op_type == "Identity" and node.input[0] in self.known:
            self.known[node.output[0]] = self.known[node.input[0]]
        plain = _as_cast(node, self.types)
        if not self._is_constant(plain):
            self.kept.append(node)
            return
        try:
            self._accept(plain)
        except _Left as reason:
            self.done.left[onnx_graph.label(node)] = str(reason)
            self.kept.append(node)

    def _visit_subgraphs(self, node: NodeProto, twin: NodeProto | None) -> None:
        if any(name in self.promised for name in onnx_graph.reads(node)):
            self._run_pending()
        if node.op_type == "If" and node.domain in ("", "ai.onnx") and node.input[0] in self.known:
            branch = _taken_branch(node, self.known[node.input[0]])
            if branch is not None:
                self._inline(node, branch)
                return
        self.readers.subtract(onnx_graph.reads(node))
        twins = list(onnx_graph.subgraphs(twin)) if twin is not None else []
        for index, graph in enumerate(onnx_graph.subgraphs(node)):
            inner = _Scope(self.model, graph, twins[index] if index < len(twins) else None, self.known, self.done)
            self.changed |= inner.fold()
        self.readers.update(onnx_graph.reads(node))
        self.kept.append(node)

    def _inline(self, node: NodeProto, branch: GraphProto) -> None:
        """Puts the nodes of `branch` in the place of the `If` node; they are folded in the next round."""
        self.readers.subtract(onnx_graph.reads(node))
        del node.attribute[:]
        taken = onnx_graph.names(self.model.graph)
        taken |= {name for kept in self.kept for name in (*kept.input, *kept.output)}
        taken |= {tensor.name for tensor in self.made}
        nodes = onnx_graph.inlined(branch, list(node.output), taken)
        self.made += branch.initializer
        self.kept += nodes
        self.readers.update(name for inner in nodes for name in onnx_graph.reads(inner))
        self.done.branches += 1
        self.changed = True

    def _replace(self, node: NodeProto, results: Sequence[TensorProto]) -> None:
        self._release(node)
        self.done.folded += 1
        self.known.update({tensor.name: tensor for tensor in results})
        self.made += results
        self.done.grown_bytes += sum(map(onnx_data.nbytes, results))
        self.changed = True

    def _release(self, node: NodeProto) -> int:
        """Takes the reads of `node` away and says how many bytes of constants nobody reads any more."""
        freed = 0
        for name in onnx_graph.reads(node):
            self.readers[name] -= 1
            if not self.readers[name]:
                freed += self.promised.get(name, 0)
                freed += onnx_data.nbytes(self.own[name]) if name in self.own else 0
        return freed

    def _is_constant(self, node: NodeProto) -> bool:
        """Whether `node` gives the same result every time and may be replaced by it."""
        if node.domain not in KNOWN_DOMAINS or node.op_type in LEFT_ALONE:
            return False
        if node.op_type == "Dropout" and len(node.input) > 2:  # the third input says whether it is training
            return False
        if node.op_type == "Identity":  # of a constant it is dropped elsewhere, without a second copy of it
            return node.input[0] in self.promised
        return all(name in self.known or name in self.promised for name in node.input if name)

    def _accept(self, node: NodeProto) -> None:
        """Makes `node` pending.

        Raises:
            _Left: It cannot be run, or its result would be too large.
        """
        inputs = [name for name in node.input if name]
        for name in inputs:
            if name in self.known:
                _require_usable(self.known[name], self.done.max_bytes)
        sizes = self._sizes(node)
        if sizes is None:
            if any(name in self.promised for name in inputs):
                self._run_pending()
            if not all(name in self.known for name in inputs):
                raise _Left("what it reads could not be computed")
            sizes = _predicted_bytes(node, self.model, {name: self.known[name] for name in inputs})
        limit = max(self.done.max_bytes, *(self._bytes(name) for name in inputs), 0)
        self._require_room(sizes, limit, sum(self._bytes(name) for name in set(inputs) if self.readers[name] == 1))
        if None in sizes:  # such as NonZero: how much it gives shows only when it has run
            self._run_alone(node, limit)
            return
        names = [name for name in node.output if name]
        self.done.grown_bytes -= self._release(node)
        self.promised.update({name: size or 0 for name, size in zip(names, sizes, strict=True)})
        self.done.grown_bytes += sum(size or 0 for size in sizes)
        self.pending.append(node)

    def _bytes(self, name: str) -> int:
        return self.promised[name] if name in self.promised else onnx_data.nbytes(self.known[name])

    def _require_room(self, sizes: Iterable[int | None], limit: int, freed: int) -> None:
        given = [size for size in sizes if size is not None]
        if any(size > limit for size in given):
            raise _Left(f"its result is larger than {limit} bytes")
        if self.done.grown_bytes + sum(given) - freed > self.done.max_growth_bytes:
            raise _Left(f"the model would grow by more than {self.done.max_growth_bytes} bytes")

    def _sizes(self, node: NodeProto) -> list[int | None] | None:
        """The sizes of its results as the whole model's types have them; None where one is not known."""
        sizes = [_static_bytes(self.types.get(name)) for name in node.output if name]
        return None if None in sizes else sizes

    def _run_alone(self, node: NodeProto, limit: int) -> None:
        results = _run([node], self.model, self._feeds([node]), [name for name in node.output if name])
        sizes = [onnx_data.nbytes(tensor) for tensor in results]
        self._require_room(sizes, limit, 0)
        freed = self._release(node)
        self.done.grown_bytes += sum(sizes) - freed
        self._keep_results([node], results)

    def _run_pending(self) -> None:
        """Runs what is pending; results that nobody else reads are not kept."""
        if not self.pending:
            return
        nodes, self.pending = self.pending, []
        wanted = [name for name in self.promised if self.readers[name]]
        promised, self.promised = self.promised, {}
        try:
            results = _run(nodes, self.model, self._feeds(nodes), wanted) if wanted else []
            self._keep_results(nodes, results)
        except _Left:
            self.unsorted = True  # those that stay stand behind nodes that read them
            for node in nodes:
                self._run_one_of_many(node, promised)

    def _run_one_of_many(self, node: NodeProto, promised: Mapping[str, int]) -> None:
        names = [name for name in node.output if name]
        try:
            if not all(name in self.known for name in node.input if name):
                raise _Left("what it reads could not be computed")
            self._keep_results([node], _run([node], self.model, self._feeds([node]), names))
        except _Left as reason:
            self.done.left[onnx_graph.label(node)] = str(reason)
            self.done.grown_bytes -= sum(promised[name] for name in names)
            self.readers.update(onnx_graph.reads(node))
            self.kept.append(node)

    def _feeds(self, nodes: Sequence[NodeProto]) -> dict[str, TensorProto]:
        inner = {name for node in nodes for name in node.output}
        read = {name: None for node in nodes for name in node.input if name and name not in inner}
        return {name: self.known[name] for name in read}

    def _keep_results(self, nodes: Sequence[NodeProto], results: Sequence[TensorProto]) -> None:
        self.known.update({tensor.name: tensor for tensor in results})
        self.made += results
        self.done.folded += len(nodes)
        self.changed = True


def _as_cast(node: NodeProto, types: Mapping[str, TypeProto]) -> NodeProto:
    """`node`, or for a `CastLike` the `Cast` to the type, where that is known, of what it is to be like.

    torch exports the bias of a convolution that has none as Expand(CastLike(0, x)).
    """
    from onnx import helper

    if node.op_type != "CastLike" or node.domain not in ("", "ai.onnx"):
        return node
    like = types[node.input[1]].tensor_type.elem_type if node.input[1] in types else 0
    if not like:
        return node
    plain: NodeProto = helper.make_node("Cast", [node.input[0]], list(node.output), node.name, to=like)
    plain.attribute.extend(node.attribute)
    return plain


def _taken_branch(node: NodeProto, condition: TensorProto) -> GraphProto | None:
    """The branch that an `If` takes; None where it cannot stand alone."""
    from onnx import GraphProto

    values = onnx_data.array(condition).reshape(-1)
    name = "then_branch" if len(values) == 1 and values[0] else "else_branch"
    taken = next(attribute.g for attribute in node.attribute if attribute.name == name)
    if len(values) != 1 or taken.sparse_initializer:
        return None
    branch = GraphProto()
    branch.CopyFrom(taken)
    return branch


def _require_usable(tensor: TensorProto, max_bytes: int) -> None:
    if tensor.data_type not in _numpy_types():
        raise _Left(f"numpy has no type for an input of it (ONNX type {tensor.data_type})")
    if onnx_data.is_external(tensor) and onnx_data.nbytes(tensor) > max_bytes:
        raise _Left(f"it would load {onnx_data.nbytes(tensor)} bytes of weights that are kept in another file")


def _static_bytes(type_: TypeProto | None) -> int | None:
    """The size of a tensor of a type that numpy has and whose dims are all known; None for every other."""
    from onnx import helper

    if type_ is None or type_.tensor_type.elem_type not in _numpy_types():
        return None
    dims = static_dims(type_)
    if dims is None or None in dims:
        return None
    return prod(d or 0 for d in dims) * int(helper.tensor_dtype_to_np_dtype(type_.tensor_type.elem_type).itemsize)


def _submodel(
    nodes: Sequence[NodeProto], model: ModelProto, feeds: Mapping[str, TensorProto], wanted: Iterable[str]
) -> ModelProto:
    """A model of `nodes` alone, with their constants as inputs, so that no weight is serialized."""
    from onnx import GraphProto, ModelProto, helper

    graph = GraphProto(name="constant", node=nodes)
    for name, tensor in feeds.items():
        graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    for name in wanted:
        graph.output.add(name=name)
    ir_version = min(model.ir_version, onnx_graph.MAX_ORT_IR)
    return ModelProto(ir_version=ir_version, opset_import=model.opset_import, graph=graph)


def _predicted_bytes(node: NodeProto, model: ModelProto, feeds: Mapping[str, TensorProto]) -> list[int | None]:
    """The sizes of the results as far as shape inference knows them, before memory is spent on them.

    A 24 KiB model with Expand, Tile and ConstantOfShape made files of 49 MB with four of the libraries tried.
    """
    from onnx import shape_inference

    names = [name for name in node.output if name]
    sub = _submodel([node], model, feeds, names)
    sub.graph.initializer.extend(_renamed(t, name) for name, t in feeds.items() if onnx_shapes.is_light(t))
    try:
        inferred = shape_inference.infer_shapes(sub, data_prop=True)
    except Exception as error:  # C++ raises InferenceError, RuntimeError and others
        raise _Left(f"its shape cannot be inferred: {first_line(error)}") from error
    return [_static_bytes(value.type) for value in inferred.graph.output]


def _renamed(tensor: TensorProto, name: str) -> TensorProto:
    from onnx import TensorProto

    copy = TensorProto()
    copy.CopyFrom(tensor)
    copy.name = name
    return copy


def _run(
    nodes: Sequence[NodeProto], model: ModelProto, feeds: Mapping[str, TensorProto], wanted: Sequence[str]
) -> list[TensorProto]:
    """The values of `wanted`.

    Raises:
        _Left: ONNX Runtime cannot run the nodes, or a result is of a type that it does not hand out.
    """
    import onnxruntime as ort
    from onnx import numpy_helper

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        sub = _submodel(nodes, model, feeds, wanted)
        for entry in sub.opset_import:
            if entry.domain in ("", "ai.onnx"):
                entry.version = onnx_opset.for_onnx_runtime(nodes, entry.version)
        session = ort.InferenceSession(sub.SerializeToString(), options, providers=["CPUExecutionProvider"])
        odd = next((value.type for value in session.get_outputs() if value.type not in _ORT_TYPES), None)
        if odd is not None:
            raise _Left(f"its result is a {odd}")
        arrays = session.run(None, {name: onnx_data.array(tensor) for name, tensor in feeds.items()})
    except _Left:
        raise
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise _Left(f"ONNX Runtime: {first_line(error)}") from error
    return [numpy_helper.from_array(array, name) for name, array in zip(wanted, arrays, strict=True)]


_PLAIN: tuple[str, ...] = ("bool", "double", "float", "float16", "int16", "int32", "int64", "int8")
_PLAIN += ("uint16", "uint32", "uint64", "uint8")
_ORT_TYPES = frozenset(f"tensor({name})" for name in _PLAIN)
"""The types that numpy and ONNX Runtime exchange."""


@cache
def _numpy_types() -> frozenset[int]:
    from onnx import TensorProto

    return frozenset(TensorProto.DataType.Value(name.upper()) for name in _PLAIN)
