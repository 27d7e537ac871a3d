"""ONNX files in and out, with errors in plain words, and the walks over a model that every stage needs.

Between stages a model is `model.onnx`, and where its weights are large `model.onnx.data` beside it: protobuf holds no
more than 2 GiB in one message. Large weights are not read with the model: see `stages.onnx_data`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stages import onnx_data
from stages.onnx_data import array as array
from stages.onnx_data import nbytes as nbytes
from stages.stage import DATA_SUFFIX, StageError

if TYPE_CHECKING:
    import onnx
    from google.protobuf.message import Message  # type: ignore[import-untyped]

MAX_BYTES = 2**31 - 1
"""The largest message that protobuf serializes."""

ONE_FILE_BYTES = 1 << 28
"""Up to so many bytes of values (256 MiB) a model is written as one file, which every tool opens; beyond, its weights
go to a data file. What is inline is held about three times while it is read and checked: less than 1 GiB, then."""

MISTAKEN_FOR_ONNX: tuple[tuple[bytes, str, str], ...] = (
    (b"version https://git-lfs", "a Git LFS pointer, not the model itself", "fetch the file: git lfs pull"),
    (b"PK\x03\x04", "a zip archive, such as a PyTorch checkpoint", "unpack it, or build it with model.source=torch"),
    (b"\x1f\x8b", "compressed with gzip", "unpack it first: gunzip"),
    (b"<", "a web page or XML", "download the file itself, not the page about it"),
)
"""What people give instead of an ONNX file, by its first bytes: (first bytes, what it is, what to do)."""


TEXT = frozenset(b"\t\r\n" + bytes(range(32, 127)))
"""Bytes of plain text; an ONNX file starts with others."""


def read(paths: Path | Sequence[Path], *, external_data: bool = True) -> onnx.ModelProto:
    """Reads an ONNX file.

    Initializers above 1 KiB that lie in external files are not read: they stay external, pinned to where they are (see
    `stages.onnx_data`), and `array` gives their values. All other tensors hold their values themselves.

    Args:
        paths: The ONNX file, its external data in the same directory or below it; or the ONNX file and its external
            files in the order of `external_locations`, wherever they lie.
        external_data: Whether external tensors are looked at at all.

    Raises:
        StageError: The file is missing, empty, damaged, no ONNX, or its external data is missing, too short, of another
            size than the model says, or leaves the file's directory.
    """
    path, *data = [paths] if isinstance(paths, Path) else paths
    model = _parse(path)
    if external_data:
        _pin(model, path, data)
    return model


def write(model: onnx.ModelProto, path: Path) -> None:
    """Writes `model` to `path`, and its weights to `<path>.data` where all its values exceed `ONE_FILE_BYTES`.

    The bytes depend on the model alone, not on where its tensors came from. Weights are copied from file to file, so
    that memory does not grow with them; `model` stays as it is.

    Raises:
        StageError: What is left in the model itself would be larger than 2 GiB.
    """
    tensors = [tensor for _, tensor in iter_tensors(model)]
    if sum(map(nbytes, tensors)) > ONE_FILE_BYTES:
        model = _with_data_file(model, path.with_name(path.name + DATA_SUFFIX))
    elif any(map(onnx_data.is_external, tensors)):
        model = inlined(model)
    require_one_file(model, "the model")
    path.write_bytes(model.SerializeToString())


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` that holds all its values itself; one beyond 2 GiB cannot be serialized."""
    whole = without_initializers(model)
    whole.graph.initializer.extend(
        onnx_data.inlined(tensor) if onnx_data.is_external(tensor) else tensor for tensor in model.graph.initializer
    )
    return whole


def size(model: onnx.ModelProto) -> int:
    """The bytes of `model` and of the external values that it names."""
    tensors = (tensor for tensor in model.graph.initializer if onnx_data.is_external(tensor))
    return int(model.ByteSize()) + sum(map(nbytes, tensors))


def without_initializers(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of `model` without the initializers of its graph: light, whatever the model weighs."""
    import onnx

    shell = onnx.ModelProto()
    _copy_fields(model, shell, "graph")
    _copy_fields(model.graph, shell.graph, "initializer")
    return shell


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
    external = ((name, tensor) for name, tensor in iter_tensors(model) if onnx_data.is_external(tensor))
    return sorted({onnx_data.safe_location(name, tensor, base) for name, tensor in external})


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


def _parse(path: Path) -> onnx.ModelProto:
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
    return model


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
        "keep its weights as initializers in external data: export it with external_data=True",
    )


def _pin(model: onnx.ModelProto, path: Path, data: Sequence[Path]) -> None:
    """Makes each external tensor pinned or inline."""
    locations = external_locations(model, path.parent)
    if data and len(data) != len(locations):
        raise StageError(
            f"{path}: names {len(locations)} external files, and {len(data)} are given: {', '.join(locations)}",
            "give the files that the model names, in this order",
        )
    files = dict(zip(locations, data or [path.parent / location for location in locations], strict=True))
    found: list[tuple[str, onnx_data.Place]] = []
    for index, (name, tensor) in enumerate(iter_tensors(model)):  # the graph's initializers come first
        if not onnx_data.is_external(tensor):
            continue
        location = onnx_data.safe_location(name, tensor, path.parent)
        at = onnx_data.find(name, tensor, files[location], location)
        found.append((name, at))
        onnx_data.put(tensor, str(at.path), at.offset, at.length)
        if at.length <= onnx_data.INLINE_BYTES or index >= len(model.graph.initializer):
            tensor.CopyFrom(onnx_data.inlined(tensor))
    onnx_data.refuse_overlaps(found)


def _with_data_file(model: onnx.ModelProto, path: Path) -> onnx.ModelProto:
    """Writes the heavy initializers of `model` to `path`, and returns a copy of the model that names it."""
    written: dict[onnx_data.Place, onnx_data.Place] = {}
    shell = without_initializers(model)
    with path.open("wb", buffering=0) as file:
        for tensor in model.graph.initializer:
            if not _is_heavy(tensor):
                shell.graph.initializer.append(tensor)
                continue
            source = onnx_data.place(tensor) if onnx_data.is_external(tensor) else None
            at = written.get(source) if source else None
            if at is None:
                file.seek(-(-file.tell() // onnx_data.ALIGNMENT) * onnx_data.ALIGNMENT)
                at = onnx_data.Place(path, file.tell(), nbytes(tensor))
                onnx_data.copy(tensor, file)
            if source:  # tied weights lie in one place, and stay so
                written[source] = at
            kept = onnx_data.described(tensor)
            onnx_data.put(kept, path.name, at.offset, at.length)
            shell.graph.initializer.append(kept)
    return shell


def _copy_fields(source: Message, copy: Message, but: str) -> None:
    """Copies every field of `source` into the empty message `copy`, `but` one."""
    for field, value in source.ListFields():
        if field.name == but:
            continue
        if isinstance(value, (str, bytes, int, float)):
            setattr(copy, field.name, value)
        else:
            getattr(copy, field.name).MergeFrom(value)


def _is_heavy(tensor: onnx.TensorProto) -> bool:
    import onnx

    return bool(tensor.data_type != onnx.TensorProto.STRING and nbytes(tensor) > onnx_data.INLINE_BYTES)


def _attribute_tensors(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    if attribute.HasField("t"):
        yield attribute.t
    yield from attribute.tensors
    if attribute.HasField("sparse_tensor"):
        yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
    for sparse in attribute.sparse_tensors:
        yield from (sparse.values, sparse.indices)
