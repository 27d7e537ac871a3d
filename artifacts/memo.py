"""Digests of files, remembered by stat, so that a build with nothing to do reads no file twice.

A row is believed only while device, inode, size, mtime and ctime are the same. A file that changed so recently that a
second change could leave the same time stamps is never remembered (git's rule for racy entries). Likewise it remembers
which records were whole when they were last read, and notes under digests of whatever they were made from. The memo is
a convenience: unreadable or damaged, it is forgotten and everything is hashed, checked and made again.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, get_args

from artifacts import digest

RACY_NS = 2_000_000_000
"""Coarsest time stamp of a file system in use: FAT and some network file systems count in steps of 2 s."""

_FAULTS = (sqlite3.Error, UnicodeDecodeError, OverflowError)
"""What a damaged file makes `sqlite3` raise; its own messages may not even be text."""

LARGE_BYTES = 1 << 20
"""A file below takes half a millisecond at most, which a thread is not worth."""

NOTES = 20_000
"""So many notes are kept, the latest; one of a config takes 5 kB."""

_STAT = "device INTEGER, inode INTEGER, size INTEGER, mtime_ns INTEGER, ctime_ns INTEGER"
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS files ({_STAT}, digest TEXT, seal TEXT, PRIMARY KEY (device, inode));
CREATE TABLE IF NOT EXISTS records ({_STAT}, digest TEXT, seal TEXT, PRIMARY KEY (device, inode));
CREATE TABLE IF NOT EXISTS notes (key TEXT PRIMARY KEY, text TEXT, seal TEXT);
"""

Table = Literal["files", "records"]
_RECALL: Mapping[Table, str] = {
    table: f"SELECT size, mtime_ns, ctime_ns, digest, seal FROM {table} WHERE device = ? AND inode = ?"  # noqa: S608
    for table in get_args(Table)
}


