"""What can be wrong with a config."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

SEE = "docs/config.md lists every key and what it takes"
"""The next step where nothing more to the point can be said."""


class ConfigError(Exception):
    """The config, or the call, is wrong.

    Args:
        what: One line: what, where, what it got and what is allowed.
        next_step: One line: what the user can do about it.
    """

    def __init__(self, what: str, next_step: str = SEE) -> None:
        super().__init__(what, next_step)
        self.what = what
        self.next_step = next_step

    def __str__(self) -> str:
        return self.what


def suggest(wrong: str, allowed: Iterable[str]) -> str:
    """A next step for a wrong name: the close matches, or else everything that is allowed."""
    names = sorted(allowed)
    close = get_close_matches(wrong, names, n=3, cutoff=0.6)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"allowed: {', '.join(names)}" if names else "nothing is allowed here"
