"""Dynamic dims are fixed, and fixed ones freed: by their name, or by the shape of an input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages import onnx_graph, onnx_shapes
from stages.allowed import require
from stages.passes.contract import Pass
from stages.stage import Metrics, StageError

if TYPE_CHECKING:
    from onnx import ModelProto, TensorShapeProto, ValueInfoProto


@dataclass(frozen=True)
class Options:
    """The new dims: a number fixes one, a name frees it, null leaves it without either.

    Attributes:
        dims: By the names that dims have: `{batch: 8}`.
        inputs: Whole shapes by the names of inputs: `{x: [batch, 3, 224, 224]}`.
    """

    dims: dict[str, int | str | None] = field(default_factory=dict)
    inputs: dict[str, list[int | str | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shapes = [*((f"dims.{name}", [dim]) for name, dim in self.dims.items())]
        shapes += [(f"inputs.{name}", dims) for name, dims in self.inputs.items()]
        for key, dims in shapes:
            require(all(dim is None or isinstance(dim, str) or dim >= 0 for dim in dims), key, dims, "sizes from 0 on")


def set_dims(model: ModelProto, options: Options) -> Metrics:
    """Sets them; the shapes of everything else are inferred anew.

    Raises:
        StageError: No input has a dim of that name, there is no input of that name, or it has another rank.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.input}
    names = {dim.dim_param for value in graph.input for dim in value.type.tensor_type.shape.dim if dim.dim_param}
    for name in options.dims:
        onnx_graph.require_known(name, names, "set_dims.dims", "dim")
    for value in (*graph.input, *graph.output):
        for dim in value.type.tensor_type.shape.dim if value.type.HasField("tensor_type") else ():
            if dim.dim_param in options.dims:
                _set(dim, options.dims[dim.dim_param])
    for name, dims in options.inputs.items():
        onnx_graph.require_known(name, inputs, "set_dims.inputs", "input")
        _set_shape(inputs[name], dims)
    _infer_anew(model)
    return {"dims": dict(options.dims), "inputs": {name: list(dims) for name, dims in options.inputs.items()}}


def _set(dim: TensorShapeProto.Dimension, wanted: int | str | None) -> None:
    dim.Clear()
    if isinstance(wanted, int):
        dim.dim_value = wanted
    elif wanted is not None:
        dim.dim_param = wanted


def _set_shape(value: ValueInfoProto, dims: list[int | str | None]) -> None:
    shape = value.type.tensor_type.shape
    if value.type.tensor_type.HasField("shape") and len(shape.dim) != len(dims):
        raise StageError(
            f"set_dims.inputs: {value.name!r} has {len(shape.dim)} dims, and {dims} has {len(dims)}",
            f"give {len(shape.dim)} dims",
        )
    del shape.dim[:]
    shape.SetInParent()
    for dim in dims:
        _set(shape.dim.add(), dim)


def _infer_anew(model: ModelProto) -> None:
    """Outputs that nodes make say what follows from the inputs now; where nothing does, nothing is said."""
    graph = model.graph
    del graph.value_info[:]
    inferred, _ = onnx_shapes.infer_what_can_be(model)
    types = onnx_shapes.graph_types(inferred.graph) if inferred is not None else {}
    for value in graph.output:
        if value.name in types and value.type.HasField("tensor_type"):
            declared = value.type.tensor_type
            found = types[value.name].tensor_type
            if not found.HasField("shape"):
                declared.ClearField("shape")
            elif not _names_more(declared.shape, found.shape):
                declared.shape.CopyFrom(found.shape)


def _names_more(declared: TensorShapeProto, found: TensorShapeProto) -> bool:
    """Whether the inferred shape only lacks the names that the declared one has."""
    return len(declared.dim) == len(found.dim) and all(
        (one.dim_param and not other.HasField("dim_value")) or one == other
        for one, other in zip(declared.dim, found.dim, strict=True)
    )


PASS = Pass("set_dims", Options, set_dims)
