"""Lowering a graph from float32 to float16 or bfloat16, node by node, in the graph's order.

A node is low if an operator schema lets its float32 inputs be low and ONNX's type inference says that a float32 result
then is low too. Casts stand only where a low and a float32 node meet, one per tensor; weights are converted in place.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages import onnx_file, onnx_graph, onnx_shapes
from stages.quantization import is_weighted
from stages.stage import StageError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto, TypeProto
    from onnx.defs import OpSchema

FLOAT = 1
"""`TensorProto.FLOAT`: float32."""

RECURRENT = ("GRU", "LSTM", "RNN")
"""Weighted operators beside those that INT8 knows."""

UNSUPPORTED = {"BFLOAT16": ("ConvTranspose",)}
"""What TensorRT-RTX 1.7 cannot build though the schema allows it (`Could not infer output types for operation`)."""


@dataclass
class Lowered:
    """What was done.

    Attributes:
        low: How many nodes compute in the low type.
        kept: How many nodes with float32 results do not.
        kept_weighted: Those of them that have weights, by label.
        out_of_range: Nodes kept because a constant of theirs would become infinite or zero, by label.
        casts: How many Casts were inserted.
    """

    low: int = 0
    kept: int = 0
    kept_weighted: list[str] = field(default_factory=list)
    out_of_range: list[str] = field(default_factory=list)
    casts: int = 0


def lower(model: ModelProto, precision: str, keep: Collection[str] = (), keep_io_types: bool = True) -> Lowered:
    """Lowers `model` in place; its nodes are sorted, its constants are initializers.

    Args:
        model: Nodes with subgraphs, and what the subgraphs read, stay float32.
        precision: The name of ONNX's type: `FLOAT16` or `BFLOAT16`.
        keep: Labels of nodes that stay float32.
        keep_io_types: Inputs and outputs stay float32. If not, they become low, but for those that a subgraph reads.

    Raises:
        StageError: The types of the model's tensors cannot be inferred.
    """
    lowering = _Lowering(model, precision, keep, keep_io_types)
    for node in model.graph.node:
        lowering.take(node)
    lowering.finish()
    return lowering.done


class _Lowering:
    """The state of one pass: what type each name has now, and what it is called in the other type."""

    def __init__(self, model: ModelProto, precision: str, keep: Collection[str], keep_io_types: bool) -> None:
        from onnx import TensorProto

        self.done = Lowered()
        self._model, self._keep, self._precision = model, keep, precision
        self._low = int(TensorProto.DataType.Value(precision))
        self._suffix = {self._low: {"FLOAT16": "fp16", "BFLOAT16": "bf16"}[precision], FLOAT: "fp32"}
        self._types = _types(model)
        self._now = {name: type_.tensor_type.elem_type for name, type_ in self._types.items()}
        self._weights = {tensor.name: tensor for tensor in model.graph.initializer}
        self._variants: dict[tuple[str, int], str] = {}
        self._converted: dict[str, TensorProto | None] = {}
        self._host = _shape_arithmetic(model)
        self._taken = onnx_graph.names(model.graph)
        self._nodes: list[NodeProto] = []
        self._captured = onnx_graph.captured(model.graph)
        io_type = FLOAT if keep_io_types else self._low
        outputs = [value.name for value in model.graph.output if self._is_float(value.name)]
        self._wanted = {**dict.fromkeys(outputs, io_type), **dict.fromkeys(self._captured, FLOAT)}
        if not keep_io_types:
            self._lower_inputs()

    def take(self, node: NodeProto) -> None:
        """Adds `node` in the type that it can have."""
        slots = self._lowerable(node)
        if slots and not self._fit(node, slots):
            self.done.out_of_range.append(onnx_graph.label(node))
            slots = set()
        results = self._results(node, slots) if slots else {}
        low_results = {name for name, type_ in results.items() if type_ == self._low and self._is_float(name)}
        if low_results or (slots and node.op_type == "QuantizeLinear"):
            self.done.low += 1
            self._add(node, slots, low_results)
            return
        if any(self._is_float(name) for name in node.output):
            self.done.kept += 1
            if is_weighted(node) or node.op_type in RECURRENT:
                self.done.kept_weighted.append(onnx_graph.label(node))
        self._add(node, self._as_they_come(node, slots), set())

    def finish(self) -> None:
        """Makes the new nodes, weights and types the model's."""
        graph = self._model.graph
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
                value.type.tensor_type.elem_type = self._now[value.name] = self._low

    def _lowerable(self, node: NodeProto) -> set[int]:
        """The indices of the float32 inputs of `node` that may become low; none where the node must stay."""
        schema = _schema(node, self._model)
        names = [name for name in (*node.input, *node.output) if name]
        if schema is None or any(onnx_graph.subgraphs(node)) or onnx_graph.label(node) in self._keep:
            return set()
        if node.op_type in UNSUPPORTED.get(self._precision, ()) or self._host.issuperset(node.output):
            return set()
        if any(n not in self._types or not self._types[n].HasField("tensor_type") for n in names):
            return set()  # sequences, optionals, and results of operators that ONNX does not know
        admitted = {
            constraint.type_param_str
            for constraint in schema.type_constraints
            if f"tensor({self._precision.lower()})" in constraint.allowed_type_strs
        }
        return {
            index for index, kind in _input_kinds(node, schema) if self._is_float_input(node, index, kind, admitted)
        }

    def _is_float_input(self, node: NodeProto, index: int, kind: str, admitted: set[str]) -> bool:
        return kind in admitted and self._is_float(node.input[index])

    def _fit(self, node: NodeProto, slots: set[int]) -> bool:
        """Whether each constant among the inputs survives: no overflow, no scale or scalar that becomes 0."""
        import numpy as np

        for index in slots:
            name = node.input[index]
            if name not in self._weights:
                continue
            converted = self._convert(name)
            if converted is None:
                return False
            is_scale = index == 1 and node.op_type in ("QuantizeLinear", "DequantizeLinear")
            if is_scale or not self._weights[name].dims:
                exact = onnx_file.array(self._weights[name])
                if np.any((exact != 0) & (onnx_file.array(converted) == 0)):
                    return False
        return True

    def _convert(self, name: str) -> TensorProto | None:
        """The weight `name` in the low type, or None where a finite number would become infinite."""
        import numpy as np
        from onnx import helper, numpy_helper

        if name not in self._converted:
            exact = onnx_file.array(self._weights[name])
            with np.errstate(over="ignore"):
                low = np.asarray(exact.astype(helper.tensor_dtype_to_np_dtype(self._low)))
            overflows = np.any(np.isfinite(exact) & ~np.isfinite(low.astype(np.float32)))
            self._converted[name] = None if overflows else numpy_helper.from_array(low, name)
        return self._converted[name]

    def _results(self, node: NodeProto, slots: set[int]) -> dict[str, int]:
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
                    value.type.tensor_type.elem_type = self._low
        for name in filter(None, node.output):
            graph.output.add(name=name)
        sub = ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import, graph=graph)
        try:
            inferred = shape_inference.infer_shapes(sub)
        except Exception:  # the types do not go together (C++ raises several kinds): the node stays, and is counted
            return {}
        return {value.name: value.type.tensor_type.elem_type for value in inferred.graph.output}

    def _as_they_come(self, node: NodeProto, slots: set[int]) -> set[int]:
        """For a node without a low result, such as Shape or Greater: the inputs it takes low, because they are."""
        has_float_result = any(self._is_float(name) for name in node.output)
        if has_float_result or not any(self._now[node.input[index]] == self._low for index in slots):
            return set()
        return slots

    def _add(self, node: NodeProto, low_inputs: set[int], low_results: set[str]) -> None:
        """Adds `node` with its inputs in the types it wants, and Casts behind it where a result has another type."""
        from onnx import NodeProto

        new = NodeProto()
        new.CopyFrom(node)
        for index, name in enumerate(node.input):
            if self._is_float(name):
                new.input[index] = self._in_type(name, self._low if index in low_inputs else FLOAT)
        self._nodes.append(new)
        for index, name in enumerate(node.output):
            if not self._is_float(name):
                continue
            made = self._low if name in low_results else FLOAT
            wanted = self._wanted.get(name, made)
            self._now[name] = wanted
            if made != wanted:
                new.output[index] = self._variants[name, made] = self._other_name(name, made)
                self._cast(new.output[index], name, wanted)

    def _in_type(self, name: str, type_: int) -> str:
        """The name of the tensor `name` in `type_`, which is made if it does not exist yet."""
        if self._now[name] == type_:
            return name
        if (name, type_) not in self._variants:
            self._variants[name, type_] = self._other_name(name, type_)
            if name not in self._weights:
                self._cast(name, self._variants[name, type_], type_)
        return self._variants[name, type_]

    def _other_name(self, name: str, type_: int) -> str:
        return onnx_graph.fresh(f"{name}_{self._suffix[type_]}", self._taken)

    def _cast(self, source: str, result: str, type_: int) -> None:
        from onnx import helper

        name = onnx_graph.fresh(f"cast_{result}", self._taken)
        self._nodes.append(helper.make_node("Cast", [source], [result], name, to=type_))
        self.done.casts += 1

    def _rename_weights(self) -> None:
        """Stores the low weights: under the old name where nothing reads the float32 one any more."""
        graph = self._model.graph
        read = {name for node in graph.node for name in onnx_graph.reads(node)}
        read |= {value.name for value in graph.output}
        new_name, tensors = {}, []
        for name, tensor in self._weights.items():
            variant = self._variants.get((name, self._low))
            if variant is None or name in read:
                tensors.append(tensor)
            low = self._converted.get(name) if variant is not None else None
            if variant is not None and low is not None:
                low.name = variant if name in read else name
                new_name[variant] = low.name
                self._now[name] = FLOAT if name in read else self._low
                tensors.append(low)
        for node in graph.node:
            node.input[:] = [new_name.get(name, name) for name in node.input]
        onnx_graph.replace_initializers(graph, tensors)


def _types(model: ModelProto) -> dict[str, TypeProto]:
    try:
        return onnx_shapes.tensor_types(onnx_shapes.infer(model))
    except Exception as error:  # C++ raises InferenceError, RuntimeError and others
        raise StageError(
            f"the types of the model's tensors cannot be inferred: {onnx_graph.first_line(error)}",
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
