"""What two questions differ in, field by field: `config.fold_max_bytes`, `inputs.calibration[3]`, `tools.onnx`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Path = tuple["str | int", ...]
"""Keys of mappings and positions in lists, from the outside in."""


@dataclass(frozen=True)
class Difference:
    """One field that two questions answer differently.

    Attributes:
        path: Where it is.
        before: Its value in the earlier question; None also where it had none.
        after: Its value in the later one; None also where it has none.
    """

    path: Path
    before: Any
    after: Any

    @property
    def field(self) -> str:
        """The path as people write it: `inputs.calibration[3]`."""
        return spell(self.path)


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """The leaves in which two questions differ, in the order of their names.

    Lists are compared position by position, since the order of batches counts. A mapping or list against something
    else is one difference, not many.
    """
    return list(_walk((), before, after))


def spell(path: Path) -> str:
    """A path as people write it."""
    parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return "".join(parts).removeprefix(".")


def _walk(path: Path, before: Any, after: Any) -> Iterator[Difference]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for name in sorted(before.keys() | after.keys()):
            yield from _walk((*path, name), before.get(name), after.get(name))
    elif _is_list(before) and _is_list(after):
        for position in range(max(len(before), len(after))):
            yield from _walk((*path, position), _at(before, position), _at(after, position))
    elif before != after or type(before) is not type(after):  # True == 1, and their JSON is not the same
        yield Difference(path, before, after)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _at(values: Sequence[Any], position: int) -> Any:
    return values[position] if position < len(values) else None
