"""Finds the earlier record that is nearest to a question, without reading all records.

The index is a SQLite file beside the records, `<root>/records.sqlite`. It may be deleted at any time: what is missing
in it is read again from the records, and it is forgotten when it is damaged. It only points: every record is read and
checked before anything is said about it. (Digests of files are remembered in a file of their own, `index.sqlite`, so
that damage to one costs nothing of the other.)
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artifacts import digest
from artifacts.difference import Difference, difference
from artifacts.record import Record
from artifacts.store import Store

CANDIDATES = 16
"""So many of the latest records are read and compared; one costs about 0.1 ms."""

RACY_NS = 2_000_000_000
"""A directory whose time stamp is younger may change again within the same stamp (as in `artifacts.memo`)."""

_TARGET_FACTS = ("backend", "compute_capability", "gpu")
_FAULTS = (sqlite3.Error, UnicodeDecodeError, OverflowError)
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    key TEXT PRIMARY KEY, stage TEXT, step TEXT, target TEXT, model TEXT, flow TEXT, facts TEXT, finished TEXT);
CREATE INDEX IF NOT EXISTS by_step ON records (step, target, model, flow, finished);
CREATE INDEX IF NOT EXISTS by_model ON records (step, target, model, finished);
CREATE INDEX IF NOT EXISTS by_facts ON records (stage, facts, finished);
CREATE TABLE IF NOT EXISTS listed (mtime_ns INTEGER);
"""


@dataclass(frozen=True)
class About:
    """Whose question it is; none of it is in the key.

    Attributes:
        step: The step's name in its flow.
        target: The target's name; None for a step that all targets share.
        model: The model's name.
        flow: The flow's name.
        finished: Only records that were finished by then count (ISO, UTC); None: all do.
    """

    step: str | None
    target: str | None
    model: str | None
    flow: str | None
    finished: str | None = None

    @classmethod
    def of(cls, record: Record) -> About:
        """Whose question `record` answers."""
        texts = (record.provenance.get(name) for name in ("step", "target", "model", "flow", "finished"))
        return cls(*(text if isinstance(text, str) else None for text in texts))


@dataclass(frozen=True)
class Nearest:
    """An earlier record, and what its question differs in.

    Attributes:
        record: The record, as it is in the store.
        same_step: Whether it is of the same step, target and model; else only of the same stage.
        differences: From its question to the one that was asked.
    """

    record: Record
    same_step: bool
    differences: list[Difference]


