"""Lowering a graph from float32 to float16 and bfloat16, node by node, in the graph's order.

A node is low if an operator schema lets its float32 inputs be low and ONNX's type inference says that a float32 result
then is low too. Casts stand only where nodes of two types meet, one per tensor and type; weights are converted in
place. Between a DequantizeLinear and what reads it stands none: TensorRT takes the two for one kernel.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages import onnx_file, onnx_graph, onnx_shapes
from stages.placement.weighted import is_weighted
from stages.stage import StageError
from stages.wording import first_line

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, TypeProto
    from onnx.defs import OpSchema

FLOAT = 1
"""`TensorProto.FLOAT`: float32."""

SUFFIX = {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}
"""The types that a node may compute in, by ONNX's name, and what is added to the name of a tensor of that type."""

RECURRENT = ("GRU", "LSTM", "RNN")
"""Weighted operators beside those that INT8 knows."""

UNSUPPORTED = {"BFLOAT16": ("ConvTranspose",)}
"""What TensorRT-RTX 1.7 cannot build though the schema allows it (`Could not infer output types for operation`)."""

DIVISORS = {"Div": 1, "Log": 0, "Pow": 0, "Reciprocal": 0, "Sqrt": 0}
"""The input of each operator that must not become 0: it divides by it, or what divides comes from it."""


@dataclass
class Lowered:
    """What was done.

    Attributes:
        low: How many nodes compute in a low type.
        kept: How many nodes with float32 results do not.
        kept_weighted: Those of them that have weights, by label.
        out_of_range: Nodes kept because a constant of theirs would become infinite or zero, or because they divide by
            what was computed from one, by label.
        casts: How many Casts were inserted.
    """

    low: int = 0
    kept: int = 0
    kept_weighted: list[str] = field(default_factory=list)
    out_of_range: list[str] = field(default_factory=list)
    casts: int = 0


@dataclass(frozen=True)
class _Choice:
    """How a node computes: its inputs `slots` and its results `results` are of `type`, the others float32."""

    type: int = FLOAT
    slots: frozenset[int] = frozenset()
    results: frozenset[str] = frozenset()


def lower(
    model: ModelProto, precision: str, layers: Mapping[str, str] | None = None, keep_io_types: bool = True
) -> Lowered:
    """Lowers `model` in place; its nodes are sorted, its constants are initializers.

    Args:
        model: Nodes with subgraphs, and what the subgraphs read, stay float32.
        precision: One of `SUFFIX`: what every node computes in that `layers` says nothing of.
        layers: One of `SUFFIX` for each of these labels of nodes.
        keep_io_types: Inputs and outputs stay float32. If not, they become `precision`, but for those that a subgraph
            reads.

    Raises:
        StageError: The types of the model's tensors cannot be inferred.
    """
    lowering = _Lowering(model, precision, layers or {}, keep_io_types)
    for node in model.graph.node:
        lowering.take(node)
    lowering.finish()
    return lowering.done


