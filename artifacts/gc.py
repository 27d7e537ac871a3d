"""Deletes what no ref reaches, oldest first.

Kept is what a ref names, what a running build claims, what a newer trtforge recorded, and, through their inputs, all
that these were made from. The rest goes by age, and beyond that, oldest first, until the store is within its budget. So
do objects that no record holds (a build died before it recorded them), published directories that nothing points to,
logs of failed attempts and what was set aside as damaged. Timing caches go by age alone, since there is one for each
GPU and not one for each build; a plan's own stays as long as the plan's record.

A record goes before its objects: whoever is killed in between leaves objects that no record holds, never a record that
pretends. What a running build does meanwhile is described in `artifacts.claims`.
"""

from __future__ import annotations

import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from artifacts import claims, digest, timing
from artifacts.errors import NewerFormatError, StoreError
from artifacts.index import Index, Summary
from artifacts.record import Record
from artifacts.store import Store

Kind = Literal["record", "object", "published", "timing", "log", "damaged"]

_DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True)
class Waste:
    """One thing to delete.

    Attributes:
        kind: What it is; a `record` goes with the objects that only it holds.
        name: Its key, digest or path.
        what: `build[l4] of digits`; empty where nobody knows.
        paths: Its files and directories, in the order in which they go.
        bytes: What deleting it frees.
        made: When it was made, seconds since 1970.
    """

    kind: Kind
    name: str
    what: str
    paths: tuple[Path, ...]
    bytes: int
    made: float


@dataclass(frozen=True)
class Collection:
    """What gc deletes, or would.

    Attributes:
        waste: Oldest first.
        bytes_before: Size of the store's files, without scratch and indexes.
        bytes_after: Its size without the waste.
        kept: How many records stay.
    """

    waste: tuple[Waste, ...]
    bytes_before: int
    bytes_after: int
    kept: int


@dataclass
class _Contents:
    """What is in the store, and who holds what."""

    records: dict[str, Summary] = field(default_factory=dict)
    makers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    holders: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    foreign: set[str] = field(default_factory=set)
    """Every digest that a record of a newer format mentions: what it means nobody here knows."""


def look(store: Store, older_than_s: float, budget_bytes: int | None = None, without: Iterable[str] = ()) -> Collection:
    """What `collect` would delete now.

    Args:
        store: The store.
        older_than_s: What no ref reaches stays for so long.
        budget_bytes: Beyond this size, what no ref reaches goes however young it is.
        without: Refs to look past, as if they were deleted.

    Raises:
        StoreError: The store is damaged where it says what to keep.
    """
    return _choose(store, older_than_s, budget_bytes, frozenset(without))


def collect(
    store: Store,
    older_than_s: float,
    budget_bytes: int | None,
    holder: str,
    waiting: Callable[[str], None],
    deleted: Callable[[Waste], None] = lambda waste: None,
) -> Collection:
    """Deletes what no ref reaches.

    Args:
        store: The store.
        older_than_s: What no ref reaches stays for so long.
        budget_bytes: Beyond this size, what no ref reaches goes however young it is.
        holder: One line that says who does it, for builds that wait.
        waiting: Called again and again while a build is just claiming or adding; it may raise to give up.
        deleted: Called after each deletion.

    Raises:
        StoreError: The store cannot be written, or is damaged where it says what to keep.
    """
    if not store.root.is_dir():
        return Collection((), 0, 0, 0)
    with store.alone(holder, waiting):
        found = _choose(store, older_than_s, budget_bytes)
        for waste in found.waste:
            for path in waste.paths:
                store.delete(path)
            deleted(waste)
        store.sweep()
    return found


def _choose(
    store: Store, older_than_s: float, budget_bytes: int | None, without: frozenset[str] = frozenset()
) -> Collection:
    contents = _read(store)
    kept = _reached(contents, {*_named(store, contents, without), *claims.claimed(store.root)})
    before = left = sum(_size(path) for name in _COUNTED for path in _files(store.root / name))
    doomed: list[Waste] = []
    now = time.time()
    for waste in _waste(store, contents, kept):
        too_big = budget_bytes is not None and left > budget_bytes and waste.kind != "timing"
        if now - waste.made > older_than_s or too_big:
            doomed.append(waste)
            left -= waste.bytes
    return Collection(tuple(doomed), before, left, len(contents.records) - sum(w.kind == "record" for w in doomed))


def _named(store: Store, contents: _Contents, without: frozenset[str]) -> set[str]:
    """The keys that refs and published links stand for; nothing is deleted on the word of a damaged ref or record."""
    names = [path.relative_to(store.root / "refs").as_posix() for path in _files(store.root / "refs")]
    keys = {name: store.ref(name) for name in names if name not in without}
    for name, key in keys.items():
        if key is None or key not in contents.records.keys() | contents.foreign:
            raise StoreError(
                f"ref {name} is damaged, or the record that it means: what it keeps cannot be told",
                "run `trtforge verify --repair`, then what it says, then gc again",
            )
    return {key for key in keys.values() if key} | _linked(store)


