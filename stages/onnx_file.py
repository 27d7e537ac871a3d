"""ONNX files in and out, with errors in plain words, and the walks over a model that every stage needs.

Between stages a model is one self-contained file: 2 GiB is what protobuf can hold in one message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from stages.stage import StageError

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message  # type: ignore[import-untyped]

MAX_BYTES = 2**31 - 1
"""The largest message that protobuf serializes."""

MISTAKEN_FOR_ONNX: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the model itself", "fetch the file: git lfs pull"),
    (b"PK\x03\x04", "a zip archive, such as a PyTorch checkpoint", "unpack it, or build it with model.source=torch"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first: gunzip"),
    (b"<", "a web page or XML", "download the file itself, not the page about it"),
)
"""What people give instead of an ONNX file, by its first bytes: (first bytes, what it is, what to do)."""


TEXT = frozenset(b"\t\r\n" + bytes(range(32, 127)))
"""Bytes of plain text; an ONNX file starts with others."""


def read(path: Path, *, external_data: bool = True) -> onnx.ModelProto:
    """Reads the ONNX file at `path`.

    Args:
        path: The file; its external data lies in the same directory or below it.
        external_data: Whether tensors kept in external files are loaded too.

    Raises:
        StageError: The file is missing, empty, damaged, no ONNX, or its external data is missing or leaves the
            file's directory.
    """
    import onnx
    from google.protobuf.message import DecodeError

    content = _read_bytes(path)
    try:
        model = onnx.load_model_from_string(content)
    except DecodeError:
        raise _no_onnx(path, content) from None
    if not model.graph.output or not model.opset_import:
        raise StageError(
            f"{path}: not an ONNX model, or a truncated one: it has {len(model.graph.output)} outputs and "
            f"{len(model.opset_import)} opsets, and needs at least one of each",
            "give a whole ONNX file that has a graph",
        )
    if not _is_text(model):
        raise StageError(f"{path}: a damaged ONNX file: some names in it are not text", "download or export it again")
    if external_data:
        _load_external_data(model, path)
    return model


def write(model: onnx.ModelProto, path: Path) -> None:
    """Writes `model` to `path` as one file.

    Raises:
        StageError: The model would be larger than 2 GiB.
    """
    import onnx

    require_one_file(model, "the model")
    # The format is always protobuf, whatever the name ends in: objects of a store have no suffix.
    onnx.save(model, str(path), format="protobuf")


def require_one_file(model: onnx.ModelProto, what: str) -> None:
    """Holds `model`, called `what` in the error, to the size of one file.

    Raises:
        StageError: The model is larger than 2 GiB.
    """
    from google.protobuf.message import EncodeError

    try:
        too_large = model.ByteSize() > MAX_BYTES
    except EncodeError:  # how protobuf's C implementation answers beyond its limit
        too_large = True
    if too_large:
        raise _too_large(what)


def default_opset(model: onnx.ModelProto) -> int | None:
    """The version of ONNX's own operators that `model` uses; None where it uses none of them."""
    return next((opset.version for opset in model.opset_import if opset.domain in ("", "ai.onnx")), None)


def dimension(dim: onnx.TensorShapeProto.Dimension) -> int | str | None:
    """A dimension as the model has it: its size, its name, or None where it has neither.

    Some exporters write -1 for "any", and `?` for as many dimensions as they do not know: no size, and no name.
    """
    if dim.HasField("dim_value") and dim.dim_value >= 0:
        return int(dim.dim_value)
    return None if dim.dim_param in ("", "?") else str(dim.dim_param)


def iter_nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node of `model`: of its graph, of the subgraphs inside, and of its functions."""
    yield from walk(model.graph.node)
    for function in model.functions:
        yield from walk(function.node)


def walk(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """Yields `nodes`, each followed by the nodes of its subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                yield from walk(graph.node)


def iter_graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The graph of `model` and every subgraph, those inside functions too."""
    yield model.graph
    for node in iter_nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield attribute.g
            yield from attribute.graphs


def iter_tensors(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every tensor that `model` holds, with a name a person can find it by.

    Initializers and the two halves of sparse ones go by their own name, tensors in a node's attributes by the name of
    the node's first output. Subgraphs and functions are included.
    """
    for graph in iter_graphs(model):
        for tensor in graph.initializer:
            yield tensor.name, tensor
        for sparse in graph.sparse_initializer:
            yield sparse.values.name, sparse.values
            yield sparse.values.name, sparse.indices
    for node in iter_nodes(model):
        for attribute in node.attribute:
            for tensor in _attribute_tensors(attribute):
                yield node.output[0] if node.output else node.name, tensor


def external_locations(model: onnx.ModelProto, base: Path) -> list[str]:
    """The external files that `model` names, sorted, each once, relative to `base`; they need not exist.

    Args:
        model: A model read with `external_data=False`.
        base: The directory of the model's file.

    Raises:
        StageError: A location is empty, absolute, goes up with `..`, or is a link that leads out of `base`.
    """
    import onnx

    return sorted(
        {
            _safe_location(name, tensor, base)
            for name, tensor in iter_tensors(model)
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        }
    )


