"""Which version of ONNX's operator set a model uses, and raising it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages import onnx_graph, onnx_shapes
from stages.stage import StageError

if TYPE_CHECKING:
    from onnx import ModelProto


def opset(model: ModelProto, domain: str = "") -> int:
    """The version of the operator set `domain` that `model` uses; 0 if it does not."""
    same = ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
    return next((entry.version for entry in model.opset_import if entry.domain in same), 0)


def raise_opset(model: ModelProto, version: int) -> None:
    """Converts `model` in place to `version` of ONNX's own operator set, if it uses an older one.

    Raises:
        StageError: The conversion failed, or gave a model that is not valid.
    """
    from onnx import checker, helper, version_converter

    old = opset(model)
    if not 0 < old < version:
        return
    try:
        converted = version_converter.convert_version(onnx_shapes.lighten(model), version)
        checker.check_model(converted)
    except Exception as error:  # the converter is C++ and raises RuntimeError, IndexError and others
        raise StageError(
            f"the model has opset {old}, needs {version}, and cannot be converted: {onnx_graph.first_line(error)}",
            f"export the model with opset {version} or newer",
        ) from error
    heavy = {tensor.name for tensor in model.graph.initializer} & {value.name for value in converted.graph.input}
    light = list(converted.graph.initializer)
    onnx_graph.replace_nodes(model.graph, converted.graph.node)
    onnx_graph.replace_initializers(model.graph, [*(t for t in model.graph.initializer if t.name in heavy), *light])
    del model.graph.value_info[:]
    model.graph.value_info.extend(converted.graph.value_info)
    imported = {entry.domain for entry in model.opset_import} | {"", "ai.onnx"}
    del model.opset_import[:]
    model.opset_import.extend(entry for entry in converted.opset_import if entry.domain in imported)
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for(list(model.opset_import), True))
    onnx_graph.adopt_constants(model.graph)  # the converter turns attributes into Constant nodes
