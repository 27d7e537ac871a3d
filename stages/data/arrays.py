"""`.npz` and `.npy` files, read in pieces: what is in memory is one piece, however large the file is.

A `.npz` has one array per input, under the input's name; arrays of other names are ignored. A `.npy` does for a model
with one input. An array in Fortran order is read whole, since its samples do not lie one after the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import IO, TYPE_CHECKING
from zipfile import BadZipFile, ZipFile
from zlib import error as ZlibError  # noqa: N812 - zlib's only exception

from stages import batches
from stages.batches import Header, Input, Limits
from stages.stage import StageError
from stages.wording import first_line

if TYPE_CHECKING:
    from stages.batches import Array, Batch

PIECE_BYTES = 1 << 20
"""A piece is at least so large: small ones cost more than what is in them."""

DAMAGED = (BadZipFile, ZlibError, EOFError, OSError, ValueError, KeyError, NotImplementedError, MemoryError)
"""What numpy and zipfile raise on files that were cut or altered."""


@dataclass(frozen=True)
class Arrays:
    """A set of files.

    Attributes:
        files: `.npz` or `.npy`, recognized by their content: objects of a store have no suffix.
        inputs: What to read.
        limits: What the profiles take.
    """

    files: Sequence[Path]
    inputs: Sequence[Input]
    limits: Sequence[Limits] = ()

    def count(self) -> int:
        """How many samples there are; reads headers only, and checks all of them.

        Raises:
            StageError: There is no file, or one does not fit the model.
        """
        if not self.files:
            raise StageError("no batches: the set has no file", "give .npz or .npy files")
        return sum(self._sizes)

    def pieces(self, chosen: Sequence[int], rows: int | None) -> Iterator[Batch]:
        """The samples `chosen`, in pieces.

        Args:
            chosen: Which, counted over all files, in rising order.
            rows: About so many samples a piece; None: a file is one piece.

        Raises:
            StageError: A file is damaged.
        """
        import numpy as np

        wanted, start = np.asarray(chosen, dtype=np.int64), 0
        for path, samples in zip(self.files, self._sizes, strict=True):
            first, last = np.searchsorted(wanted, (start, start + samples))
            if first < last:
                yield from _pieces(path, self.inputs, wanted[first:last] - start, rows)
            start += samples

    def holding(self, chosen: Sequence[int]) -> int:
        """In how many files the samples `chosen` lie."""
        import numpy as np

        ends = np.cumsum(self._sizes)
        return len(np.unique(np.searchsorted(ends, np.asarray(chosen, dtype=np.int64), side="right")))

    @cached_property
    def _sizes(self) -> list[int]:
        return [
            batches.require_fit(str(path), headers(path, self.inputs), self.inputs, self.limits) for path in self.files
        ]


def _pieces(path: Path, inputs: Sequence[Input], rows: Array, count: int | None) -> Iterator[Batch]:
    """The samples `rows` of one file, in rising order."""
    import numpy as np

    with ExitStack() as stack:
        columns = _opened(path, inputs, stack)
        step = count and max(count, PIECE_BYTES // max(1, sum(column.row_bytes for column in columns.values())))
        start = 0
        while start < len(rows):
            stop = int(np.searchsorted(rows, rows[start] + step)) if step else len(rows)
            low, high = int(rows[start]), int(rows[stop - 1]) + 1
            read = {name: column.read(low, high) for name, column in columns.items()}
            some = high - low > stop - start
            yield {
                name: array[rows[start:stop] - low] if some and array.ndim else array for name, array in read.items()
            }
            start = stop


class _Column:
    """One array of a file, whose samples are read from first to last."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self._path, self._file = path, file
        self._header, fortran_order = _header(file)
        shape = self._header.shape
        self.row_bytes = prod(shape[1:]) * self._header.dtype.itemsize
        self._begin = file.tell()
        self._whole = self._read(shape[::-1]).T if fortran_order else None

    def read(self, start: int, stop: int) -> Array:
        """Samples `start` to `stop`; of a scalar, its value."""
        if self._whole is not None:
            return self._whole[start:stop]
        if not self._header.shape:
            self._seek(0)
            return self._read(())
        self._seek(start * self.row_bytes)
        return self._read((stop - start, *self._header.shape[1:]))

    def _seek(self, offset: int) -> None:
        try:
            if self._file.tell() != self._begin + offset:  # in a .npz to seek means to read up to there
                self._file.seek(self._begin + offset)
        except DAMAGED as error:
            raise _damaged(self._path, error) from error

    def _read(self, shape: tuple[int, ...]) -> Array:
        import numpy as np

        try:
            array: Array = np.empty(shape, self._header.dtype)
            left = memoryview(array.reshape(-1).view(np.uint8).data)
            while left:
                got = self._file.readinto(left)  # type: ignore[attr-defined]
                if not got:
                    raise EOFError(f"it ends {len(left):,} bytes too early")
                left = left[got:]
            return array
        except DAMAGED as error:
            raise _damaged(self._path, error) from error


def _opened(path: Path, inputs: Sequence[Input], stack: ExitStack) -> dict[str, _Column]:
    """The arrays that are wanted of a file, by name."""
    try:
        file = stack.enter_context(path.open("rb"))
        if _is_npy(path, file, inputs):
            return {inputs[0].name: _Column(path, file)}
        archive = stack.enter_context(ZipFile(file))
        names = {name.removesuffix(".npy"): name for name in archive.namelist()}
        members = {wanted.name: stack.enter_context(archive.open(names[wanted.name])) for wanted in inputs}
        return {name: _Column(path, member) for name, member in members.items()}
    except DAMAGED as error:
        raise _damaged(path, error) from error


def headers(path: Path, inputs: Sequence[Input]) -> Mapping[str, Header]:
    """The shape and dtype of each array of a file, by name."""
    try:
        with path.open("rb") as file:
            if _is_npy(path, file, inputs):
                return {inputs[0].name: _header(file)[0]}
            with ZipFile(file) as archive:
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


def _member_header(archive: ZipFile, name: str) -> Header:
    with archive.open(name) as file:
        return _header(file)[0]


def _header(file: IO[bytes]) -> tuple[Header, bool]:
    """The header, and whether the array is in Fortran order; `file` is then where the values begin."""
    from numpy.lib import format as npy

    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, fortran_order, dtype = read(file)
    return Header(shape, dtype), fortran_order


def _damaged(path: Path, error: BaseException) -> StageError:
    reason = first_line(error)
    if "pickle" in reason.lower() or "object" in reason.lower():
        return StageError(
            f"{path}: holds Python objects, which are never loaded", "store plain arrays with numpy.savez"
        )
    return StageError(f"{path}: cannot be read, the file is damaged: {reason}", "copy or create the file again")
