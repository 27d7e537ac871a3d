"""Rows of a Hugging Face dataset: what `save_to_disk` left, Parquet files, or a pinned commit of the hub.

Each row is one sample. Whole numbers take the model's whole-number type where they fit it, floats its float type.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from stages import batches
from stages.batches import Header, Input, Limits
from stages.data.options import Dataset
from stages.stage import StageError
from stages.wording import first_line

if TYPE_CHECKING:
    from stages.batches import Array, Batch

STATE = "state.json"
"""The file that `save_to_disk` leaves in the directory of each split."""


@dataclass(frozen=True)
class Rows:
    """The rows of a dataset.

    Attributes:
        files: Its files; none: it is the hub's.
        inputs: What to read.
        which: The dataset, and how its columns are called.
        scratch: A directory that may be written to: Parquet files are unpacked in it.
        limits: What the profiles take.
    """

    files: Sequence[Path]
    inputs: Sequence[Input]
    which: Dataset
    scratch: Path
    limits: Sequence[Limits] = ()

    def count(self) -> int:
        """How many rows there are; checks that there is a column for each input.

        Raises:
            StageError: `datasets` is missing, the dataset cannot be loaded, or a column is not there.
        """
        known, columns = set(self._loaded.column_names), self._columns
        for wrong in [*(set(self.which.columns) - known), *(set(columns.values()) - known)]:
            raise StageError(
                f"the dataset has no column {wrong!r}: it has {', '.join(sorted(known))}",
                f"say which column is which input: dataset.columns={{COLUMN: {', COLUMN: '.join(columns)}}}",
            )
        return len(self._loaded)

    def pieces(self, chosen: Sequence[int], rows: int | None) -> Iterator[Batch]:
        """Each of the rows `chosen`, as a piece of one sample.

        Raises:
            StageError: A row does not fit the model; names it.
        """
        for index in chosen:
            row = self._loaded[int(index)]
            piece = {wanted.name: _array(row[self._columns[wanted.name]], wanted) for wanted in self.inputs}
            headers = {name: Header.of(array) for name, array in piece.items()}
            batches.require_fit(f"row {index} of the dataset (counted from 0)", headers, self.inputs, self.limits)
            yield piece

    @property
    def _columns(self) -> Mapping[str, str]:
        """The column of each input."""
        named = {name: column for column, name in self.which.columns.items()}
        return {wanted.name: named.get(wanted.name, wanted.name) for wanted in self.inputs}

    @cached_property
    def _loaded(self) -> Any:
        try:
            import datasets
        except ImportError as error:
            raise StageError(
                "a dataset needs datasets, which is not installed here", "pip install 'trtforge[datasets]'"
            ) from error
        datasets.disable_progress_bars()
        try:
            return self._load(datasets)
        except Exception as error:  # pyarrow, fsspec and huggingface_hub have errors of their own
            reason = first_line(error)
            where = self.files[0].parent if self.files else f"{self.which.name} at {self.which.revision}"
            raise StageError(
                f"the dataset {where} cannot be loaded: {type(error).__name__}: {reason}",
                "load it by itself in Python, with the same version of datasets",
            ) from error

    def _load(self, datasets: Any) -> Any:
        which = self.which
        if which.name is not None:
            return datasets.load_dataset(which.name, which.subset, split=which.split, revision=which.revision)
        saved = [path.parent for path in self.files if path.name == STATE]
        if saved:
            return datasets.load_from_disk(str(saved[0]))
        return datasets.Dataset.from_parquet([str(path) for path in self.files], cache_dir=self._unpacked.name)

    @cached_property
    def _unpacked(self) -> TemporaryDirectory[str]:
        return TemporaryDirectory(dir=self.scratch, ignore_cleanup_errors=True)


def _array(value: Any, wanted: Input) -> Array:
    """`(1, …)`, in the type that is wanted where no value changes by it; what fits no array is one of objects."""
    import numpy as np

    try:
        array = np.asarray(value)[None]
    except ValueError:  # rows of different lengths inside of one
        return np.array([None])
    if wanted.dtype is None or array.dtype.hasobject:
        return array
    kind = np.dtype(wanted.dtype)
    if array.dtype.kind == kind.kind == "f":
        return array.astype(kind)
    if array.dtype.kind in "iu" and kind.kind in "iu":
        cast = array.astype(kind)
        return cast if np.array_equal(cast, array) else array
    return array
