"""Batches of real data out of `.npz` and `.npy` files, checked against a model's inputs and streamed.

Axis 0 of every array is the sample axis. A `.npz` has one array per input, under the input's name; arrays of other
names are ignored. A `.npy` does for a model with one input. One file at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING
from zipfile import BadZipFile, ZipFile
from zlib import error as ZlibError  # noqa: N812 - zlib's only exception

from stages import onnx_file
from stages.stage import StageError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from onnx import ModelProto

    Array = npt.NDArray[np.generic]

MAX_FEED_BYTES = 4 * 2**30
"""The most that the inputs of one generated run may take; random numbers need about three times that for a while."""

Batch = dict[str, "Array"]
"""One run's feed: an array for each input, by name."""

DAMAGED = (BadZipFile, ZlibError, EOFError, OSError, ValueError, KeyError, NotImplementedError, MemoryError)
"""What numpy and zipfile raise on files that were cut or altered."""


@dataclass(frozen=True)
class Input:
    """What a model takes, or what else is read beside it.

    Attributes:
        name: The key in a `.npz`.
        dtype: In numpy's words, such as `float32`; None takes any (labels).
        shape: A number for each static dim, a name for a symbolic one (equal names, equal sizes), None for one that
            nothing is said about; None for the whole takes any rank from 1 on. A scalar, (), has no sample axis: the
            first file's value is fed to every batch.
    """

    name: str
    dtype: str | None
    shape: tuple[int | str | None, ...] | None

    def __str__(self) -> str:
        dims = "any" if self.shape is None else ", ".join("?" if d is None else str(d) for d in self.shape)
        return f"{self.name}: {self.dtype or 'any type'} ({dims})"


@dataclass(frozen=True)
class _Header:
    """Shape and dtype of a stored array, read without its data."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


def model_inputs(model: ModelProto) -> list[Input]:
    """The inputs that a caller of `model` must feed.

    Raises:
        StageError: An input is not a tensor that numpy has a type for.
    """
    from onnx import helper

    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = []
    for value in model.graph.input:
        if value.name in weights:
            continue
        if not value.type.HasField("tensor_type"):
            raise StageError(f"the input {value.name!r} is no tensor", "only models whose inputs are tensors take data")
        tensor = value.type.tensor_type
        dtype = helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
        dims = map(onnx_file.dimension, tensor.shape.dim)
        inputs.append(Input(value.name, dtype, tuple(dims) if tensor.HasField("shape") else None))
    return inputs


def require_room(what: str, sizes: Mapping[str, tuple[Sequence[int], str]], next_step: str) -> None:
    """Holds inputs that are to be made up to `MAX_FEED_BYTES`, before anything is allocated.

    Args:
        what: What they are, for the error.
        sizes: The shape and the dtype of each input.
        next_step: What to lower.

    Raises:
        StageError: They would take more.
    """
    import numpy as np

    wanted = sum(prod(shape) * np.dtype(dtype).itemsize for shape, dtype in sizes.values())
    if wanted > MAX_FEED_BYTES:
        shapes = ", ".join(f"{name} {tuple(shape)}" for name, (shape, _) in sizes.items())
        raise StageError(f"{what} take {wanted:,} bytes ({shapes}); allowed: at most {MAX_FEED_BYTES:,}", next_step)


def count_samples(files: Sequence[Path], inputs: Sequence[Input], max_samples: int | None = None) -> int:
    """How many samples `read_batches` will give; reads headers only, and checks all of them.

    Raises:
        StageError: As `read_batches`.
    """
    if not files:
        raise StageError("no batches: the set has no file", "give .npz or .npy files")
    total = sum(_check(path, inputs) for path in files)
    if total == 0:
        raise StageError(f"no batches: {len(files)} files have 0 samples together", "give at least one sample")
    return total if max_samples is None else min(total, max_samples)


def read_batches(
    files: Sequence[Path], inputs: Sequence[Input], batch_size: int | None = None, max_samples: int | None = None
) -> Iterator[Batch]:
    """The batches of `files`, in order.

    Args:
        files: `.npz` or `.npy`, recognized by their content: objects of a store have no suffix.
        inputs: What to read, such as `model_inputs(model)`, and labels as one more `Input` where they are wanted.
        batch_size: Samples of a batch, across files; the last one may be smaller, and so is one whose next sample has
            another shape. None: each file is one batch as it is.
        max_samples: Stop after this many. None: all.

    Raises:
        StageError: At once where a header says that a file does not fit the model (a missing name, another rank,
            size or dtype); while reading where the data of a file are damaged, or the model takes a fixed number of
            samples and another number is left.
    """
    left = count_samples(files, inputs, max_samples)
    pieces = _pieces(files, inputs, left)
    batches = pieces if batch_size is None else _regroup(pieces, inputs, batch_size)
    return _checked_sizes(batches, inputs)


def _pieces(files: Sequence[Path], inputs: Sequence[Input], left: int) -> Iterator[Batch]:
    """Each file's arrays, cut after `left` samples."""
    for path in files:
        if left <= 0:
            return
        batch = _load(path, inputs)
        got = size(batch)
        if got:
            yield _cut(batch, 0, left) if got > left else batch
        left -= got


def _regroup(pieces: Iterator[Batch], inputs: Sequence[Input], batch_size: int) -> Iterator[Batch]:
    """Batches of `batch_size` out of pieces of any size."""
    held: Batch = {}
    for piece in pieces:
        if held and not _alike(held, piece):
            yield held
            held = {}
        joined = _join(held, piece) if held else piece
        got = size(joined)
        whole = got - got % batch_size
        for start in range(0, whole, batch_size):
            yield _cut(joined, start, start + batch_size)
        held = _cut(joined, whole, got) if whole < got else {}
    if held:
        yield held


