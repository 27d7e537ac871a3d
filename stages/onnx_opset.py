"""Which version of ONNX's operator set a model uses, and converting it to another."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from stages import onnx_graph, onnx_shapes
from stages.stage import StageError
from stages.wording import first_line

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

MAX_ORT_OPSET = 26
"""The newest that ONNX Runtime 1.31 loads; onnx 1.23 writes 28."""


def opset(model: ModelProto, domain: str = "") -> int:
    """The version of the operator set `domain` that `model` uses; 0 if it does not."""
    same = ("", "ai.onnx") if domain in ("", "ai.onnx") else (domain,)
    return next((entry.version for entry in model.opset_import if entry.domain in same), 0)


def raise_opset(model: ModelProto, version: int) -> None:
    """Converts `model` in place to `version` of ONNX's own operator set, if it uses an older one.

    Raises:
        StageError: The conversion failed, or gave a model that is not valid.
    """
    if 0 < opset(model) < version:
        convert(model, version, f"export the model with opset {version} or newer")


def convert(model: ModelProto, version: int, next_step: str) -> None:
    """Converts `model` in place to `version` of ONNX's own operator set, older or newer; its functions are inlined.

    The converter sees the model without its weights, which may be larger than the 2 GiB that it could take.

    Args:
        model: The model.
        version: The opset that is wanted.
        next_step: What a user does where it fails.

    Raises:
        StageError: The conversion failed, or gave a model that is not valid.
    """
    from onnx import checker, helper, inliner, version_converter

    old, light = opset(model), onnx_shapes.lighten(model)
    try:
        if light.functions:  # the converter drops them without a word, and leaves calls to nothing
            light = inliner.inline_local_functions(light)
        converted = version_converter.convert_version(light, version)
        checker.check_model(converted)
    except Exception as error:  # the converter is C++ and raises RuntimeError, IndexError and others
        # "/project/onnx/version_converter/x.h:23: adapt: Assertion `false` failed: No Previous Version of Gelu exists"
        reason = re.sub(r"^.*? failed: ", "", first_line(error))
        # "Op '%s' has no registered schema; cannot convert it from version %lld to %lld.Foo1122", as onnx prints it
        reason = re.sub(r"^.*no registered schema.*%lld\.(.*?)\d*$", r"ONNX has no operator \1", reason)
        raise StageError(f"the model cannot be converted from opset {old} to {version}: {reason}", next_step) from error
    heavy = {tensor.name for tensor in model.graph.initializer} & {value.name for value in converted.graph.input}
    light_tensors = list(converted.graph.initializer)
    onnx_graph.replace_nodes(model.graph, converted.graph.node)
    onnx_graph.replace_initializers(
        model.graph, [*(t for t in model.graph.initializer if t.name in heavy), *light_tensors]
    )
    del model.functions[:]
    del model.graph.value_info[:]
    model.graph.value_info.extend(converted.graph.value_info)
    imported = {entry.domain for entry in model.opset_import} | {"", "ai.onnx"}
    del model.opset_import[:]
    model.opset_import.extend(entry for entry in converted.opset_import if entry.domain in imported)
    model.ir_version = max(model.ir_version, helper.find_min_ir_version_for(list(model.opset_import), True))
    onnx_graph.adopt_constants(model.graph)  # the converter turns attributes into Constant nodes


def for_onnx_runtime(nodes: Iterable[NodeProto], declared: int) -> int:
    """The opset to declare to ONNX Runtime for `nodes`: its own newest, where they mean the same in that one.

    Args:
        nodes: All nodes, those of subgraphs too.
        declared: The opset of the model that they are of.
    """
    from onnx import defs

    if declared <= MAX_ORT_OPSET:
        return declared
    operators = {node.op_type for node in nodes if node.domain in ("", "ai.onnx")}
    try:
        newest = max((defs.get_schema(name, declared).since_version for name in operators), default=0)
    except defs.SchemaError:  # unknown to onnx, too: ONNX Runtime says so
        return declared
    return MAX_ORT_OPSET if newest <= MAX_ORT_OPSET else declared
