"""Tensors by name, type and shape, held against one another: is one set of weights made for the same model as another?

Values play no part, and need not be read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from stages.stage import JSON

Kind: TypeAlias = Literal["missing", "extra", "different"]

KINDS: tuple[Kind, ...] = ("missing", "extra", "different")
"""In the order in which they are told."""

MOST_LISTED = 20
"""So many differences are named in one error; of the others only the number. A checkpoint of another model differs in
each of its hundreds of tensors, and the first few say so."""


@dataclass(frozen=True)
class Spec:
    """What a tensor is.

    Attributes:
        dtype: In numpy's and ml_dtypes' words: `float32`, `bfloat16`.
        shape: Its dims.
    """

    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"

    @property
    def is_float(self) -> bool:
        """Whether its numbers are floating-point ones, of any width."""
        return "float" in self.dtype


@dataclass(frozen=True)
class Difference:
    """A tensor that is not on both sides, or not the same on both.

    Attributes:
        name: What both call it.
        want: What the model has; None: it has none of that name.
        got: What the new weights have; None likewise.
    """

    name: str
    want: Spec | None
    got: Spec | None

    def __str__(self) -> str:
        if self.want and self.got:
            return f"{self.name} {self.got} instead of {self.want}"
        return f"{self.name} {self.want or self.got}"

    @property
    def kind(self) -> Kind:
        """What is wrong with the new weights."""
        return "different" if self.want and self.got else "missing" if self.want else "extra"

    def document(self) -> dict[str, JSON]:
        """As `--json` shows it: `{name, kind, want: {dtype, shape} or null, got: the same}`."""
        sides = {"want": self.want, "got": self.got}
        told: dict[str, JSON] = {
            side: {"dtype": spec.dtype, "shape": list(spec.shape)} if spec else None for side, spec in sides.items()
        }
        return {"name": self.name, "kind": self.kind, **told}


def compare(
    want: Mapping[str, Spec], got: Mapping[str, Spec], *, may_lack: Collection[str] = (), may_add: Collection[str] = ()
) -> list[Difference]:
    """How `got` differs from `want`: what is missing first, then what is extra, then what is different; each by name.

    Args:
        want: The model's tensors.
        got: The new ones.
        may_lack: Names of `want` that need not be in `got`; one that is must be the same all the same.
        may_add: Names of `got` that need not be in `want`.
    """
    found = [
        Difference(name, want.get(name), got.get(name))
        for name in sorted(want.keys() | got.keys())
        if want.get(name) != got.get(name)
    ]
    allowed: dict[Kind, Collection[str]] = {"missing": may_lack, "extra": may_add, "different": ()}
    return [each for kind in KINDS for each in found if each.kind == kind and each.name not in allowed[kind]]


def counted(differences: Sequence[Difference]) -> str:
    """How many there are of each kind: `2 missing, 1 different`."""
    counts = Counter(each.kind for each in differences)
    return ", ".join(f"{counts[kind]} {kind}" for kind in KINDS if counts[kind])


def listed(differences: Sequence[Difference]) -> str:
    """The first `MOST_LISTED` in one line, and how many there are beyond."""
    shown, left = differences[:MOST_LISTED], len(differences) - MOST_LISTED
    parts = (
        f"{kind}: {', '.join(str(each) for each in shown if each.kind == kind)}"
        for kind in KINDS
        if any(each.kind == kind for each in shown)
    )
    return "; ".join(parts) + (f"; and {left} more" if left > 0 else "")