class Memo:
    """Remembers file digests in the SQLite file at `path`, from any thread and any number of processes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._fresh: dict[Table, dict[tuple[int, ...], str]] = {"files": {}, "records": {}}
        self._notes: dict[str, str] = {}
        self._database = self._open()

    def digest(self, path: Path) -> str:
        """The digest of the file at `path`, hashed only if its stat is not known.

        Raises:
            OSError: The file cannot be read.
        """
        return self.digest_of(path, os.stat(path))  # noqa: PTH116 - twice as fast as Path.stat, and this is the hot path

    def digest_of(self, path: Path | str, before: os.stat_result) -> str:
        """The digest of the file at `path`, whose stat was just found to be `before`.

        Raises:
            OSError: The file cannot be read.
        """
        known = self._known("files", before)
        if known is not None:
            return known
        now_ns = time.time_ns()
        found = digest.of_file(Path(path))
        self._learn("files", before, os.stat(path), now_ns, found)  # noqa: PTH116
        return found

    def digests(self, paths: Sequence[Path]) -> list[str]:
        """The digests of the files at `paths`; those that must be hashed are, several at once.

        Raises:
            OSError: A file cannot be read; of several, the first in order.
        """
        unknown = [path for path in paths if _is_large(path) and self._known("files", path.stat()) is None]
        if len(unknown) < 2:
            return [self.digest(path) for path in paths]
        from concurrent.futures import ThreadPoolExecutor  # 5 ms to import

        with ThreadPoolExecutor(min(len(unknown), digest.cores())) as pool:
            hashed = dict(zip(unknown, pool.map(self.digest, unknown), strict=True))  # hashlib lets go of the GIL
        return [hashed.get(path) or self.digest(path) for path in paths]

    def read_record(self, path: Path | str) -> tuple[str, str | None, Callable[[str], None]]:
        """The text of the record at `path`, and whether it was whole when these bytes were read before.

        Returns:
            Its text; the key that it was found to answer, None where it is still to be checked; and what to call with
            the key once it was checked.

        Raises:
            OSError: It cannot be read.
            UnicodeDecodeError: It is no text.
        """
        now_ns = time.time_ns()
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a third of the time of Path.open
            before = os.fstat(file.fileno())
            content = file.read()
            after = os.fstat(file.fileno())
        return (
            content.decode(),
            self._known("records", before) if len(content) == before.st_size else None,
            lambda key: self._learn("records", before, after, now_ns, key),
        )

    def noted(self, key: str) -> str | None:
        """What was noted under `key`; None where nothing was, or where it is damaged or forgotten."""
        with self._lock:
            if key in self._notes:
                return self._notes[key]
            row = self._ask("SELECT text, seal FROM notes WHERE key = ?", (key,))
        return str(row[0]) if row is not None and row[1] == _seal((key,), row[0]) else None

    def note(self, key: str, text: str) -> None:
        """Notes `text` under `key`, a digest of all that it was made from and that can change."""
        with self._lock:
            self._notes[key] = text

    def save(self) -> None:
        """Writes what was learnt; a store that cannot be written stays as it is and is hashed again next time."""
        with self._lock:
            self._database = self._database or self._open()  # the store may have been made since
            if self._database is None or not (any(self._fresh.values()) or self._notes):
                return
            with suppress(*_FAULTS), self._database:
                self._write(self._database)
                for learnt in self._fresh.values():
                    learnt.clear()
                self._notes.clear()

    def _write(self, database: sqlite3.Connection) -> None:
        database.executescript(_SCHEMA)
        for table, learnt in self._fresh.items():
            rows = [(*identity, found, _seal(identity, found)) for identity, found in learnt.items()]
            database.executemany(f"INSERT OR REPLACE INTO {table} VALUES (?, ?, ?, ?, ?, ?, ?)", rows)  # noqa: S608
        if self._notes:
            notes = [(key, text, _seal((key,), text)) for key, text in self._notes.items()]
            database.executemany("INSERT OR REPLACE INTO notes VALUES (?, ?, ?)", notes)
            database.execute(f"DELETE FROM notes WHERE rowid <= (SELECT max(rowid) FROM notes) - {NOTES}")  # noqa: S608

    def _known(self, table: Table, stat: os.stat_result) -> str | None:
        identity = _identity(stat)
        with self._lock:
            return self._fresh[table].get(identity) or self._recall(table, identity)

    def _learn(self, table: Table, before: os.stat_result, after: os.stat_result, now_ns: int, found: str) -> None:
        settled = now_ns - max(before.st_mtime_ns, before.st_ctime_ns) > RACY_NS
        if settled and _identity(before) == _identity(after):
            with self._lock:
                self._fresh[table][_identity(before)] = found

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

    def _recall(self, table: Table, identity: tuple[int, ...]) -> str | None:
        row = self._ask(_RECALL[table], identity[:2])
        if row is None or tuple(row[:3]) != identity[2:] or row[4] != _seal(identity, row[3]):
            return None
        return str(row[3])

    def _ask(self, query: str, values: tuple[int | str, ...]) -> tuple[Any, ...] | None:
        if self._database is None:
            return None
        try:
            row: tuple[Any, ...] | None = self._database.execute(query, values).fetchone()
        except _FAULTS as error:  # no table yet, locked, or damaged
            if _is_damage(error):
                self._database = self._start_over()
            return None
        return row


def _identity(stat: os.stat_result) -> tuple[int, ...]:
    return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


def _is_large(path: Path) -> bool:
    try:
        return path.stat().st_size >= LARGE_BYTES
    except OSError:
        return False  # whoever hashes it will say so


def _seal(identity: tuple[int | str, ...], found: str) -> str:
    # A flipped byte in the memo must not become a wrong digest in a key.
    return digest.of_bytes(repr((identity, found)).encode())[:16]


def _is_damage(error: Exception) -> bool:
    return not isinstance(error, (sqlite3.OperationalError, OverflowError)) or "no such column" in str(error)