def _linked(store: Store) -> set[str]:
    return {path.resolve().name for path in _files(store.root / "published") if path.is_symlink()}


_COUNTED = ("objects", "records", "published", "timing", "logs", "damaged")


def _read(store: Store) -> _Contents:
    records, odd = Index(store).summaries()
    contents = _Contents(records)
    for key, record in records.items():
        for blob in record.outputs:
            contents.makers[blob.digest].add(key)
        for blob in record.blobs:
            contents.holders[blob.digest].add(key)
    for key in odd:
        contents.foreign |= _foreign(store.record_path(key))
    return contents


def _foreign(path: Path) -> set[str]:
    """Every digest that a record of a newer format mentions."""
    try:
        text = path.read_text(encoding="utf-8")
        Record.loads(text)
    except NewerFormatError:
        return {path.stem, *_DIGEST.findall(text)}
    except (StoreError, OSError, UnicodeDecodeError):
        pass  # damaged: it answers nothing, and `verify` and the next build set it aside
    return set()


def _reached(contents: _Contents, roots: Iterable[str]) -> set[str]:
    """The keys of `roots`, and of all records that made what these were made from."""
    reached: set[str] = set()
    made_from_foreign = {key for name in contents.foreign for key in contents.makers.get(name, ())}
    front = [*roots, *(contents.foreign & contents.records.keys()), *made_from_foreign]
    while front:
        key = front.pop()
        if key in reached or key not in contents.records:
            continue
        reached.add(key)
        inputs = contents.records[key].inputs
        front += [maker for name in inputs for maker in contents.makers.get(name, ())]
    return reached


def _waste(store: Store, contents: _Contents, kept: set[str]) -> Iterator[Waste]:
    """All that nobody reaches, oldest first, each with what it alone holds once the older is gone."""
    loose = [*_loose(store, contents), *_unpublished(store, kept), *_timing(store, contents)]
    loose += [*_aged(store, "logs"), *_aged(store, "damaged")]
    aged = [(_made(store.record_path(key)), key) for key in contents.records.keys() - kept]
    queue: list[tuple[float, str | Waste]] = [(waste.made, waste) for waste in loose]
    queue += aged
    for made, each in sorted(queue, key=lambda item: item[0]):
        yield each if isinstance(each, Waste) else _with_its_objects(store, contents, each, made)


def _with_its_objects(store: Store, contents: _Contents, key: str, made: float) -> Waste:
    record = contents.records[key]
    paths = [store.record_path(key)]
    for blob in sorted(record.blobs, key=lambda blob: blob.digest):
        contents.holders[blob.digest].discard(key)
        if not contents.holders[blob.digest] and blob.digest not in contents.foreign:
            paths.append(store.path(blob))
    about = record.about
    what = f"{about.step}[{about.target}] of {about.model}" if about.target else f"{about.step} of {about.model}"
    return Waste("record", key, what, tuple(paths), sum(map(_size, paths)), made)


def _loose(store: Store, contents: _Contents) -> Iterator[Waste]:
    """Objects that no record holds."""
    for path in _files(store.root / "objects"):
        name = path.parent.name + path.name
        if not contents.holders.get(name) and name not in contents.foreign:
            yield Waste("object", name, "", (path,), _size(path), _made(path))


def _unpublished(store: Store, kept: set[str]) -> Iterator[Waste]:
    """Directories that were published once, and that no link and no kept record stands for now."""
    base = store.root / "published"
    kept = kept | _linked(store)
    for path in (base / ".by-key").glob("*"):
        if path.name not in kept:
            yield Waste("published", path.name, "", (path,), sum(map(_size, _files(path))), _made(path))


def _timing(store: Store, contents: _Contents) -> Iterator[Waste]:
    """Timing caches, but for those of plans that are recorded."""
    for name in timing.names(store):
        path = store.root / "timing" / name
        if timing.pinned_key(path) not in contents.records.keys() | contents.foreign:
            yield Waste("timing", f"timing/{name}", "", (path,), _size(path), _made(path))


def _aged(store: Store, name: Literal["logs", "damaged"]) -> Iterator[Waste]:
    for path in (store.root / name).glob("*"):
        size = sum(map(_size, _files(path))) if path.is_dir() else _size(path)
        kind: Kind = "log" if name == "logs" else "damaged"
        yield Waste(kind, path.relative_to(store.root).as_posix(), "", (path,), size, _made(path))


def _files(base: Path) -> list[Path]:
    return [path for path in base.rglob("*") if path.is_symlink() or not path.is_dir()]


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_size
    return 0


def _made(path: Path) -> float:
    """When it came here: renaming it and writing it both count. A time in the future is young."""
    try:
        stat = path.lstat()
    except OSError:
        return time.time()
    return (
        stat.st_mtime if digest.is_digest(path.stem) and path.suffix == ".json" else max(stat.st_mtime, stat.st_ctime)
    )
