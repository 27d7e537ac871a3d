"""What a deploy does to a Prefect server, thing by thing: as it is, as it shall be, and how it becomes so."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Change:
    """One thing on the server, as it is and as it shall be.

    Attributes:
        what: `deployment trtforge-build/build`.
        now: Its fields as the server has them; None where it is not there.
        wanted: The same fields as the file has them; None for what the file does not name, which is left alone.
        apply: Makes it so.
    """

    what: str
    now: Mapping[str, Any] | None
    wanted: Mapping[str, Any] | None
    apply: Callable[[], object]

    @property
    def state(self) -> str:
        """`create`, `change`, or `left` as it is."""
        if self.wanted is None or self.now == self.wanted:
            return "left"
        return "create" if self.now is None else "change"

    @property
    def fields(self) -> Mapping[str, tuple[Any, Any]]:
        """Of a change: the fields that differ, as they are and as they shall be."""
        if self.state != "change":
            return {}
        now, wanted = self.now or {}, self.wanted or {}
        return {name: (now.get(name), wanted[name]) for name in wanted if now.get(name) != wanted[name]}

    def document(self) -> dict[str, Any]:
        """What `deploy --json` prints of it."""
        told = {"what": self.what, "state": self.state, "in_file": self.wanted is not None}
        return {**told, "fields": {name: {"now": now, "wanted": to} for name, (now, to) in self.fields.items()}}

    def lines(self) -> list[str]:
        """As a diff for people."""
        sign = {"create": "+", "change": "~", "left": "="}[self.state]
        note = "  (not in the file)" if self.wanted is None else ""
        return [f"{sign} {self.what}{note}"] + [
            f"    {name}: {json.dumps(now, default=str)} -> {json.dumps(to, default=str)}"
            for name, (now, to) in self.fields.items()
        ]


def apply(found: Sequence[Change], say: Callable[[str], None]) -> None:
    """Makes the changes, one after the other, and tells each."""
    for change in found:
        if change.state != "left":
            change.apply()
            for line in change.lines():
                say(line)