def strip_provenance(message: Message) -> None:
    """Removes doc strings and metadata from `message` and all that is inside it, in place.

    The PyTorch exporter writes stack traces there, with the paths of the machine it ran on: the same module would
    export to other bytes, and so to another digest, from another directory.
    """
    from google.protobuf.message import Message

    for field, value in message.ListFields():
        if field.name in ("doc_string", "metadata_props"):
            message.ClearField(field.name)
        elif isinstance(value, Message):
            strip_provenance(value)
        elif field.message_type is not None:
            for item in value:
                strip_provenance(item)


def first_line(error: BaseException) -> str:
    """The first line of what `error` says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _read_bytes(path: Path) -> bytes:
    if path.is_dir():
        raise StageError(f"{path}: a directory, not an ONNX file", _files_to_choose_from(path))
    if not path.is_file():
        raise StageError(f"{path}: no such file", "give the path of an ONNX file: model.path=net.onnx")
    size = path.stat().st_size
    if size == 0:
        raise StageError(f"{path}: the file is empty", "export or download the model again")
    if size > MAX_BYTES:
        raise _too_large(str(path))
    try:
        return path.read_bytes()
    except OSError as error:
        raise StageError(f"{path}: cannot be read: {error.strerror}", "check the file's permissions") from error


def _files_to_choose_from(directory: Path) -> str:
    names = sorted(file.name for file in directory.glob("*.onnx"))
    return f"give one of the files in it: {', '.join(names)}" if names else "there is no .onnx file in it"


def _no_onnx(path: Path, content: bytes) -> StageError:
    for start, what, next_step in MISTAKEN_FOR_ONNX:
        if content.startswith(start):
            return StageError(f"{path}: not an ONNX file: it is {what}", next_step)
    if all(byte in TEXT for byte in content[:512]):
        return StageError(f"{path}: not an ONNX file: it is a text file", "give the path of an ONNX file")
    return StageError(
        f"{path}: not an ONNX file, or a truncated one ({len(content)} bytes, which do not decode)",
        "compare its size with the original's, then download or export it again",
    )


def _is_text(message: Message) -> bool:
    """Whether every string inside `message` is UTF-8; protobuf hands out others as bytes, and nobody expects those."""
    from google.protobuf.message import Message
    from onnx import TensorProto

    if isinstance(message, TensorProto):  # listing its fields would copy the weights
        return isinstance(message.name, str)
    for field, value in message.ListFields():
        values = (value,) if isinstance(value, (str, bytes, Message)) else value
        if field.type == field.TYPE_STRING and not all(isinstance(text, str) for text in values):
            return False
        if field.type == field.TYPE_MESSAGE and not all(_is_text(inner) for inner in values):
            return False
    return True


def _too_large(what: str) -> StageError:
    return StageError(
        f"{what} is larger than {MAX_BYTES} bytes, and one ONNX file holds no more",
        "use a smaller model, or cast its weights: models beyond 2 GiB are not supported yet",
    )


def _load_external_data(model: onnx.ModelProto, path: Path) -> None:
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor

    if not external_locations(model, path.parent):
        return
    for name, tensor in iter_tensors(model):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        try:
            load_external_data_for_tensor(tensor, str(path.parent))
        except (OSError, ValueError, onnx.checker.ValidationError) as error:
            raise _no_external_data(path, name, tensor, error) from error
        tensor.ClearField("data_location")  # left as an explicit default, it would make other bytes of the same model
    require_one_file(model, f"{path} with its external data")


def _no_external_data(path: Path, name: str, tensor: onnx.TensorProto, error: Exception) -> StageError:
    location = _safe_location(name, tensor, path.parent)
    if not (path.parent / location).exists():
        return StageError(
            f"{path}: tensor '{name}' is kept in {location}, and there is no such file beside the ONNX file",
            f"put {location} beside {path.name}, under the name it was saved with",
        )
    return StageError(
        f"{path}: tensor '{name}' cannot be read from {location}: {first_line(error)}",
        f"copy or export {path.name} and {location} again, both as plain files",
    )


def _safe_location(name: str, tensor: onnx.TensorProto, base: Path) -> str:
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    path = PurePosixPath(location)
    if not location or "\0" in location:
        raise StageError(f"tensor '{name}' is external and names no file ({location!r})", "export the model again")
    if path.is_absolute() or ".." in path.parts or not _stays_inside(base / path, base):
        raise StageError(
            f"tensor '{name}': its external data {location} leaves the model's directory, which is not allowed",
            "copy the external file beside the ONNX file and save the model with a relative location",
        )
    return str(path)


def _stays_inside(path: Path, base: Path) -> bool:
    try:
        return path.resolve().is_relative_to(base.resolve())
    except (OSError, RuntimeError):  # a loop of links, which Python before 3.13 reports as a RuntimeError
        return False


def _attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    if attribute.HasField("sparse_tensor"):
        yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
    for sparse in attribute.sparse_tensors:
        yield from (sparse.values, sparse.indices)
