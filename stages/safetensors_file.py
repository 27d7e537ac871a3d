"""Reads and writes safetensors files: eight bytes that say how long the header is, the header in JSON, the values.

The format: https://github.com/huggingface/safetensors#format. The package of that name takes every value as bytes in
memory at once; here values are copied from file to file, and read by mapping, so that memory does not grow with them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from stages import onnx_data
from stages.onnx_data import Place
from stages.stage import StageError

if TYPE_CHECKING:
    from onnx import TensorProto

DTYPES: Mapping[str, tuple[str, int]] = {
    "BOOL": ("BOOL", 1),
    "U8": ("UINT8", 1),
    "I8": ("INT8", 1),
    "F8_E4M3": ("FLOAT8E4M3FN", 1),
    "F8_E5M2": ("FLOAT8E5M2", 1),
    "U16": ("UINT16", 2),
    "I16": ("INT16", 2),
    "F16": ("FLOAT16", 2),
    "BF16": ("BFLOAT16", 2),
    "U32": ("UINT32", 4),
    "I32": ("INT32", 4),
    "F32": ("FLOAT", 4),
    "U64": ("UINT64", 8),
    "I64": ("INT64", 8),
    "F64": ("DOUBLE", 8),
}
"""What ONNX calls each type, and its size in bytes."""

_OF_ONNX = {name: dtype for dtype, (name, _) in DTYPES.items()}

_MOST_HEADER_BYTES = 100_000_000
"""The package's own limit."""


@dataclass(frozen=True)
class Tensor:
    """A tensor of the file.

    Attributes:
        dtype: What the file calls its type: `F32`.
        shape: Its dims.
        at: Where its values lie, row by row, little-endian.
    """

    dtype: str
    shape: tuple[int, ...]
    at: Place


def write(
    tensors: Iterable[TensorProto], path: Path, copy: Callable[[TensorProto, IO[bytes]], None] = onnx_data.copy
) -> None:
    """Writes tensors by name; the bytes depend on names, types, shapes and values alone, not on the order given.

    Args:
        tensors: What to write; their types are among `DTYPES`.
        path: Where.
        copy: Appends the values of a tensor to the file.
    """
    # The widest types first, so that every tensor lies at a multiple of its type's size.
    ordered = sorted(tensors, key=lambda tensor: (-DTYPES[dtype(tensor)][1], tensor.name))
    header: dict[str, Any] = {}
    offset = 0
    for tensor in ordered:
        end = offset + onnx_data.nbytes(tensor)
        header[tensor.name] = {"dtype": dtype(tensor), "shape": list(tensor.dims), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % onnx_data.ALIGNMENT)
    with path.open("wb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in ordered:
            copy(tensor, file)


def dtype(tensor: TensorProto) -> str:
    """What the format calls the type of `tensor`, which is one of `DTYPES`."""
    from onnx import TensorProto

    return _OF_ONNX[TensorProto.DataType.Name(tensor.data_type)]


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of the file by name; their values are not read.

    Raises:
        StageError: It is missing, damaged or no such file.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if not 2 <= length <= min(_MOST_HEADER_BYTES, size - 8):
                raise _damaged(path, f"its header claims {length} bytes, and the file has {size}")
            header = json.loads(file.read(length))
    except OSError as error:
        raise StageError(f"{path}: cannot be read: {error.strerror}", "give the path of a safetensors file") from error
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "its header is no JSON") from error
    try:
        found = {
            _text(name): _tensor(path, given, 8 + length, size)
            for name, given in header.items()
            if name != "__metadata__"
        }
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise _damaged(path, f"its header is not as the format has it: {error}") from error
    ends = [8 + length]
    for at in sorted(tensor.at for tensor in found.values()):
        if at.offset != ends[-1]:
            raise _damaged(path, f"its tensors overlap or leave a gap at {at.offset}")
        ends.append(at.end)
    if ends[-1] != size:
        raise _damaged(path, f"its tensors end at {ends[-1]}, and the file has {size} bytes")
    return found


def _text(name: str) -> str:
    name.encode()  # JSON can spell what is no text
    return name


def _tensor(path: Path, given: Mapping[str, Any], start: int, size: int) -> Tensor:
    kind, shape = given["dtype"], tuple(given["shape"])
    begin, end = given["data_offsets"]
    if kind not in DTYPES:
        raise ValueError(f"the type {kind!r}")
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError(f"shape {list(shape)} at {begin} to {end}")
    needed = prod(shape) * DTYPES[kind][1]
    if end - begin != needed or start + end > size:
        raise ValueError(f"{needed} bytes of shape {list(shape)} at {begin} to {end}, of {size - start}")
    return Tensor(kind, shape, Place(path.resolve(), start + begin, needed))


def _damaged(path: Path, why: str) -> StageError:
    return StageError(f"{path}: not a safetensors file, or a truncated one: {why}", "copy or save it again")
