"""From an ONNX file to a parsed TensorRT network, with errors that name the operator and the node."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import onnx_data, onnx_file, structure
from stages.builder_log import plain
from stages.onnx_check import check_structure
from stages.stage import StageError
from stages.wording import first_line

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import onnx

_MOST_NODES_NAMED = 5
"""A model with one unsupported operator often has it 45 times."""


@dataclass(frozen=True)
class Model:
    """A model for TensorRT's parsers, which copy no weights: keep it until the build or the refit returns.

    Attributes:
        content: The serialized model without the weights that lie in external files.
        weights: These, as ONNX stores them, by name; mapped, not read.
        custom: Operators of domains that are not ONNX's, `acme::Foo`, by the name of their node.
        refittable: The names of the initializers that are weights, wherever they lie (see `stages.structure`).
    """

    content: bytes
    weights: Mapping[str, npt.NDArray[np.uint8]]
    custom: Mapping[str, str]
    refittable: Collection[str]


def read_model(paths: Sequence[Path]) -> Model:
    """`checked` of the model in these files: the ONNX file, and its data where it has any.

    Raises:
        StageError: The model cannot be read, or is no valid ONNX.
    """
    return checked(onnx_file.read(paths))


def checked(model: onnx.ModelProto) -> Model:
    """Checks an ONNX model, and gives each unnamed dynamic dimension a name of its own, in place.

    Args:
        model: As `onnx_file.read` gives it: its external weights are pinned.

    Raises:
        StageError: The model is no valid ONNX. Operators that ONNX does not know are left to the parser.
    """
    check_structure(model)
    name_dimensions(model)
    onnx_file.require_one_file(model, "the model without its external data")
    external = [tensor for tensor in model.graph.initializer if onnx_data.is_external(tensor)]
    weights = {tensor.name: onnx_data.mapped(tensor) for tensor in external}
    nodes = (node for node in onnx_file.walk(model.graph.node) if node.name and node.domain not in ("", "ai.onnx"))
    custom = {node.name: f"{node.domain}::{node.op_type}" for node in nodes}
    return Model(model.SerializeToString(), weights, custom, structure.weights(model))


def name_dimensions(model: onnx.ModelProto) -> None:
    """Names the inputs' unnamed dynamic dimensions, each differently.

    TensorRT-RTX takes two dimensions of one name for equal, and `?` is a name to it.
    """
    taken = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if onnx_file.dimension(dim) is None:
                dim.dim_param = _free_name(f"{value.name}_{axis}", taken)
                taken.add(dim.dim_param)


def parse(parser: Any, network: Any, model: Model) -> None:
    """Parses `model` into `network`.

    Raises:
        StageError: The parser refuses it: names operator, node and reason. Or the network came out empty.
    """
    load(parser, model)
    if not parser.parse_model_proto():
        raise parser_error(parser, model)
    if network.num_outputs == 0 or network.num_layers == 0:
        raise StageError(
            f"the model gives a network of {network.num_layers} layers and {network.num_outputs} outputs",
            "give a model that computes something",
        )


def load(parser: Any, model: Model) -> None:
    """Hands `model` to an `OnnxParser` or `OnnxParserRefitter`.

    Raises:
        StageError: The parser cannot read it, or refuses a weight.
    """
    if not parser.load_model_proto(model.content):
        raise parser_error(parser, model)
    for name, values in model.weights.items():
        if not parser.load_initializer(name, values.ctypes.data, values.nbytes):
            raise parser_error(parser, model)


def parser_error(parser: Any, model: Model) -> StageError:
    """What an `OnnxParser` or `OnnxParserRefitter` cannot take of `model`."""
    return StageError(
        f"TensorRT cannot take this model: {refusal(parser, model)}",
        "fold the model first, or export it without these operators",
    )


def refusal(parser: Any, model: Model) -> str:
    """All errors of an `OnnxParser` or `OnnxParserRefitter` in one line."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = list(dict.fromkeys(_describe(error, model.custom) for error in errors)) or ["it gives no reason"]
    more = f"; and {len(said) - _MOST_NODES_NAMED} more" if len(said) > _MOST_NODES_NAMED else ""
    return "; ".join(said[:_MOST_NODES_NAMED]) + more


def _free_name(wanted: str, taken: set[str]) -> str:
    while wanted in taken:
        wanted += "_"
    return wanted


def strongly_typed(trt: Any) -> int:
    """The flags of a network whose precision is what the ONNX says.

    The flag's number differs between versions; TensorRT-RTX and TensorRT 11 take it too, though all is typed there.
    """
    return 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)


def load_plugins(registry: Any, paths: Sequence[Path]) -> None:
    """Makes the plugins of these libraries known to `registry`, and so to the parsers and engines that use it.

    Raises:
        StageError: One is no library that can be loaded.
    """
    for path in paths:
        try:
            loaded = registry.load_library(str(path))
        except Exception as error:  # what the bindings raise differs between versions
            raise _no_plugin(path, first_line(error)) from error
        if loaded is None:
            raise _no_plugin(path, "TensorRT gives no reason; its log says more")


def _no_plugin(path: Path, why: str) -> StageError:
    return StageError(
        f"plugin library {path} cannot be loaded: {why}",
        "build it for this machine and this version of TensorRT, with every library that it links to",
    )


def reason_of(error: Any) -> str:
    """Why the parser refuses a node."""
    reason, code = plain(error.desc()), _code(error)
    if reason in ("", "false"):
        # Operators that the parser knows and refuses have the whole reason in the code.
        reason = code.lower().replace("_", " ")
    if "Plugin not found" in reason or "was not found in plugin registry" in reason:
        reason = "no such operator in TensorRT's parser, nor a plugin of that name"
    return reason


def _code(error: Any) -> str:
    # In TensorRT 10.13 to 10.15 `name` of this one enum is a method, and not of the name.
    return str(error.code()).rpartition(".")[2]


def _describe(error: Any, custom: Mapping[str, str]) -> str:
    reason, code = reason_of(error), _code(error)
    if not error.node_operator():
        return f"{code}: {reason}"
    name = error.node_name() or f"number {error.node()}"
    operator = custom.get(error.node_name()) or error.node_operator()
    return f"operator {operator} (node {name!r}): {reason}"
