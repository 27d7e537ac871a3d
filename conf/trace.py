"""What a composed config was made from, so that whoever keeps it can tell whether it would be composed alike again.

Nothing here imports Hydra: a kept config is checked without it.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RACY_NS = 2_000_000_000
"""A file that is younger may change again within the same time stamp (as in `artifacts.memo`)."""

Stat = tuple[int, ...]


@dataclass
class Trace:
    """What was asked of the outside while a config was composed.

    Attributes:
        variables: Variables of the environment that `${oc.env:…}` read, and their values; None: not set.
        places: Paths below the user's own config directories, and what was there: `file`, `directory` or nothing.
        files: Those of the user's files that were read, and the sha256 of their content.
        unsure: Why nobody can tell whether it would be composed alike again, such as `${now:…}`; empty where one can.
    """

    variables: dict[str, str | None] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    unsure: str = ""
    _stats: dict[str, Stat] = field(default_factory=dict)

    def variable(self, name: str) -> None:
        """Notes that the variable `name` is about to be read."""
        self._note(self.variables, name, os.environ.get(name))

    def place(self, path: str) -> None:
        """Notes that somebody is about to ask what is at `path`."""
        with suppress(OSError):  # where there is no directory, nothing comes and goes
            self._stats.setdefault(os.path.dirname(path), _identity(os.path.dirname(path)))  # noqa: PTH120
        self._note(self.places, path, what_is_at(path))

    def file(self, path: str) -> None:
        """Notes that the file at `path` is about to be read."""
        try:
            self._stats.setdefault(path, _identity(path))
            self._note(self.files, path, content_of(path))
        except OSError as error:  # whoever reads it will say so
            self.unsure = self.unsure or f"{path}: {error.strerror}"

    def settled(self) -> bool:
        """Whether all is still as it was noted, and too old to change again unseen."""
        now_ns = time.time_ns()
        try:
            quiet = all(
                _identity(path) == stat and now_ns - max(stat[-2:]) > RACY_NS for path, stat in self._stats.items()
            )
        except OSError:
            return False
        return quiet and not self.unsure and self.holds()

    def holds(self) -> bool:
        """Whether the outside would give the same answers now."""
        try:
            return (
                all(os.environ.get(name) == value for name, value in self.variables.items())
                and all(what_is_at(path) == what for path, what in self.places.items())
                and all(content_of(path) == content for path, content in self.files.items())
            )
        except OSError:
            return False

    def _note(self, notes: dict[str, Any], name: str, value: Any) -> None:
        if notes.setdefault(name, value) != value:
            self.unsure = f"{name} changed while the config was composed"


_current: ContextVar[Trace | None] = ContextVar("trace", default=None)


def current() -> Trace | None:
    """The trace of the config that this thread composes, if anybody wants one."""
    return _current.get()


@contextmanager
def tracing(trace: Trace | None) -> Iterator[None]:
    """Notes in `trace` what is read inside."""
    token = _current.set(trace)
    try:
        yield
    finally:
        _current.reset(token)


def what_is_at(path: str) -> str:
    """`file`, `directory`, or nothing, through links."""
    return "file" if os.path.isfile(path) else "directory" if os.path.isdir(path) else ""  # noqa: PTH112, PTH113


def content_of(path: str) -> str:
    """The sha256 of the file at `path`; config files are read each time, since they are small.

    Raises:
        OSError: It cannot be read.
    """
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _identity(path: str) -> Stat:
    stat = os.stat(path)  # noqa: PTH116 - this is asked a thousand times for a catalog
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)
