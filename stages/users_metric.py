"""The user's own metric: a function over a model's outputs on labelled data.

    def word_error_rate(outputs, labels): ...

`outputs` is a sequence of batches, `{output: array}` each, and `labels` a sequence of the arrays that stand beside
them, one for each batch; both are read from disk as they are asked for. It returns a number, or numbers by name; or
instead of a number an array (N,) with one for each sample, whose mean is the metric: only then is it known how sure it
is.

Of numbers that are 0 or 1 the mean is a rate: its interval is Wilson's, that of the drop Newcombe's. Of others both are
bootstrapped (`stages.intervals`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from stages import intervals
from stages.metrics import is_float
from stages.stage import JSON, StageError
from stages.users_python import find, imports_from, raised

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from stages.batches import Array, Batch

    Values = npt.NDArray[np.float64]

DIRECTIONS = ("higher", "lower")
"""Which numbers are better."""

_RETURN = "return a number, numbers by name, or instead of a number an array with one for each sample"


class Kept(Sequence[Any]):
    """Batches of arrays in files, since all outputs on a data set may be larger than memory.

    Args:
        folder: A directory of its own.
        single: Whether each batch is one array, not several by name.
    """

    def __init__(self, folder: Path, single: bool = False) -> None:
        self._folder, self._single = folder, single
        self._names: list[list[str]] = []
        folder.mkdir()

    def append(self, batch: Batch | Array) -> None:
        """Writes one batch."""
        import numpy as np

        given = batch if isinstance(batch, Mapping) else {"": batch}
        # The floats of ml_dtypes are written as bytes of no type.
        plain = [v.astype(np.float32) if is_float(v) and v.dtype.kind != "f" else v for v in given.values()]
        np.savez(self._folder / f"{len(self._names)}.npz", *plain)
        self._names.append(list(given))

    def __len__(self) -> int:
        return len(self._names)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        import numpy as np

        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = index % len(self)
        with np.load(self._folder / f"{place}.npz") as file:
            arrays = [file[f"arr_{number}"] for number in range(len(file.files))]
        return arrays[0] if self._single else dict(zip(self._names[place], arrays, strict=True))


@dataclass(frozen=True)
class Judgement:
    """What the function says about one model.

    Attributes:
        mean: The metric.
        samples: It for each sample, float64; None where only the mean is known.
    """

    mean: float
    samples: Values | None = None

    @property
    def interval(self) -> JSON:
        """The 95 % interval of the mean; None where nobody knows."""
        if self.samples is None:
            return None
        if _is_rate(self.samples):
            return intervals.wilson(int(self.samples.sum()), len(self.samples))
        return intervals.bootstrap(self.samples)


@dataclass(frozen=True)
class UsersMetric:
    """A function of the user's that judges outputs.

    Attributes:
        name: `package.module:function`, or `.py:function` for a script.
        source: The function's modules; of a script, itself first.
        direction: `higher` or `lower`: which numbers are better.
    """

    name: str
    source: Sequence[Path]
    direction: str = "higher"
    _script: Path | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_script", self.source[0] if self.name.startswith(".py:") else None)

    @property
    def called(self) -> str:
        """How errors call it."""
        return f"{self._script}:{self.name.partition(':')[2]}" if self._script else self.name

    def judge(self, models: Mapping[str, Sequence[Batch]], labels: Sequence[Array]) -> dict[str, dict[str, Judgement]]:
        """The metric's numbers by name, for the outputs of each model.

        Raises:
            StageError: The function is not there, raises, or gives no finite numbers.
        """
        places = [self._script.parent, Path.cwd()] if self._script else [Path.cwd()]
        with imports_from(*places):
            function = find(self.name, self._script)
            return {who: self._judged(function, outputs, labels) for who, outputs in models.items()}

    def result(self, reference: Mapping[str, Judgement], candidate: Mapping[str, Judgement]) -> dict[str, JSON]:
        """As the report holds it; `drop` > 0 where the candidate is worse.

        Raises:
            StageError: The function gave other numbers for one than for the other.
        """
        if set(reference) != set(candidate):
            raise StageError(
                f"{self.called} gave {', '.join(sorted(reference))} for the reference and "
                f"{', '.join(sorted(candidate))} for the candidate",
                "return the same names each time",
            )
        return {name: self._compared(reference[name], candidate[name]) for name in reference}

    def _compared(self, reference: Judgement, candidate: Judgement) -> dict[str, JSON]:
        sign = 1.0 if self.direction == "higher" else -1.0
        return {
            "reference": reference.mean,
            "reference_interval": reference.interval,
            "candidate": candidate.mean,
            "candidate_interval": candidate.interval,
            "drop": sign * (reference.mean - candidate.mean),
            "drop_interval": _drop_interval(reference.samples, candidate.samples, sign),
        }

    def _judged(self, function: Any, outputs: Sequence[Batch], labels: Sequence[Array]) -> dict[str, Judgement]:
        try:
            returned = function(outputs, labels)
        except Exception as error:
            raise raised(self.called, error) from error
        given = returned if isinstance(returned, Mapping) else {"metric": returned}
        if not given:
            raise StageError(f"{self.called} returned no number: an empty dict", _RETURN)
        samples = sum(map(len, labels))
        return {str(name): self._number(value, str(name), samples) for name, value in given.items()}

    def _number(self, value: Any, name: str, samples: int) -> Judgement:
        import numpy as np

        try:
            given = np.asarray(value)
        except (TypeError, ValueError):  # a ragged list, an array of a GPU
            given = np.asarray(None)
        if given.dtype.kind not in "biuf":
            raise StageError(f"{self.called} returned no number: {name} is {type(value).__name__}", _RETURN)
        numbers = given.astype(np.float64)
        if numbers.shape not in ((), (samples,)):
            raise StageError(
                f"{self.called} returned {name} of the shape {numbers.shape}, and there are {samples} samples", _RETURN
            )
        if not np.isfinite(numbers).all():
            where = f" at sample {int((~np.isfinite(numbers)).argmax())}" if numbers.ndim else ""
            raise StageError(f"{self.called} returned a {name} that is not finite{where}", "return finite numbers")
        return Judgement(float(numbers.mean()), numbers if numbers.ndim else None)


def _is_rate(samples: Values) -> bool:
    return bool(((samples == 0) | (samples == 1)).all())


def _drop_interval(reference: Values | None, candidate: Values | None, sign: float) -> JSON:
    if reference is None or candidate is None:
        return None
    if not (_is_rate(reference) and _is_rate(candidate)):
        return intervals.bootstrap(sign * (reference - candidate))
    first, second = (reference, candidate) if sign > 0 else (candidate, reference)
    both, one, other = (int((a * b).sum()) for a, b in ((first, second), (first, 1 - second), (1 - first, second)))
    return intervals.paired_difference(both, one, other, len(first) - both - one - other)
