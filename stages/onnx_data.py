"""Where a tensor's values lie: in the model itself, or in an external file, of which only what is asked for is read.

`stages.onnx_file.read` leaves every external tensor as a *pinned* one: its location is absolute, offset and length are
given and lie within the file. So a 2.2 GiB model is read, changed and written in some tens of megabytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING

from stages.stage import StageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from onnx import TensorProto

    Array = npt.NDArray[np.generic]

INLINE_BYTES = 1024
"""A tensor up to this size is kept in the model itself: shapes, axes and scales, which every pass computes with."""

ALIGNMENT = 4096
"""Each tensor of a data file starts at a page: it can be mapped, and XFS and Btrfs share it instead of copying it."""

PIECE_BYTES = 1 << 24
"""What is read at once where values are looked through: 16 MiB."""

PACKED_BITS = {"UINT2": 2, "INT2": 2, "UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
"""Types whose elements share bytes; ONNX packs them without gaps and pads the last byte."""


@dataclass(frozen=True, order=True)
class Place:
    """A range of bytes of a file."""

    path: Path
    offset: int
    length: int

    @property
    def end(self) -> int:
        """The offset of the first byte behind it."""
        return self.offset + self.length


def is_external(tensor: TensorProto) -> bool:
    """Whether the values of `tensor` lie in another file."""
    from onnx import TensorProto

    return bool(tensor.data_location == TensorProto.EXTERNAL)


def nbytes(tensor: TensorProto) -> int:
    """The size of the values of `tensor` in bytes, packed as ONNX stores them, without reading them.

    Raises:
        StageError: A negative dimension, or an element type that onnx does not know.
    """
    from onnx import TensorProto, helper

    if tensor.data_type == TensorProto.STRING:
        return sum(map(len, tensor.string_data))
    if any(size < 0 for size in tensor.dims):
        raise StageError(f"tensor '{tensor.name}' has the shape {list(tensor.dims)}", "export the model again")
    count = prod(map(int, tensor.dims))
    try:
        bits = PACKED_BITS.get(TensorProto.DataType.Name(tensor.data_type))
        if bits is not None:
            return (count * bits + 7) // 8
        return count * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except (KeyError, ValueError):
        raise StageError(
            f"tensor '{tensor.name}' has the element type {tensor.data_type}, which onnx does not know",
            "export the model again, or upgrade onnx",
        ) from None


def array(tensor: TensorProto) -> Array:
    """The values of `tensor`, in its shape, read-only where they are external: then they are mapped, not read.

    Types whose elements share bytes (INT4 and smaller) are unpacked, and so read.
    """
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    if not is_external(tensor):
        inline: Array = numpy_helper.to_array(tensor)
        return inline
    if TensorProto.DataType.Name(tensor.data_type) in PACKED_BITS:
        return array(inlined(tensor))
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if nbytes(tensor) == 0:
        return np.empty(tuple(tensor.dims), dtype)
    # Mapped as bytes: not every type of ml_dtypes is one that memmap takes.
    values: Array = mapped(tensor).view(dtype).reshape(tuple(tensor.dims))
    return values


def mapped(tensor: TensorProto) -> npt.NDArray[np.uint8]:
    """The values of a pinned `tensor`, which has some, as ONNX stores them: mapped, read-only."""
    import numpy as np

    at = place(tensor)
    return np.memmap(at.path, np.uint8, "r", at.offset, (at.length,)).view(np.ndarray)


def pieces(tensor: TensorProto) -> Iterator[Array]:
    """The values of `tensor` in order, flat, at most 16 MiB at once: memory stays small, mapped memory too."""
    import numpy as np
    from onnx import TensorProto, helper

    if not is_external(tensor) or TensorProto.DataType.Name(tensor.data_type) in PACKED_BITS:
        yield array(tensor).reshape(-1)
        return
    dtype = helper.tensor_dtype_to_np_dtype(tensor.data_type)
    for content in _read(place(tensor)):
        yield np.frombuffer(content, dtype)


def inlined(tensor: TensorProto) -> TensorProto:
    """A copy of an external `tensor` that holds its values itself."""
    at = place(tensor)
    copy = described(tensor)
    copy.raw_data = b"".join(_read(at))
    return copy


def described(tensor: TensorProto) -> TensorProto:
    """A copy of `tensor` without its values: name, type, shape and what is noted about it."""
    from onnx import TensorProto

    copy = TensorProto(dims=tensor.dims, data_type=tensor.data_type, name=tensor.name)
    if tensor.HasField("doc_string"):
        copy.doc_string = tensor.doc_string
    copy.metadata_props.extend(tensor.metadata_props)
    return copy


def place(tensor: TensorProto) -> Place:
    """Where the values of a pinned `tensor` lie."""
    given = {entry.key: entry.value for entry in tensor.external_data}
    return Place(Path(given["location"]), int(given["offset"]), int(given["length"]))


def put(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Makes `tensor` external: its values are the `length` bytes at `offset` of the file `location`."""
    from onnx import TensorProto

    for name in ("raw_data", "external_data"):
        tensor.ClearField(name)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)


