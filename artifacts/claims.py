"""Claims: the keys that running builds rely on, for gc to see.

A build claims a key before it looks it up for use, and gc looks at all claims before it deletes. Between the two stands
one lock: claiming shares it for the moment that it takes to write a line, gc has it alone. So either gc sees the claim
and leaves the record alone, or the build looks after gc is done and sees that the record is gone. Claims end with their
process, however it ends: each process locks its file of claims, and a file that nobody locks counts for nothing.
"""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import FileIO
from pathlib import Path

from artifacts import digest, locks


def gate(root: Path) -> Path:
    """The lock between builds and gc, of the store at `root`."""
    return root / "locks" / "gc"


class Claims:
    """What this process claims in the store at `root`, from any thread."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._keys: set[str] = set()
        self._thread = threading.Lock()
        self._path = root / "claims" / f"{os.getpid()}-{secrets.token_hex(4)}"
        self._file: FileIO | None = None

    @property
    def any(self) -> bool:
        """Whether there are any."""
        return bool(self._keys)

    def add(self, keys: Iterable[str], waiting: Callable[[str], None]) -> None:
        """Claims `keys`.

        Raises:
            OSError: The claims cannot be written.
        """
        with self._thread:
            fresh = set(keys) - self._keys
            if not fresh:
                return
            gate(self._root).parent.mkdir(parents=True, exist_ok=True)
            with locks.shared(gate(self._root), waiting):
                if self._file is None:
                    self._file = self._open()
                self._file.write("".join(f"{key}\n" for key in sorted(fresh)).encode())
            self._keys |= fresh

    def release(self) -> None:
        """Claims nothing any more."""
        with self._thread:
            if self._file is not None:
                with suppress(OSError):  # once closed it counts for nothing, and gc removes it
                    self._path.unlink(missing_ok=True)
                self._file.close()
            self._file, self._keys = None, set()

    def _open(self) -> FileIO:
        self._path.parent.mkdir(exist_ok=True)
        file = FileIO(self._path, "a")  # closed with the last reference to it, should nobody release
        locks.hold(file.fileno())
        return file


def claimed(root: Path) -> set[str]:
    """All keys that living processes claim in the store at `root`; they stay so while the gate is held alone."""
    found: set[str] = set()
    for path in (root / "claims").glob("*"):
        with suppress(FileNotFoundError):
            if locks.is_held(path):
                found |= {line for line in path.read_text(encoding="ascii").splitlines() if digest.is_digest(line)}
    return found


def sweep(root: Path) -> None:
    """Removes the claims of the dead; call it with the gate held alone, or a claim that is just made may be missed."""
    for path in (root / "claims").glob("*"):
        if not locks.is_held(path):
            path.unlink(missing_ok=True)