class _Lowering:
    """The state of one pass: what type each name has now, and what it is called in other types."""

    def __init__(self, model: ModelProto, precision: str, layers: Mapping[str, str], keep_io_types: bool) -> None:
        from onnx import TensorProto

        self.done = Lowered()
        self._model, self._layers, self._precision = model, layers, precision
        self._number = {name: int(TensorProto.DataType.Value(name)) for name in SUFFIX}
        self._suffix = {number: SUFFIX[name] for name, number in self._number.items()}
        self._types = types_of(model)
        self._now = {name: type_.tensor_type.elem_type for name, type_ in self._types.items()}
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._variants: dict[str, dict[int, str]] = {}
        self._converted: dict[tuple[str, int], TensorProto | None] = {}
        self._fixed = _shape_arithmetic(model) | _scales_of_float4(model, self._types)
        self._tiny: set[str] = set()
        self._dequantizers: dict[str, NodeProto] = {}
        self._taken = onnx_graph.names(model.graph)
        self._nodes: list[NodeProto] = []
        self._captured = onnx_graph.captured(model.graph)
        self._io_type = FLOAT if keep_io_types else self._number[precision]
        outputs = [value.name for value in model.graph.output if self._is_float(value.name)]
        self._wanted = {**dict.fromkeys(outputs, self._io_type), **dict.fromkeys(self._captured, FLOAT)}
        if self._io_type != FLOAT:
            self._lower_inputs()

    def take(self, node: NodeProto) -> None:
        """Adds `node` in the type that it can have."""
        choice = self._choose(node)
        if choice.type != FLOAT:
            self.done.low += 1
        else:
            if any(self._is_float(name) for name in node.output):
                self.done.kept += 1
                if is_weighted(node) or node.op_type in RECURRENT:
                    self.done.kept_weighted.append(onnx_graph.label(node))
            choice = self._as_they_come(node)
        if node.op_type == "DequantizeLinear":
            self._dequantizers[node.output[0]] = node
        self._add(node, choice)

    def finish(self) -> None:
        """Makes the new nodes, weights and types the model's."""
        graph = self._model.graph
        self._drop_unread_dequantizers()
        onnx_graph.replace_nodes(graph, self._nodes)
        self._rename_weights()
        for value in (*graph.value_info, *graph.output):
            if self._is_float(value.name):
                value.type.tensor_type.elem_type = self._now[value.name]

    def _is_float(self, name: str) -> bool:
        """Whether the tensor was float32 in the model as it came."""
        return name in self._types and self._types[name].tensor_type.elem_type == FLOAT

    def _lower_inputs(self) -> None:
        for value in self._model.graph.input:
            if self._is_float(value.name) and value.name not in self._captured:
                value.type.tensor_type.elem_type = self._now[value.name] = self._io_type

    def _choose(self, node: NodeProto) -> _Choice:
        """How `node` can compute; float32 where it has no low result."""
        precision = self._layers.get(onnx_graph.label(node), self._precision)
        slots = self._lowerable(node, precision)
        type_ = self._number[precision]
        if not slots:
            return _Choice()
        if not self._fit(node, slots, type_):
            self.done.out_of_range.append(onnx_graph.label(node))
            return _Choice()
        results = self._results(node, slots, type_)
        low = frozenset(name for name, made in results.items() if made == type_ and self._is_float(name))
        return _Choice(type_, slots, low) if low or node.op_type == "QuantizeLinear" else _Choice()

    def _lowerable(self, node: NodeProto, precision: str) -> frozenset[int]:
        """The indices of the float32 inputs of `node` that may become low; none where the node must stay."""
        schema = _schema(node, self._model)
        names = [name for name in (*node.input, *node.output) if name]
        if precision == "FLOAT" or schema is None or any(onnx_graph.subgraphs(node)):
            return frozenset()
        if node.op_type in UNSUPPORTED.get(precision, ()) or self._fixed.issuperset(node.output):
            return frozenset()
        if any(n not in self._types or not self._types[n].HasField("tensor_type") for n in names):
            return frozenset()  # sequences, optionals, and results of operators that ONNX does not know
        admitted = {
            constraint.type_param_str
            for constraint in schema.type_constraints
            if f"tensor({precision.lower()})" in constraint.allowed_type_strs
        }
        return frozenset(
            index
            for index, kind in _input_kinds(node, schema)
            if kind in admitted and self._is_float(node.input[index])
        )

    def _fit(self, node: NodeProto, slots: frozenset[int], type_: int) -> bool:
        """Whether each constant among the inputs survives: no overflow, no scale, divisor or scalar that becomes 0.

        What is computed with a scalar that would become 0, such as `norm + 1e-12`, can be as small as that: its square
        root, and what divides by it, stay in float32 as well.
        """
        import numpy as np

        divisor = DIVISORS.get(node.op_type)
        if divisor in slots and node.input[divisor] in self._tiny:
            self._tiny.update(node.output if node.op_type == "Sqrt" else ())
            return False
        for index in slots:
            name = node.input[index]
            if name not in self._weights:
                continue
            converted = self._convert(name, type_)
            if converted is None:
                return False
            is_scale = index == 1 and node.op_type in ("QuantizeLinear", "DequantizeLinear")
            if is_scale or index == divisor or not self._weights[name].dims:
                exact = onnx_file.array(self._weights[name])
                if np.any((exact != 0) & (onnx_file.array(converted) == 0)):
                    self._tiny.update(() if is_scale else node.output)
                    return False
        return True

    def _convert(self, name: str, type_: int) -> TensorProto | None:
        """The weight `name` in the type `type_`, or None where a finite number would become infinite."""
        import numpy as np
        from onnx import helper, numpy_helper

        if (name, type_) not in self._converted:
            exact = onnx_file.array(self._weights[name])
            with np.errstate(over="ignore"):
                low = np.asarray(exact.astype(helper.tensor_dtype_to_np_dtype(type_)))
            overflows = np.any(np.isfinite(exact) & ~np.isfinite(low.astype(np.float32)))
            self._converted[name, type_] = None if overflows else numpy_helper.from_array(low, name)
        return self._converted[name, type_]

    def _results(self, node: NodeProto, slots: frozenset[int], type_: int) -> dict[str, int]:
        """The types of the results of `node` when the inputs `slots` are low, asked of ONNX's inference."""
        from onnx import GraphProto, ModelProto, NodeProto, shape_inference

        probe = NodeProto()
        probe.CopyFrom(node)
        probe.input[:] = [f"in{index}" if name else "" for index, name in enumerate(node.input)]
        graph = GraphProto(name="probe", node=[probe])
        for index, name in enumerate(node.input):
            if name:
                value = graph.input.add(name=f"in{index}", type=self._types[name])
                if index in slots:
                    value.type.tensor_type.elem_type = type_
        for name in filter(None, node.output):
            graph.output.add(name=name)
        sub = ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import, graph=graph)
        try:
            inferred = shape_inference.infer_shapes(sub)
        except Exception:  # the types do not go together (C++ raises several kinds): the node stays, and is counted
            return {}
        return {value.name: value.type.tensor_type.elem_type for value in inferred.graph.output}

    def _as_they_come(self, node: NodeProto) -> _Choice:
        """For a node without a low result, such as Shape or Greater: the inputs it takes low, because they are."""
        chosen = self._layers.get(onnx_graph.label(node)) == "FLOAT"
        if chosen or any(self._is_float(name) for name in node.output):
            return _Choice()
        found = {self._now[name] for name in node.input if self._is_float(name) and name not in self._weights}
        if len(found) != 1 or FLOAT in found:
            return _Choice()
        type_ = found.pop()
        name = next(name for name, number in self._number.items() if number == type_)
        slots = self._lowerable(node, name)
        return _Choice(type_, slots) if slots and self._fit(node, slots, type_) else _Choice()

    def _add(self, node: NodeProto, choice: _Choice) -> None:
        """Adds `node` with its inputs in the types it wants, and Casts behind it where a result has another type."""
        new = self._typed(node, choice)
        self._nodes.append(new)
        for index, name in enumerate(node.output):
            if not self._is_float(name):
                continue
            made = choice.type if name in choice.results else FLOAT
            wanted = self._wanted.get(name, made)
            self._now[name] = wanted
            if made != wanted:
                new.name = onnx_graph.label(node)  # people call an unnamed node by its first output
                new.output[index] = self._other_name(name, made)
                self._variants.setdefault(name, {})[made] = new.output[index]
                self._cast(new.output[index], name, wanted)

    def _typed(self, node: NodeProto, choice: _Choice) -> NodeProto:
        """A copy of `node` that reads its inputs in the types of `choice`."""
        from onnx import NodeProto

        new = NodeProto()
        new.CopyFrom(node)
        for index, name in enumerate(node.input):
            if self._is_float(name):
                new.input[index] = self._in_type(name, choice.type if index in choice.slots else FLOAT)
        return new

    def _in_type(self, name: str, type_: int) -> str:
        """The name of the tensor `name` in `type_`, which is made if it does not exist yet."""
        if self._now[name] == type_:
            return name
        variants = self._variants.setdefault(name, {})
        if type_ not in variants:
            variants[type_] = self._other_name(name, type_)
            if name in self._dequantizers:
                self._dequantize_again(self._dequantizers[name], variants[type_], type_)
            elif name not in self._weights:
                self._cast(name, variants[type_], type_)
        return variants[type_]

    def _dequantize_again(self, node: NodeProto, result: str, type_: int) -> None:
        """Adds `node`, a DequantizeLinear, once more with a result of `type_`: a Cast would part it from its reader."""
        precision = next(name for name, number in self._number.items() if number == type_)
        slots = self._lowerable(node, precision)
        if type_ != FLOAT and not (slots and self._fit(node, slots, type_)):
            self._cast(node.output[0], result, type_)
            return
        again = self._typed(node, _Choice(type_, slots))
        again.name, again.output[0] = onnx_graph.fresh(f"{onnx_graph.label(node)}_again", self._taken), result
        self._nodes.append(again)

    def _drop_unread_dequantizers(self) -> None:
        """Drops each DequantizeLinear that all readers have in another type."""
        read = {name for node in self._nodes for name in onnx_graph.reads(node)} | self._wanted.keys()
        self._nodes = [
            node for node in self._nodes if node.op_type != "DequantizeLinear" or not read.isdisjoint(node.output)
        ]

    def _other_name(self, name: str, type_: int) -> str:
        return onnx_graph.fresh(f"{name}_{self._suffix[type_]}", self._taken)

    def _cast(self, source: str, result: str, type_: int) -> None:
        from onnx import helper

        name = onnx_graph.fresh(f"cast_{result}", self._taken)
        self._nodes.append(helper.make_node("Cast", [source], [result], name, to=type_))
        self.done.casts += 1

    def _rename_weights(self) -> None:
        """Stores the low weights: one of them under the old name where nothing reads the float32 one any more."""
        graph = self._model.graph
        read = {name for node in graph.node for name in onnx_graph.reads(node)}
        read |= {value.name for value in graph.output}
        new_name, tensors = {}, []
        for name, tensor in self._weights.items():
            variants = {type_: other for type_, other in self._variants.get(name, {}).items() if other in read}
            in_use = name in read
            if in_use or not variants:
                tensors.append(tensor)
            else:
                self._now[name] = next(iter(variants))
            for type_, variant in variants.items():
                low = self._converted[name, type_]
                assert low is not None, variant  # noqa: S101 - `_fit` let no other become an input
                low.name = variant if in_use else name
                new_name[variant] = low.name
                tensors.append(low)
                in_use = True
        for node in graph.node:
            node.input[:] = [new_name.get(name, name) for name in node.input]
        onnx_graph.replace_initializers(graph, tensors)


