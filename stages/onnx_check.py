"""What every exported model is held to: ONNX's own rules, finite weights, and the opset that was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from stages import onnx_file
from stages.stage import StageError

if TYPE_CHECKING:
    import numpy as np
    import onnx

UNREGISTERED = "trtforge.unregistered"
"""The domain that operators unknown to ONNX stand in while the checker looks at everything else."""


def check_structure(model: onnx.ModelProto) -> list[str]:
    """Runs ONNX's checker over `model`, which is as it was afterwards, but for operators that ONNX does not know.

    TensorRT finds its plugins by the operator's name alone, so exporters write them into any domain, the default one
    included; whether a plugin is there is the builder's question. A model that the checker refuses, on the other hand,
    can crash TensorRT's parser. A node without outputs does, and in a foreign domain the checker does not look for it.

    Returns:
        The operators that were left out, sorted.

    Raises:
        StageError: The checker refuses the model.
    """
    import onnx

    for node in onnx_file.iter_nodes(model):
        if not node.output:
            raise StageError(f"node '{node.name}' ({node.op_type}) has no outputs", "remove it: nothing reads it")
    unregistered = list(_iter_unregistered(model))
    names = sorted({_operator(node) for node in unregistered})
    try:
        with _set_aside(model, unregistered), _shaped_outputs(model):
            onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise StageError(f"the model breaks ONNX's rules: {_plain(error)}", "export the model again") from error
    return names


@contextmanager
def _set_aside(model: onnx.ModelProto, unregistered: list[onnx.NodeProto]) -> Iterator[None]:
    """While it lasts, these nodes stand in a domain that the checker does not look into."""
    before = [node.domain if node.HasField("domain") else None for node in unregistered]
    bodies = (model, *model.functions)
    for body in bodies:
        body.opset_import.add(domain=UNREGISTERED, version=1)
    for node in unregistered:
        node.domain = UNREGISTERED
    try:
        yield
    finally:
        for body in bodies:
            del body.opset_import[-1]
        for node, domain in zip(unregistered, before, strict=True):
            # An empty domain and none are two serializations, and the bytes of the model must not change.
            node.ClearField("domain") if domain is None else setattr(node, "domain", domain)


@contextmanager
def _shaped_outputs(model: onnx.ModelProto) -> Iterator[None]:
    """While it lasts, every output has a shape: the checker wants one, ONNX Runtime and TensorRT do not."""
    types = (output.type.tensor_type for output in model.graph.output if output.type.HasField("tensor_type"))
    bare = [tensor_type for tensor_type in types if not tensor_type.HasField("shape")]
    for tensor_type in bare:
        tensor_type.shape.SetInParent()
    try:
        yield
    finally:
        for tensor_type in bare:
            tensor_type.ClearField("shape")


def _iter_unregistered(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    import onnx

    functions = {(function.domain, function.name) for function in model.functions}
    bodies = [(model.graph.node, model.opset_import), *((each.node, each.opset_import) for each in model.functions)]
    for nodes, imports in bodies:
        domains = {opset.domain for opset in imports}
        for node in onnx_file.walk(nodes):
            known = node.domain in domains and onnx.defs.has(node.op_type, node.domain)
            if not known and (node.domain, node.op_type) not in functions:
                yield node


def _operator(node: onnx.NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain else node.op_type


def _plain(error: Exception) -> str:
    """What the checker says, in one line that starts with the node it means, where it names one."""
    what = str(error).split("==> Context:")[0]
    node = re.search(r"[Nn]ame: (.*?) ?OpType: (\w+)", str(error))
    where = f"node '{node[1]}' ({node[2]}): " if node else ""
    return where + " ".join(what.split())


def refuse_nonfinite_weights(model: onnx.ModelProto) -> None:
    """Refuses NaN anywhere, and infinities where they are no bound (one value) and no mask (only 0 and -inf).

    Raises:
        StageError: Weights are not finite, or cannot be read.
    """
    import numpy as np

    for name, values in _iter_constants(model):
        if np.isfinite(values).all():
            continue
        nan, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
        is_mask = bool(((values == 0) | (values == -np.inf)).all())
        if nan or not (values.size == 1 or is_mask):
            raise StageError(
                f"weights '{name}' are not finite: {nan} NaN and {infinite} infinite of {values.size} values",
                "the training diverged or the file is damaged: export a good checkpoint",
            )


def _iter_constants(model: onnx.ModelProto) -> Iterator[tuple[str, np.ndarray]]:
    """Every floating-point constant of `model`, narrow types widened to float32."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    for name, tensor in onnx_file.iter_tensors(model):
        try:
            kind = TensorProto.DataType.Name(tensor.data_type)
            if "FLOAT" in kind or kind == "DOUBLE":
                array = numpy_helper.to_array(tensor)
                yield name, array if array.dtype.kind == "f" else array.astype(np.float32)
        except (ValueError, TypeError) as error:
            raise StageError(
                f"weights '{name}' of shape {list(tensor.dims)} cannot be read: {onnx_file.first_line(error)}",
                "export or download the model again",
            ) from error
    for node in onnx_file.iter_nodes(model):
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name in ("value_float", "value_floats"):
                yield node.output[0], np.asarray(helper.get_attribute_value(attribute), np.float32)


def require_opset(model: onnx.ModelProto, opset: int, next_step: str) -> None:
    """Holds a converted or exported `model` to the opset that was asked for.

    ONNX's converter and torch's have both answered with another one, and only warned.

    Raises:
        StageError: The model came out with another opset.
    """
    got = onnx_file.default_opset(model)
    if got != opset:
        raise StageError(f"opset {opset} was asked for, and the model came out with opset {got}", next_step)
