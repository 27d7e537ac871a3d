"""What every exported model is held to: ONNX's own rules, finite weights, and the opset that was asked for."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from stages import onnx_data, onnx_file
from stages.stage import StageError
from stages.wording import first_line

if TYPE_CHECKING:
    import numpy as np
    import onnx

UNREGISTERED = "trtforge.unregistered"
"""The domain that operators unknown to ONNX stand in while the checker looks at everything else."""


def check_structure(model: onnx.ModelProto) -> list[str]:
    """Runs ONNX's checker over `model`, but for operators that ONNX does not know and for the values of its weights.

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
    for tensor in model.graph.initializer:
        _check_size(tensor)
    light = _weightless(model)
    onnx_file.require_one_file(light, "the model without its initializers")
    unregistered = list(_iter_unregistered(light))
    names = sorted({_operator(node) for node in unregistered})
    _set_aside(light, unregistered)
    _shape_outputs(light)
    try:
        onnx.checker.check_model(light)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise StageError(f"the model breaks ONNX's rules: {_plain(error)}", "export the model again") from error
    return names


def _weightless(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` whose heavy initializers are empty: the checker takes whole models of up to 2 GiB only."""
    light = onnx_file.without_initializers(model)
    for tensor in model.graph.initializer:
        if not onnx_data.is_external(tensor) and not tensor.HasField("raw_data"):
            light.graph.initializer.append(tensor)  # the checker knows which field goes with which type
            continue
        empty = onnx_data.described(tensor)
        empty.dims[:] = [0]
        light.graph.initializer.append(empty)
    return light


def _check_size(tensor: onnx.TensorProto) -> None:
    """Holds raw values to the shape, which the checker does not."""
    needed = onnx_file.nbytes(tensor)
    if tensor.HasField("raw_data") and len(tensor.raw_data) != needed:
        raise StageError(
            f"weights '{tensor.name}' of shape {list(tensor.dims)} cannot be read: they have {len(tensor.raw_data)} "
            f"bytes instead of {needed}",
            "export or download the model again",
        )


def _set_aside(model: onnx.ModelProto, unregistered: list[onnx.NodeProto]) -> None:
    """Puts these nodes into a domain that the checker does not look into."""
    for body in (model, *model.functions):
        body.opset_import.add(domain=UNREGISTERED, version=1)
    for node in unregistered:
        node.domain = UNREGISTERED


def _shape_outputs(model: onnx.ModelProto) -> None:
    """Gives every output a shape: the checker wants one, ONNX Runtime and TensorRT do not."""
    for output in model.graph.output:
        if output.type.HasField("tensor_type") and not output.type.tensor_type.HasField("shape"):
            output.type.tensor_type.shape.SetInParent()


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

    for name, constant in _iter_constants(model):
        if all(np.isfinite(values).all() for values in constant()):
            continue
        size = nan = infinite = others = 0
        for values in constant():
            size += values.size
            nan += int(np.isnan(values).sum())
            infinite += int(np.isinf(values).sum())
            others += int(((values != 0) & (values != -np.inf)).sum())
        if nan or (size > 1 and others):
            raise StageError(
                f"weights '{name}' are not finite: {nan} NaN and {infinite} infinite of {size} values",
                "the training diverged or the file is damaged: export a good checkpoint",
            )


Constant: TypeAlias = "Callable[[], Iterator[np.ndarray]]"
"""Gives the values of a constant, piece by piece, as often as it is called."""


def _iter_constants(model: onnx.ModelProto) -> Iterator[tuple[str, Constant]]:
    """Every floating-point constant of `model`, narrow types widened to float32."""
    import numpy as np
    from onnx import TensorProto, helper

    for name, tensor in onnx_file.iter_tensors(model):
        kind = TensorProto.DataType.Name(tensor.data_type)
        if "FLOAT" in kind or kind == "DOUBLE":
            yield name, partial(_widened, name, tensor)
    for node in onnx_file.iter_nodes(model):
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name in ("value_float", "value_floats"):
                floats = np.asarray(helper.get_attribute_value(attribute), np.float32)
                yield node.output[0], lambda floats=floats: iter([floats])  # type: ignore[misc]


def _widened(name: str, tensor: onnx.TensorProto) -> Iterator[np.ndarray]:
    import numpy as np

    try:
        for values in onnx_data.pieces(tensor):
            yield values if values.dtype.kind == "f" else values.astype(np.float32)
    except (ValueError, TypeError) as error:
        raise StageError(
            f"weights '{name}' of shape {list(tensor.dims)} cannot be read: {first_line(error)}",
            "export or download the model again",
        ) from error


def require_opset(model: onnx.ModelProto, opset: int, next_step: str) -> None:
    """Holds a converted or exported `model` to the opset that was asked for.

    ONNX's converter and torch's have both answered with another one, and only warned.

    Raises:
        StageError: The model came out with another opset.
    """
    got = onnx_file.default_opset(model)
    if got != opset:
        raise StageError(f"opset {opset} was asked for, and the model came out with opset {got}", next_step)