def types_of(model: ModelProto) -> dict[str, TypeProto]:
    """The type of every tensor of `model`, weights included.

    Raises:
        StageError: The types cannot be inferred.
    """
    try:
        return onnx_shapes.tensor_types(onnx_shapes.infer(model))
    except Exception as error:  # C++ raises InferenceError, RuntimeError and others
        raise StageError(
            f"the types of the model's tensors cannot be inferred: {first_line(error)}",
            "check the model: python -m onnx.checker",
        ) from error


def _schema(node: NodeProto, model: ModelProto) -> OpSchema | None:
    """The schema of the operator in the version that `model` uses; None if ONNX has none."""
    from onnx import defs

    from stages.onnx_opset import opset

    domain = "" if node.domain == "ai.onnx" else node.domain
    try:
        return defs.get_schema(node.op_type, opset(model, domain), domain)
    except defs.SchemaError:
        return None


def _input_kinds(node: NodeProto, schema: OpSchema) -> Iterator[tuple[int, str]]:
    """The index of each input that is given, and the type or type variable that the schema has for it."""
    formal = list(schema.inputs)
    for index, name in enumerate(node.input):
        if name and formal:
            yield index, formal[min(index, len(formal) - 1)].type_str


def _shape_arithmetic(model: ModelProto) -> set[str]:
    """The names computed from shapes alone: their numbers count elements, and float16 is exact only up to 2,048."""
    from_shapes: set[str] = set()
    constant = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:
        moving = onnx_graph.reads(node) - constant
        if node.op_type in ("Shape", "Size") or (moving and moving <= from_shapes):
            from_shapes.update(name for name in node.output if name)
    return from_shapes


def _scales_of_float4(model: ModelProto, types: Mapping[str, TypeProto]) -> set[str]:
    """The results that TensorRT takes in float32 only: of a DequantizeLinear of float4, and the scales it reads.

    With a float16 result TensorRT-RTX 1.7 cannot infer the type; the Cast behind a float32 one it takes along.
    """
    from onnx import TensorProto

    fixed: set[str] = set()
    for node in model.graph.node:
        codes = types.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if codes is not None and codes.tensor_type.elem_type == TensorProto.FLOAT4E2M1:
            fixed |= {node.output[0], node.input[1]}
    return fixed
