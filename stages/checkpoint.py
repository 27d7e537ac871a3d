"""New weights for an ONNX file: a safetensors file whose tensors take the place of the initializers of the same names.

What must be there is every *trained* initializer: each of two or more floating-point numbers, but for those that
steer a layer (`stages.structure`: the scales of a Resize). A lone number may be a weight or a constant that the
exporter wrote into the graph, such as an epsilon: it is taken where the checkpoint has it, and stays where not. So are
integers: shapes, indices and zero points belong to the graph, though a checkpoint may have them, too.

What must not be there is a tensor of floating-point numbers that the model does not have: it was trained, and would be
lost. Integers and booleans that the model does not have are the training's own, such as the `num_batches_tracked` of
PyTorch's batch normalisation, which no exporter writes; they are passed over, and the metrics name them.

Nothing is converted: a checkpoint in float16 is no checkpoint of a float32 model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages import onnx_data, onnx_file, onnx_graph, safetensors_file, structure
from stages.stage import JSON, StageError
from stages.tensor_tables import Difference, Spec, compare, counted, listed

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

SAVE_TENSORS = "save its tensors: safetensors.torch.save_file(module.state_dict(), 'net.safetensors')"
_SAVE_ARRAYS = "save all weights by name: safetensors.numpy.save_file(arrays, 'net.safetensors')"

MISTAKEN: tuple[tuple[bytes, str, str], ...] = (
    (
        b"PK\x03\x04",
        "a zip archive, such as torch.save writes: pickles in it can run code, and are never loaded",
        SAVE_TENSORS,
    ),
    (b"\x80", "a pickle, which can run code and is never loaded", SAVE_TENSORS),
    (b"\x93NUMPY", "an array of numpy", _SAVE_ARRAYS),
    (b"\x89HDF", "an HDF5 file", _SAVE_ARRAYS),
    (b"version https://git-lfs", "a Git LFS pointer, not the weights themselves", "fetch the file: git lfs pull"),
)
"""What people give instead of a safetensors file, by its first bytes: (first bytes, what it is, what to do)."""


@dataclass(frozen=True)
class Comparison:
    """A checkpoint held against a model.

    Attributes:
        differences: What keeps the one from being the other's; empty where it fits.
        passed_over: Tensors of the checkpoint that the model has no place for and that were not trained.
        kept: Initializers of the model that were not in the checkpoint and keep their values, but for integers.
    """

    differences: list[Difference]
    passed_over: list[str]
    kept: list[str]


def read(path: Path) -> dict[str, safetensors_file.Tensor]:
    """The tensors of the safetensors file at `path`, by name; their values are not read.

    Raises:
        StageError: It is no such file: says what it is, where its first bytes tell.
    """
    if path.is_dir():
        raise StageError(f"{path}: a directory, not a safetensors file", "give one of the files in it")
    if not path.is_file():
        raise StageError(f"{path}: no such file", "give the path of a safetensors file")
    with path.open("rb") as file:
        start = file.read(32)
    for first, what, next_step in MISTAKEN:
        if start.startswith(first):
            raise StageError(f"{path}: not a safetensors file: it is {what}", next_step)
    return safetensors_file.read(path)


def specs(tensors: Mapping[str, safetensors_file.Tensor]) -> dict[str, Spec]:
    """What the tensors of a safetensors file are, by name."""
    from onnx import TensorProto

    return {
        name: Spec(_dtype(TensorProto.DataType.Value(safetensors_file.DTYPES[tensor.dtype][0])), tensor.shape)
        for name, tensor in tensors.items()
    }


def model_specs(model: ModelProto) -> dict[str, Spec]:
    """What the initializers of `model` are, by name, those of its subgraphs too.

    Raises:
        StageError: Two have one name, as two branches of an `If` may: a checkpoint cannot say which it means; or one
            has a shape or type that is none.
    """
    found: dict[str, Spec] = {}
    for tensor in _initializers(model):
        if tensor.name in found:
            raise StageError(
                f"two initializers of the model, in subgraphs, are called '{tensor.name}': a checkpoint cannot say "
                "which of them it means",
                "export the ONNX file again, and give that: model.path=net.onnx",
            )
        onnx_data.nbytes(tensor)  # refuses shapes and types that are none
        found[tensor.name] = Spec(_dtype(tensor.data_type), tuple(map(int, tensor.dims)))
    return found


def hold_against(model: ModelProto, tensors: Mapping[str, safetensors_file.Tensor]) -> Comparison:
    """Compares a checkpoint with `model` by name, type and shape.

    Raises:
        StageError: Two initializers of the model have one name, or some are sparse.
    """
    _refuse_sparse(model)
    want, got = model_specs(model), specs(tensors)
    may_lack = want.keys() - _trained(model, want)
    may_add = {name for name, spec in got.items() if not spec.is_float}
    return Comparison(
        differences=compare(want, got, may_lack=may_lack, may_add=may_add),
        passed_over=sorted(may_add - want.keys()),
        kept=sorted(name for name in want.keys() - got.keys() if want[name].is_float),
    )


def put(model: ModelProto, path: Path) -> dict[str, JSON]:
    """Puts the tensors of the safetensors file at `path` into `model`, in place; large ones stay in that file.

    Returns:
        Metrics: `weights_taken` (how many), `weights_passed_over` and `weights_kept` (the names).

    Raises:
        StageError: It is no safetensors file, or not of this model: names what is missing, extra or different.
    """
    tensors = read(path)
    found = hold_against(model, tensors)
    if found.differences:
        raise StageError(
            f"{path} does not fit the model: {counted(found.differences)}: {listed(found.differences)}",
            "give a checkpoint of this model; where the exporter gave weights other names, shapes or types, export the "
            "ONNX file again and give that: model.path=net.onnx",
        )
    in_graph = {tensor.name for tensor in model.graph.initializer}
    taken = 0
    for tensor in _initializers(model):
        if tensor.name not in tensors:
            continue
        at = tensors[tensor.name].at
        tensor.CopyFrom(onnx_data.described(tensor))  # values may stand in any of a dozen fields
        onnx_data.put(tensor, str(at.path), at.offset, at.length)
        if at.length <= onnx_data.INLINE_BYTES or tensor.name not in in_graph:
            tensor.CopyFrom(onnx_data.inlined(tensor))
        taken += 1
    return {"weights_taken": taken, "weights_passed_over": found.passed_over, "weights_kept": found.kept}


def _trained(model: ModelProto, specs: Mapping[str, Spec]) -> set[str]:
    """The initializers that a checkpoint of `model` must have."""
    graph = model.graph
    # What a subgraph reads may be anything there, and what it holds itself: no one looks into it for what steers.
    inside = {tensor.name for tensor in _initializers(model)} - {tensor.name for tensor in graph.initializer}
    candidates = structure.weights(model) | onnx_graph.captured(graph) | inside
    return {name for name in candidates & specs.keys() if specs[name].is_float and not _is_single(specs[name])}


def _refuse_sparse(model: ModelProto) -> None:
    sparse = [tensor.values.name for graph in onnx_file.iter_graphs(model) for tensor in graph.sparse_initializer]
    if sparse:
        raise StageError(
            f"the model has sparse weights, which no checkpoint can replace: {', '.join(sorted(sparse)[:5])}",
            "export the ONNX file again, with the new weights: model.path=net.onnx",
        )


def _is_single(spec: Spec) -> bool:
    return all(size == 1 for size in spec.shape)


def _initializers(model: ModelProto) -> Iterator[TensorProto]:
    return (tensor for graph in onnx_file.iter_graphs(model) for tensor in graph.initializer)


def _dtype(data_type: int) -> str:
    import numpy as np
    import onnx

    if data_type == onnx.TensorProto.STRING:
        return "string"
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type)).name
