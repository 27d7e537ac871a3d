"""From an ONNX file to a parsed TensorRT network, with errors that name the operator and the node."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import onnx_file
from stages.builder_log import plain
from stages.onnx_check import check_structure
from stages.stage import StageError

if TYPE_CHECKING:
    import onnx

_MOST_NODES_NAMED = 5
"""A model with one unsupported operator often has it 45 times."""


def read_model(path: Path) -> bytes:
    """Reads and checks an ONNX model, and gives each unnamed dynamic dimension a name of its own.

    Returns:
        The model for the parser. TensorRT does not copy weights: keep these bytes until the build returns.

    Raises:
        StageError: The model is no valid ONNX. Operators that ONNX does not know are left to the parser.
    """
    model = onnx_file.read(path)
    check_structure(model)
    name_dimensions(model)
    onnx_file.require_one_file(model, "the model")
    content: bytes = model.SerializeToString()
    return content


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


def parse(trt: Any, parser: Any, network: Any, model: bytes, directory: Path) -> None:
    """Parses `model` into `network`.

    Raises:
        StageError: The parser refuses it: names operator, node and reason. Or the network came out empty.
    """
    if not parser.parse(model, str(directory / "model.onnx")):
        raise parser_error(parser)
    if network.num_outputs == 0 or network.num_layers == 0:
        raise StageError(
            f"the model gives a network of {network.num_layers} layers and {network.num_outputs} outputs",
            "give a model that computes something",
        )


def parser_error(parser: Any) -> StageError:
    """All errors of an `OnnxParser` or `OnnxParserRefitter` in one line."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    said = list(dict.fromkeys(_describe(error) for error in errors)) or ["it gives no reason"]
    more = f"; and {len(said) - _MOST_NODES_NAMED} more" if len(said) > _MOST_NODES_NAMED else ""
    return StageError(
        f"TensorRT cannot take this model: {'; '.join(said[:_MOST_NODES_NAMED])}{more}",
        "fold the model first, or export it without these operators",
    )


def _free_name(wanted: str, taken: set[str]) -> str:
    while wanted in taken:
        wanted += "_"
    return wanted


def _describe(error: Any) -> str:
    reason, code = plain(error.desc()), error.code().name
    if reason in ("", "false"):
        # Operators that the parser knows and refuses have the whole reason in the code.
        reason = code.lower().replace("_", " ")
    if "Plugin not found" in reason:
        reason = "no such operator in TensorRT's parser, nor a plugin of that name"
    if not error.node_operator():
        return f"{code}: {reason}"
    name = error.node_name() or f"number {error.node()}"
    return f"operator {error.node_operator()} (node {name!r}): {reason}"
