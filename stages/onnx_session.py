"""ONNX Runtime sessions of models whose weights may lie in external files: they are mapped, not loaded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stages import onnx_data, onnx_file, onnx_opset
from stages.onnx_graph import MAX_ORT_IR

if TYPE_CHECKING:
    from onnx import ModelProto


def open_session(model: ModelProto, options: Any) -> Any:
    """An `onnxruntime.InferenceSession` of `model` on the CPU.

    Weights that lie in external files are used where they are: a model of 2.25 GiB then loads in 0.01 s and 33 MB.
    `add_external_initializers` would copy them (2.4 GB, 6 s), and so do graph optimizations and the packing of weights
    for matrix products: a model with external weights goes without.

    A model newer than ONNX Runtime is declared as old as it loads, where all its operators mean the same there.

    Args:
        model: As `onnx_file.read` gives it; unchanged.
        options: An `onnxruntime.SessionOptions`; changed where weights are external.

    Raises:
        Exception: Whatever ONNX Runtime raises: its errors have no common base.
    """
    import onnxruntime as ort

    if any(map(onnx_data.is_external, model.graph.initializer)):
        model = _relative_to_root(model)
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/")
        options.add_session_config_entry("session.disable_prepacking", "1")
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    onnx_file.require_one_file(model, "the model without its external data")
    with _declared_older(model):
        content = model.SerializeToString()
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


@contextmanager
def _declared_older(model: ModelProto) -> Iterator[None]:
    ir_version, imports = model.ir_version, list(model.opset_import)
    versions = [entry.version for entry in imports]
    model.ir_version = min(ir_version, MAX_ORT_IR)
    for entry in imports:
        if entry.domain in ("", "ai.onnx"):
            entry.version = onnx_opset.for_onnx_runtime(onnx_file.iter_nodes(model), entry.version)
    try:
        yield
    finally:
        model.ir_version = ir_version
        for entry, version in zip(imports, versions, strict=True):
            entry.version = version


def _relative_to_root(model: ModelProto) -> ModelProto:
    """A copy of `model` whose locations lie below `/`: ONNX Runtime refuses absolute ones."""
    copy = onnx_file.without_initializers(model)
    for tensor in model.graph.initializer:
        copy.graph.initializer.append(tensor)
        if onnx_data.is_external(tensor):
            at = onnx_data.place(tensor)
            onnx_data.put(copy.graph.initializer[-1], str(at.path.relative_to("/")), at.offset, at.length)
    return copy
