"""What the records say, without reading all of them: which is nearest to a question, and what each is and holds.

The index is a SQLite file beside the records, `<root>/records.sqlite`. It may be deleted at any time: what is missing
in it is read again from the records, and it is forgotten when it is damaged. It is never believed over them: the
nearest record is read and checked before anything is said about it, and a summary counts only while device, inode,
size, mtime and ctime of its record are what they were when it was read and checked, and its own seal is right. (Digests
of files are remembered in a file of their own, `index.sqlite`, so that damage to one costs nothing of the other.)
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from artifacts import digest
from artifacts.difference import Difference, difference
from artifacts.errors import StoreError
from artifacts.record import Blob, Record
from artifacts.store import Store

CANDIDATES = 16
"""So many of the latest records are read and compared; one costs about 0.1 ms."""

RACY_NS = 2_000_000_000
"""A directory whose time stamp is younger may change again within the same stamp (as in `artifacts.memo`)."""

_TARGET_FACTS = ("backend", "compute_capability", "gpu")
_FAULTS = (sqlite3.Error, UnicodeDecodeError, OverflowError)
_COLUMNS = ("key", "stage", "step", "target", "model", "flow", "facts", "finished", "holds", "stat", "seal")
_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS records ({", ".join(f"{name} TEXT" for name in _COLUMNS)}, PRIMARY KEY (key));
CREATE INDEX IF NOT EXISTS by_step ON records (step, target, model, flow, finished);
CREATE INDEX IF NOT EXISTS by_model ON records (step, target, model, finished);
CREATE INDEX IF NOT EXISTS by_facts ON records (stage, facts, finished);
CREATE TABLE IF NOT EXISTS listed (mtime_ns INTEGER);
"""

_SELECT = f"SELECT {', '.join(_COLUMNS)} FROM records"  # noqa: S608 - no values
_INSERT = f"INSERT OR REPLACE INTO records VALUES ({', '.join('?' * len(_COLUMNS))})"  # noqa: S608 - no values


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

    @property
    def title(self) -> str:
        """`build[l4] of digits`."""
        return f"{self.step}[{self.target}] of {self.model}" if self.target else f"{self.step} of {self.model}"

    @classmethod
    def of(cls, record: Record) -> About:
        """Whose question `record` answers."""
        texts = (record.provenance.get(name) for name in ("step", "target", "model", "flow", "finished"))
        return cls(*(text if isinstance(text, str) else None for text in texts))


@dataclass(frozen=True)
class Summary:
    """What a record is and holds.

    Attributes:
        key: The digest of its question.
        stage: The stage that answered.
        about: Whose question it was.
        outputs: The answer's content.
        log: What the stage printed.
        inputs: The digests that stand in its question as inputs.
    """

    key: str
    stage: str
    about: About
    outputs: tuple[Blob, ...]
    log: Blob | None
    inputs: tuple[str, ...]

    @property
    def blobs(self) -> set[Blob]:
        """All content that it names: outputs and log."""
        return {*self.outputs, *([self.log] if self.log else [])}

    @classmethod
    def of(cls, record: Record) -> Summary:
        """The summary of `record`."""
        inputs = tuple(_digests(record.fields.get("inputs")))
        stage = str(record.fields.get("stage"))
        return cls(record.key, stage, About.of(record), tuple(record.outputs.values()), record.log, inputs)


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

    def summaries(self) -> tuple[dict[str, Summary], list[str]]:
        """What every record is and holds, by key; and the keys of those that this trtforge cannot read.

        A record that has not changed costs a look at its stat (2 us), another is read, checked and remembered (0.2 ms).
        """
        found: dict[str, Summary] = {}
        odd: list[str] = []
        fresh: list[tuple[str | None, ...]] = []
        with self._lock:
            rows = {str(row[0]): row for row in self._ask(_SELECT, {})}
            now_ns = time.time_ns()
            for key in self._store.recorded():
                path = self._store.record_path(key)
                summary = _remembered(rows.get(key), path)
                if summary is None:
                    row, summary = _read(path, key, now_ns)
                    fresh += [row] if row else []
                if summary is None:
                    odd.append(key)
                else:
                    found[key] = summary
            self._remember(fresh)
        return found, odd

    def _remember(self, rows: list[tuple[str | None, ...]]) -> None:
        with suppress(*_FAULTS):  # next time then
            database = self._open()
            with database:
                database.executemany(_INSERT, rows)

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
            return [str(row[0]) for row in self._ask(query, {**wanted, "finished": finished or "~"})]

    def _ask(self, query: str, values: Mapping[str, Any]) -> list[tuple[Any, ...]]:
        try:
            return self._open().execute(query, values).fetchall()
        except _FAULTS:
            self._database = self._in_memory()
            return self._database.execute(query, values).fetchall()

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
        database.execute(f"{_SELECT} LIMIT 0")  # an older trtforge may have made it, with fewer columns
        if database.execute("SELECT mtime_ns FROM listed").fetchone() == (mtime_ns,):
            return database
        there = set(self._store.recorded())
        known = {str(row[0]) for row in database.execute("SELECT key FROM records")}
        with database:
            database.executemany("DELETE FROM records WHERE key = ?", [(key,) for key in known - there])
            fresh = (row for key in there - known if (row := _read(self._store.record_path(key), key, now_ns)[0]))
            database.executemany(_INSERT, fresh)
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


def _read(path: Path, key: str, now_ns: int) -> tuple[tuple[str | None, ...] | None, Summary | None]:
    """The row and the summary of a record, as it is now; None each where it cannot be read or is damaged."""
    try:
        with path.open("rb") as file:
            stat = os.fstat(file.fileno())
            record = Record.loads(file.read().decode())
    except (OSError, UnicodeDecodeError, StoreError):
        return None, None
    if record.key != key:
        return None, None
    summary = Summary.of(record)
    settled = now_ns - max(stat.st_mtime_ns, stat.st_ctime_ns) > RACY_NS
    holds = json.dumps(
        [[astuple(blob) for blob in summary.outputs], summary.log and astuple(summary.log), summary.inputs]
    )
    about = summary.about
    row = (key, summary.stage, about.step, about.target, about.model, about.flow, _facts(record.fields), about.finished)
    content = (*row, holds, _stat(stat) if settled else "")
    return (*content, _seal(content)), summary


def _remembered(row: tuple[Any, ...] | None, path: Path) -> Summary | None:
    """The summary in `row`, if it is whole and its record is the file it was."""
    try:
        if row is None or _stat(os.stat(path)) != row[9] or _seal(row[:10]) != row[10]:  # noqa: PTH116 - twice as fast
            return None
    except OSError:
        return None
    key, stage, step, target, model, flow, _facts, finished, holds = row[:9]
    outputs, log, inputs = json.loads(holds)
    about = About(step, target, model, flow, finished)
    return Summary(
        key, stage, about, tuple(Blob(*each) for each in outputs), Blob(*log) if log else None, tuple(inputs)
    )


def _stat(stat: os.stat_result) -> str:
    return f"{stat.st_dev} {stat.st_ino} {stat.st_size} {stat.st_mtime_ns} {stat.st_ctime_ns}"


def _seal(content: Sequence[str | None]) -> str:
    return digest.of_bytes(repr(tuple(content)).encode())[:16]


def _digests(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _digests(inner)
    elif isinstance(value, dict):
        yield from _digests(list(value.values()))


def _facts(question: Mapping[str, Any]) -> str:
    facts = question.get("facts")
    known = facts if isinstance(facts, Mapping) else {}
    return json.dumps({name: known[name] for name in _TARGET_FACTS if name in known}, sort_keys=True)
