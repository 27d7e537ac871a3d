"""How messages shorten what others say, and what there are many of."""

from __future__ import annotations

from collections.abc import Sequence

MOST_NAMED = 5


def first_line(error: BaseException) -> str:
    """The first line of what `error` says, or its type where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def listed(names: Sequence[str], most: int = MOST_NAMED) -> str:
    """`a, b, c and 7 more`: the first of `names`, and how many are left out."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