class Index:
    """The index of the records of `store`, from any thread and any number of processes."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._database: sqlite3.Connection | None = None

    def nearest(self, question: Mapping[str, Any], about: About) -> Nearest | None:
        """The earlier record that is nearest to `question`; None where nothing like it was ever answered.

        The nearest is of the same step, target, model and flow; else of the same step, target and model; else of the
        same stage and target facts (backend, capability, GPU). Of several, among the latest `CANDIDATES`, it is the one
        with the fewest differing fields, and of those the latest. A record that asks the same is not nearer, it is
        the same, and does not count.
        """
        own = digest.of_json(question)
        for same_step, keys in self._candidates(question, about):
            found = [Nearest(record, same_step, difference(record.fields, question)) for record in self._read(keys)]
            found = [each for each in found if each.record.key != own and _fits(each, question, about)]
            if found:
                return min(found, key=lambda each: len(each.differences))  # of equals the first, which is the latest
        return None

    def _read(self, keys: list[str]) -> Iterator[Record]:
        for key in keys:
            record = self._store.record(key)
            if record is not None:
                yield record

    def _candidates(self, question: Mapping[str, Any], about: About) -> Iterator[tuple[bool, list[str]]]:
        step = {"step": about.step, "target": about.target, "model": about.model}
        yield True, self._select({**step, "flow": about.flow}, about.finished)
        yield True, self._select(step, about.finished)
        yield False, self._select({"stage": question.get("stage"), "facts": _facts(question)}, about.finished)

    def _select(self, wanted: Mapping[str, Any], finished: str | None) -> list[str]:
        where = " AND ".join(f"{column} IS :{column}" for column in wanted)
        query = (
            f"SELECT key FROM records WHERE {where} AND finished <= :finished "  # noqa: S608 - columns, not values
            f"ORDER BY finished DESC, key LIMIT {CANDIDATES}"
        )
        with self._lock:
            try:
                rows = self._open().execute(query, {**wanted, "finished": finished or "~"}).fetchall()
            except _FAULTS:
                self._database = self._in_memory()
                rows = self._database.execute(query, {**wanted, "finished": finished or "~"}).fetchall()
        return [str(row[0]) for row in rows]

    def _open(self) -> sqlite3.Connection:
        """The database, brought up to date once; in memory where the store cannot be written or the file is busy."""
        if self._database is None:
            path = self._store.root / "records.sqlite"
            try:
                self._database = self._synced(sqlite3.connect(path, timeout=1.0, check_same_thread=False))
            except _FAULTS as error:
                if not isinstance(error, sqlite3.OperationalError) or "column" in str(error):  # damaged, or not ours
                    with suppress(OSError):
                        path.unlink(missing_ok=True)
                self._database = self._in_memory()
        return self._database

    def _in_memory(self) -> sqlite3.Connection:
        return self._synced(sqlite3.connect(":memory:", check_same_thread=False))

    def _synced(self, database: sqlite3.Connection) -> sqlite3.Connection:
        """Takes up records that came, and drops those that went, since the last time."""
        directory = self._store.root / "records"
        try:
            mtime_ns = directory.stat().st_mtime_ns
        except OSError:
            mtime_ns = 0
        now_ns = time.time_ns()
        database.execute("PRAGMA synchronous = OFF")  # it can be rebuilt
        database.executescript(_SCHEMA)
        if database.execute("SELECT mtime_ns FROM listed").fetchone() == (mtime_ns,):
            return database
        there = _keys(directory)
        known = {str(row[0]) for row in database.execute("SELECT key FROM records")}
        with database:
            database.executemany("DELETE FROM records WHERE key = ?", [(key,) for key in known - there])
            fresh = (row for key in there - known if (row := _row(directory / f"{key}.json", key)))
            database.executemany("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?)", fresh)
            database.execute("DELETE FROM listed")
            if now_ns - mtime_ns > RACY_NS:
                database.execute("INSERT INTO listed VALUES (?)", (mtime_ns,))
        return database


def _fits(found: Nearest, question: Mapping[str, Any], about: About) -> bool:
    # The index may be wrong about what it points at.
    if found.same_step:
        then = About.of(found.record)
        return (then.step, then.target, then.model) == (about.step, about.target, about.model)
    fields = found.record.fields
    return fields.get("stage") == question.get("stage") and _facts(fields) == _facts(question)


def _keys(directory: Path) -> set[str]:
    try:
        with os.scandir(directory) as entries:
            names = [entry.name for entry in entries]
    except OSError:
        return set()
    return {name[:64] for name in names if name.endswith(".json") and digest.is_digest(name[:-5])}


def _row(path: Path, key: str) -> tuple[str | None, ...] | None:
    # Not checked here: whoever is led to the record by this row checks it.
    try:
        body = json.loads(path.read_text(encoding="utf-8"))
        fields, made = body["fields"], body["provenance"]
        texts = (fields["stage"], *(made.get(name) for name in ("step", "target", "model", "flow")))
        row = (key, *texts, _facts(fields), made.get("finished"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return row if all(text is None or isinstance(text, str) for text in row) else None


def _facts(question: Mapping[str, Any]) -> str:
    facts = question.get("facts")
    known = facts if isinstance(facts, Mapping) else {}
    return json.dumps({name: known[name] for name in _TARGET_FACTS if name in known}, sort_keys=True)