def size(batch: Batch) -> int:
    """How many samples `batch` has."""
    return next((array.shape[0] for array in batch.values() if array.ndim), 1)


def _cut(batch: Batch, start: int, stop: int) -> Batch:
    return {name: array[start:stop] if array.ndim else array for name, array in batch.items()}


def _alike(one: Batch, other: Batch) -> bool:
    return all(array.shape[1:] == other[name].shape[1:] for name, array in one.items())


def _join(one: Batch, other: Batch) -> Batch:
    import numpy as np

    return {name: np.concatenate([array, other[name]]) if array.ndim else array for name, array in one.items()}


def _checked_sizes(batches: Iterator[Batch], inputs: Sequence[Input]) -> Iterator[Batch]:
    """Raises where the model's first dim is a number and a batch has another."""
    fixed = {i.name: i.shape[0] for i in inputs if i.shape and isinstance(i.shape[0], int)}
    for number, batch in enumerate(batches):
        for name, size in fixed.items():
            got = batch[name].shape[0]
            if got != size:
                raise StageError(
                    f"batch {number} has {got} samples of {name!r}; the model takes exactly {size} at a time",
                    f"set batch_size to {size}, and max_samples to a multiple of it",
                )
        yield batch


def _check(path: Path, inputs: Sequence[Input]) -> int:
    """Compares a file's headers with `inputs` and returns its number of samples."""
    headers = _headers(path, inputs)
    sizes: dict[str, int] = {}
    samples: dict[str, int] = {}
    for wanted in inputs:
        if wanted.name not in headers:
            raise StageError(
                f"{path}: has no array {wanted.name!r}: it has {', '.join(sorted(headers)) or 'none'}",
                f"store the array of each input under its name: {'; '.join(map(str, inputs))}",
            )
        header = headers[wanted.name]
        if not _fits(header, wanted, sizes):
            got = f"{header.dtype} {header.shape}"
            raise StageError(f"{path}: {wanted.name!r} is {got}; allowed: {wanted}{_bound(sizes)}", _advice(wanted))
        if header.shape:
            samples[wanted.name] = header.shape[0]
    if len(set(samples.values())) > 1:
        raise StageError(
            f"{path}: its arrays have different numbers of samples: {samples}; allowed: one number on axis 0 of all",
            "store as many rows for each input",
        )
    return next(iter(samples.values()), 1)


def _fits(header: _Header, wanted: Input, sizes: dict[str, int]) -> bool:
    """Whether type, rank and dims are allowed; `sizes` learns what the symbolic dims are. Axis 0 is cut later."""
    if header.dtype.hasobject or (wanted.dtype is not None and header.dtype != wanted.dtype):
        return False
    if wanted.shape is None:
        return len(header.shape) > 0
    if len(header.shape) != len(wanted.shape):
        return False
    for got, allowed in list(zip(header.shape, wanted.shape, strict=True))[1:]:
        if isinstance(allowed, str):
            allowed = sizes.setdefault(allowed, got)
        if allowed is not None and got != allowed:
            return False
    return True


def _bound(sizes: Mapping[str, int]) -> str:
    return f", where {', '.join(f'{name}={size}' for name, size in sizes.items())}" if sizes else ""


def _advice(wanted: Input) -> str:
    cast = f" and array.astype('{wanted.dtype}')" if wanted.dtype else ""
    return f"prepare the data as the model takes them: axis 0 counts the samples{cast}"


def _headers(path: Path, inputs: Sequence[Input]) -> dict[str, _Header]:
    """The shape and dtype of each array of a file, by name."""
    try:
        with path.open("rb") as file:
            if _is_npy(path, file, inputs):
                return {inputs[0].name: _header(file)}
        with ZipFile(path) as archive:
            return {name.removesuffix(".npy"): _member_header(archive, name) for name in archive.namelist()}
    except DAMAGED as error:
        raise _damaged(path, error) from error


def _is_npy(path: Path, file: IO[bytes], inputs: Sequence[Input]) -> bool:
    """Whether the file holds one array; False where it holds several, by name."""
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"PK"):
        return False
    if magic != b"\x93NUMPY":
        raise StageError(f"{path}: neither .npz nor .npy: it begins with {magic!r}", "store the data with numpy.savez")
    if len(inputs) > 1:
        raise StageError(
            f"{path}: one array, but {len(inputs)} are wanted: {'; '.join(map(str, inputs))}",
            "store them by name: numpy.savez(path, " + ", ".join(f"{i.name}=…" for i in inputs) + ")",
        )
    return True


def _member_header(archive: ZipFile, name: str) -> _Header:
    with archive.open(name) as file:
        return _header(file)


def _header(file: IO[bytes]) -> _Header:
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return _Header(shape, dtype)


def _load(path: Path, inputs: Sequence[Input]) -> Batch:
    import numpy as np

    try:
        loaded = np.load(path, allow_pickle=False, mmap_mode="r")  # of a .npz the mode is ignored
        if isinstance(loaded, np.ndarray):
            return {inputs[0].name: loaded}
        with loaded:
            return {wanted.name: loaded[wanted.name] for wanted in inputs}
    except DAMAGED as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> StageError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if "pickle" in reason.lower() or "object" in reason.lower():
        return StageError(
            f"{path}: holds Python objects, which are never loaded", "store plain arrays with numpy.savez"
        )
    return StageError(f"{path}: cannot be read, the file is damaged: {reason}", "copy or create the file again")
