"""From an ONNX file to a parsed TensorRT network, with errors that name the operator and the node."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import onnx_file
from stages.builder_log import plain
from stages.stage import StageError

if TYPE_CHECKING:
    import onnx

_UNKNOWN_DOMAIN = "trtforge.unknown"

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
    check_model(model)
    name_dimensions(model)
    if model.ByteSize() > onnx_file.MAX_BYTES:
        raise StageError(f"the model has {model.ByteSize()} bytes, and one message holds {onnx_file.MAX_BYTES}")
    content: bytes = model.SerializeToString()
    return content


def check_model(model: onnx.ModelProto) -> None:
    """Runs ONNX's checker: the models that crash TensorRT's parser are among those that it rejects.

    NOTE: two gaps of the checker are closed here. It stops at an operator that ONNX does not know, while the parser
    says where it stands; and it does not look into foreign domains, where a node without outputs ends the parser with
    a segmentation fault.

    Raises:
        StageError: With the checker's reason.
    """
    import onnx

    for node in onnx_file.iter_nodes(model):
        if not node.output:
            raise StageError(f"node {node.name!r} ({node.op_type}) has no outputs", "remove it: nothing reads it")
    try:
        with _foreign(model):
            onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        reason = " ".join(str(error).split())
        raise StageError(
            f"not a valid ONNX model: {reason}", "export it again, or repair it with a fold step"
        ) from error


def name_dimensions(model: onnx.ModelProto) -> None:
    """Names the inputs' unnamed dynamic dimensions, each differently.

    TensorRT-RTX takes two dimensions of one name for equal, and `?` is a name to it.
    """
    taken = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim}
    for value in model.graph.input:
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            unnamed = dim.dim_param in ("", "?") and not (dim.HasField("dim_value") and dim.dim_value >= 0)
            if unnamed:
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


@contextmanager
def _foreign(model: onnx.ModelProto) -> Iterator[None]:
    """While it lasts, operators that ONNX's own domain does not have stand in a domain that the checker leaves out."""
    import onnx

    version = onnx_file.default_opset(model) or 1
    unknown = [
        node
        for node in onnx_file.iter_nodes(model)
        if node.domain in ("", "ai.onnx") and not _knows(onnx.defs, node.op_type, version)
    ]
    before = [node.domain if node.HasField("domain") else None for node in unknown]
    model.opset_import.add(domain=_UNKNOWN_DOMAIN, version=1)
    for node in unknown:
        node.domain = _UNKNOWN_DOMAIN
    try:
        yield
    finally:
        del model.opset_import[-1]
        for node, domain in zip(unknown, before, strict=True):
            # An empty domain and none are two serializations, and the bytes of the model must not change.
            node.ClearField("domain") if domain is None else setattr(node, "domain", domain)


def _knows(defs: Any, operator: str, version: int) -> bool:
    try:
        defs.get_schema(operator, version, "")
    except defs.SchemaError:
        return False
    return True


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
