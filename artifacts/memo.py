"""Digests of files, remembered by stat, so that a build with nothing to do reads no file twice.

A row is believed only while device, inode, size, mtime and ctime are the same. A file that changed so recently that a
second change could leave the same time stamps is never remembered (git's rule for racy entries). The memo is a
convenience: unreadable or damaged, it is forgotten and everything is hashed again.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from contextlib import suppress
from pathlib import Path

from artifacts import digest

RACY_NS = 2_000_000_000
"""Coarsest time stamp of a file system in use: FAT and some network file systems count in steps of 2 s."""

_FAULTS = (sqlite3.Error, UnicodeDecodeError, OverflowError)
"""What a damaged file makes `sqlite3` raise; its own messages may not even be text."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS files (
    device INTEGER, inode INTEGER, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER, digest TEXT, seal TEXT,
    PRIMARY KEY (device, inode))
"""


class Memo:
    """Remembers file digests in the SQLite file at `path`, from any thread and any number of processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._fresh: dict[tuple[int, ...], str] = {}
        self._database = self._open()

    def digest(self, path: Path) -> str:
        """The digest of the file at `path`, hashed only if its stat is not known.

        Raises:
            OSError: The file cannot be read.
        """
        before = os.stat(path)  # noqa: PTH116 - twice as fast as Path.stat, and this is the hot path
        identity = _identity(before)
        with self._lock:
            known = self._fresh.get(identity) or self._recall(identity)
        if known is not None:
            return known
        now_ns = time.time_ns()
        found = digest.of_file(path)
        settled = now_ns - max(before.st_mtime_ns, before.st_ctime_ns) > RACY_NS
        if settled and _identity(path.stat()) == identity:
            with self._lock:
                self._fresh[identity] = found
        return found

    def save(self) -> None:
        """Writes what was learnt; a store that cannot be written stays as it is and is hashed again next time."""
        with self._lock:
            self._database = self._database or self._open()  # the store may have been made since
            if self._database is None or not self._fresh:
                return
            rows = [(*identity, found, _seal(identity, found)) for identity, found in self._fresh.items()]
            with suppress(*_FAULTS), self._database:
                self._database.execute(_SCHEMA)
                self._database.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
                self._fresh.clear()

    def _open(self) -> sqlite3.Connection | None:
        if not self._path.parent.is_dir():
            return None
        try:
            database = sqlite3.connect(self._path, timeout=1.0, check_same_thread=False)
            database.execute("SELECT 1 FROM sqlite_master").fetchone()
        except _FAULTS as error:
            return self._start_over() if _is_damage(error) else None
        return database

    def _start_over(self) -> sqlite3.Connection | None:
        with suppress(OSError, *_FAULTS):
            self._path.unlink(missing_ok=True)
            return sqlite3.connect(self._path, timeout=1.0, check_same_thread=False)
        return None

    def _recall(self, identity: tuple[int, ...]) -> str | None:
        if self._database is None:
            return None
        query = "SELECT size, mtime_ns, ctime_ns, digest, seal FROM files WHERE device = ? AND inode = ?"
        try:
            row = self._database.execute(query, identity[:2]).fetchone()
        except _FAULTS as error:  # no table yet, locked, or damaged
            if _is_damage(error):
                self._database = self._start_over()
            return None
        if row is None or tuple(row[:3]) != identity[2:] or row[4] != _seal(identity, row[3]):
            return None
        return str(row[3])


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _seal(identity: tuple[int, ...], found: str) -> str:
    # A flipped byte in the memo must not become a wrong digest in a key.
    return digest.of_bytes(repr((identity, found)).encode())[:16]


def _is_damage(error: Exception) -> bool:
    return not isinstance(error, (sqlite3.OperationalError, OverflowError)) or "no such column" in str(error)