def safe_location(name: str, tensor: TensorProto, base: Path) -> str:
    """The location that the external `tensor` names, relative to the model's directory `base`; it need not exist.

    Raises:
        StageError: It is empty, absolute, goes up with `..`, or is a link that leads out of `base`.
    """
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


def find(name: str, tensor: TensorProto, path: Path, location: str) -> Place:
    """Where the values of the external `tensor`, called `name` in errors, lie in the file at `path`.

    Args:
        name: What a person calls it.
        tensor: As the model has it: offset and length may be missing.
        path: The file.
        location: What the model calls the file.

    Raises:
        StageError: No such file, it is too short, or what the model says of offset and length cannot be.
    """
    from onnx import TensorProto

    if tensor.data_type == TensorProto.STRING:
        raise StageError(f"tensor '{name}' holds strings, which cannot be external", "export the model again")
    size, needed = _size(name, path, location), nbytes(tensor)
    offset = _number(name, tensor, "offset", 0)
    length = _number(name, tensor, "length", needed)
    if length != needed:
        raise StageError(
            f"tensor '{name}' is {length} bytes of {location}, and its shape {list(tensor.dims)} takes {needed}",
            "export the model again",
        )
    if offset + length > size:
        raise StageError(
            f"tensor '{name}' is {length} bytes from {offset} on of {location}, which has {size} bytes",
            f"the file is cut short or of another model: copy or export {location} again",
        )
    return Place(path.resolve(), offset, length)


def refuse_overlaps(places: Iterable[tuple[str, Place]]) -> None:
    """Holds external tensors, by name, to ranges that are the same (tied weights) or have no byte in common.

    Raises:
        StageError: Two tensors share a part of a file.
    """
    ranges = sorted((at, name) for name, at in places if at.length)
    for (one, first), (other, second) in pairwise(ranges):
        if one.path == other.path and one != other and other.offset < one.end:
            raise StageError(
                f"tensors '{first}' and '{second}' overlap in {one.path.name}: bytes {one.offset} to {one.end} and "
                f"{other.offset} to {other.end}",
                "the file is damaged, or written by mistake: export the model again",
            )


def copy(tensor: TensorProto, destination: IO[bytes]) -> None:
    """Appends the values of `tensor` to `destination`, an unbuffered file, as ONNX stores them."""
    if is_external(tensor):
        _copy_range(place(tensor), destination)
    else:
        append(packed(tensor), destination)


def packed(tensor: TensorProto) -> bytes:
    """The values of an inline `tensor` as ONNX stores them in `raw_data`."""
    from onnx import numpy_helper

    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    return bytes(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


def _copy_range(at: Place, destination: IO[bytes]) -> None:
    """In the kernel where it can: 2.2 GiB then cost no memory, and no time where the file system shares blocks."""
    with at.path.open("rb", buffering=0) as source:
        offset = at.offset
        while offset < at.end:
            try:
                done = os.copy_file_range(source.fileno(), destination.fileno(), at.end - offset, offset)
            except OSError:  # another file system, or one that cannot
                break
            if done == 0:
                break
            offset += done
    for content in _read(Place(at.path, offset, at.end - offset)):
        append(content, destination)


def append(content: bytes, destination: IO[bytes]) -> None:
    """Writes all of `content` to `destination`, an unbuffered file."""
    rest = memoryview(content)
    while rest:  # the kernel takes at most 2 GiB at once
        rest = rest[destination.write(rest) :]


def _read(at: Place) -> Iterator[bytes]:
    with at.path.open("rb", buffering=0) as file:
        file.seek(at.offset)
        left = at.length
        while left:
            content = file.read(min(left, PIECE_BYTES))
            if not content:
                raise StageError(f"{at.path}: became shorter while it was read", "run it again")
            left -= len(content)
            yield content


def _size(name: str, path: Path, location: str) -> int:
    if path.is_file():
        return path.stat().st_size
    what = "is a directory" if path.is_dir() else "is not there: no such file beside the ONNX file"
    raise StageError(
        f"tensor '{name}' is kept in {location}, which {what}",
        f"put {location} beside the ONNX file, under the name it was saved with",
    )


def _number(name: str, tensor: TensorProto, key: str, default: int) -> int:
    text = next((entry.value for entry in tensor.external_data if entry.key == key), None)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()) or len(text) > len(str(2**63)):
        raise StageError(
            f"tensor '{name}': the {key} of its external data is {text[:40]!r}; allowed is a whole number, 0 or more",
            "export the model again",
        )
    return int(text)


def _stays_inside(path: Path, base: Path) -> bool:
    try:
        return path.resolve().is_relative_to(base.resolve())
    except (OSError, RuntimeError):  # a loop of links, which Python before 3.13 reports as a RuntimeError
        return False
