"""Inputs and outputs change their type; the model itself computes as before, with a Cast at its border."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages import onnx_graph
from stages.allowed import require
from stages.passes.contract import Pass
from stages.stage import Metrics, StageError

if TYPE_CHECKING:
    from onnx import ModelProto, ValueInfoProto

DTYPES: tuple[str, ...] = ("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
DTYPES += ("float16", "bfloat16", "float32", "float64")


@dataclass(frozen=True)
class Options:
    """The new types, in numpy's words, by the names of inputs and outputs.

    Attributes:
        inputs: Such as `{images: float16}`.
        outputs: Such as `{labels: int32}`.
    """

    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key, wanted in (("inputs", self.inputs), ("outputs", self.outputs)):
            for name, dtype in wanted.items():
                require(dtype in DTYPES, f"{key}.{name}", dtype, ", ".join(DTYPES))


def cast_io(model: ModelProto, options: Options) -> Metrics:
    """Casts them.

    Raises:
        StageError: There is no input or output of that name, or it is no tensor of numbers.
    """
    from onnx import helper

    graph = model.graph
    taken = onnx_graph.names(graph)
    casts = []
    for name, dtype in options.inputs.items():
        value = _find(graph.input, name, "inputs")
        before, inside = value.type.tensor_type.elem_type, onnx_graph.fresh(f"{name}_cast", taken)
        if before != _elem_type(dtype):
            onnx_graph.rename_reads(graph.node, {name: inside})
            casts.append(helper.make_node("Cast", [name], [inside], inside, to=before))
            value.type.tensor_type.elem_type = _elem_type(dtype)
    onnx_graph.replace_nodes(graph, [*casts, *graph.node])
    for name, dtype in options.outputs.items():
        value, inside = _find(graph.output, name, "outputs"), onnx_graph.fresh(f"{name}_uncast", taken)
        if value.type.tensor_type.elem_type != _elem_type(dtype):
            onnx_graph.set_aside(graph, name, inside)
            graph.node.append(helper.make_node("Cast", [inside], [name], inside, to=_elem_type(dtype)))
            value.type.tensor_type.elem_type = _elem_type(dtype)
    return {"inputs": dict(options.inputs), "outputs": dict(options.outputs)}


def _find(values: Iterable[ValueInfoProto], name: str, key: str) -> ValueInfoProto:
    from onnx import TensorProto

    found = {value.name: value for value in values}
    onnx_graph.require_known(name, found, f"cast_io.{key}", key.removesuffix("s"))
    value = found[name]
    if value.type.tensor_type.elem_type in (TensorProto.UNDEFINED, TensorProto.STRING):
        raise StageError(f"cast_io.{key}: {name!r} is no tensor of numbers", f"leave it out of cast_io.{key}")
    return value


def _elem_type(dtype: str) -> int:
    from onnx import TensorProto

    names = {"float32": "FLOAT", "float64": "DOUBLE"}
    return int(TensorProto.DataType.Value(names.get(dtype, dtype.upper())))


PASS = Pass("cast_io", Options, cast_io)
