"""What a batch is: a model's inputs by name, axis 0 of each counting the samples; and whether one fits the model.

Where batches come from is `stages.data`'s to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

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
class Header:
    """Shape and dtype of an array, known without its values."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @staticmethod
    def of(array: Array) -> Header:
        """The header of an array at hand."""
        return Header(array.shape, array.dtype)


@dataclass(frozen=True)
class Limits:
    """What one profile admits of a sample, axis 0 left out.

    Attributes:
        profile: The profile's name.
        shapes: Smallest and largest shape of a sample, by input.
    """

    profile: str
    shapes: Mapping[str, tuple[Sequence[int], Sequence[int]]]

    def admits(self, shapes: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether these shapes, axis 0 among them, lie within in all other dims."""
        return all(_within(shapes[name][1:], *ends) for name, ends in self.shapes.items() if shapes.get(name))


def _within(shape: Sequence[int], low: Sequence[int], high: Sequence[int]) -> bool:
    return len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))


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


def require_fit(
    where: str, headers: Mapping[str, Header], inputs: Sequence[Input], limits: Sequence[Limits] = ()
) -> int:
    """Holds arrays against what is wanted, before their values are looked at.

    Args:
        where: What they are of, for the error: a file, a feed.
        headers: By name; other names than the inputs' are ignored.
        inputs: What is wanted.
        limits: Of these one at least must admit the samples; none: any shape that the model takes.

    Returns:
        int: The number of samples; 1 where all inputs are scalars.

    Raises:
        StageError: A name is missing, a type, rank or size is another, or no profile takes such samples.
    """
    sizes: dict[str, int] = {}
    samples: dict[str, int] = {}
    for wanted in inputs:
        if wanted.name not in headers:
            raise StageError(
                f"{where}: has no array {wanted.name!r}: it has {', '.join(sorted(headers)) or 'none'}",
                f"give the array of each input under its name: {'; '.join(map(str, inputs))}",
            )
        header = headers[wanted.name]
        if not _fits(header, wanted, sizes):
            got = f"{header.dtype} {header.shape}"
            raise StageError(f"{where}: {wanted.name!r} is {got}; allowed: {wanted}{_bound(sizes)}", _advice(wanted))
        if header.shape:
            samples[wanted.name] = header.shape[0]
    if len(set(samples.values())) > 1:
        raise StageError(
            f"{where}: its arrays have different numbers of samples: {samples}; allowed: one number on axis 0 of all",
            "store as many rows for each input",
        )
    _require_limits(where, {wanted.name: headers[wanted.name].shape for wanted in inputs}, limits)
    return next(iter(samples.values()), 1)


def _fits(header: Header, wanted: Input, sizes: dict[str, int]) -> bool:
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


def _require_limits(where: str, shapes: Mapping[str, tuple[int, ...]], limits: Sequence[Limits]) -> None:
    if not limits or any(each.admits(shapes) for each in limits):
        return
    refused: dict[str, list[str]] = {}
    for each in limits:
        name = next(name for name in each.shapes if not Limits("", {name: each.shapes[name]}).admits(shapes))
        low, high = each.shapes[name]
        refused.setdefault(name, []).append(f"profile {each.profile!r} takes {tuple(low)} to {tuple(high)}")
    told = "; ".join(
        f"a sample of {name!r} is {shapes[name][1:]}, {', '.join(takes)}" for name, takes in refused.items()
    )
    raise StageError(
        f"{where}: {told}",
        "widen a profile (model.dims, model.profiles), or give data that fit: the engine would refuse these",
    )


def size(batch: Batch) -> int:
    """How many samples `batch` has."""
    return next((array.shape[0] for array in batch.values() if array.ndim), 1)


def cut(batch: Batch, start: int, stop: int) -> Batch:
    """The samples from `start` to `stop`; a scalar belongs to all."""
    return {name: array[start:stop] if array.ndim else array for name, array in batch.items()}


def regroup(pieces: Iterator[Batch], batch_size: int) -> Iterator[Batch]:
    """Batches of `batch_size` out of pieces of any size.

    The last one may be smaller, and so is one whose next sample has another shape.
    """
    held: list[Batch] = []
    samples = 0
    for piece in pieces:
        if held and not _alike(held[0], piece):
            yield _joined(held)
            held, samples = [], 0
        held.append(piece)
        samples += size(piece)
        if samples >= batch_size:
            joined, whole = _joined(held), samples - samples % batch_size
            for start in range(0, whole, batch_size):
                yield cut(joined, start, start + batch_size)
            held = [cut(joined, whole, samples)] if whole < samples else []
            samples -= whole
    if held:
        yield _joined(held)


def _alike(one: Batch, other: Batch) -> bool:
    return all(array.shape[1:] == other[name].shape[1:] for name, array in one.items())


def _joined(held: Sequence[Batch]) -> Batch:
    import numpy as np

    first, *others = held
    if not others:
        return first
    return {
        name: np.concatenate([array, *(other[name] for other in others)]) if array.ndim else array
        for name, array in first.items()
    }


def fixed_batch(inputs: Sequence[Input]) -> int | None:
    """How many samples the model takes at a time, where that is a number of its own."""
    return next((wanted.shape[0] for wanted in inputs if wanted.shape and isinstance(wanted.shape[0], int)), None)


def checked_sizes(batches: Iterator[Batch], inputs: Sequence[Input]) -> Iterator[Batch]:
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
