"""Deletes what no ref reaches, oldest first.

Kept is what a ref names, what a published name meant before (`artifacts.publications`: it may be rolled back to that),
what a running build claims, what a newer trtforge recorded, and, through their inputs, all that these were made from.
The rest goes by age, and beyond that, oldest first, until the store is within its budget; the age of what was published
once counts from the day it was superseded. So do objects that no record holds (a build died before it recorded them),
published directories that nothing points to, logs of failed attempts and what was set aside as damaged. Timing caches
go by age alone, since there is one for each GPU and not one for each build; a plan's own stays as long as the plan's
record. What a delta lies beside (`artifacts.deltas`) stays as long as any record holds the delta's object.

A record goes before its objects: whoever is killed in between leaves objects that no record holds, never a record that
pretends. What a running build does meanwhile is described in `artifacts.claims`.
"""

from __future__ import annotations

import math
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from heapq import heappop, heappush
from pathlib import Path
from typing import Literal

from artifacts import claims, deltas, digest, publications, timing
from artifacts.errors import NewerFormatError, StoreError
from artifacts.index import Index, Summary
from artifacts.record import Blob, Record
from artifacts.store import Store

Kind = Literal["record", "object", "delta", "published", "timing", "log", "damaged"]

_DIGEST = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True)
class Waste:
    """One thing to delete.

    Attributes:
        kind: What it is; a `record` goes with the objects that only it holds, a `delta` since its object is whole.
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


@dataclass(frozen=True)
class Reach:
    """What is in use.

    Attributes:
        records: Every record, by key.
        kept: The keys of those that refs and running builds reach.
        foreign: Every digest that a record of a newer format mentions.
    """

    records: Mapping[str, Summary]
    kept: set[str]
    foreign: set[str]


@dataclass
class _Contents:
    """What is in the store, and who holds what."""

    records: dict[str, Summary] = field(default_factory=dict)
    makers: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    holders: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    foreign: set[str] = field(default_factory=set)
    """Every digest that a record of a newer format mentions: what it means nobody here knows."""
    bases: dict[str, set[str]] = field(default_factory=dict)
    """What each object that is kept as a delta lies beside."""


def look(
    store: Store,
    older_than_s: float,
    budget_bytes: int | None = None,
    without: Iterable[str] = (),
    copies_after_s: float = math.inf,
) -> Collection:
    """What `collect` would delete now.

    Args:
        store: The store.
        older_than_s: What no ref reaches stays for so long.
        budget_bytes: Beyond this size, what no ref reaches goes however young it is.
        without: Refs to look past, as if they were deleted.
        copies_after_s: As for `collect`.

    Raises:
        StoreError: The store is damaged where it says what to keep.
    """
    return _choose(store, older_than_s, budget_bytes, copies_after_s, frozenset(without))


def collect(
    store: Store,
    older_than_s: float,
    budget_bytes: int | None,
    holder: str,
    waiting: Callable[[str], None],
    deleted: Callable[[Waste], None] = lambda waste: None,
    copies_after_s: float = math.inf,
) -> Collection:
    """Deletes what no ref reaches.

    Args:
        store: The store.
        older_than_s: What no ref reaches stays for so long.
        budget_bytes: Beyond this size, what no ref reaches goes however young it is.
        holder: One line that says who does it, for builds that wait.
        waiting: Called again and again while a build is just claiming or adding; it may raise to give up.
        deleted: Called after each deletion.
        copies_after_s: A directory that was published, and whose files are objects too, goes so long after it was
            superseded.

    Raises:
        StoreError: The store cannot be written, or is damaged where it says what to keep.
    """
    if not store.root.is_dir():
        return Collection((), 0, 0, 0)
    with store.alone(holder, waiting):
        found = _choose(store, older_than_s, budget_bytes, copies_after_s)
        for waste in found.waste:
            for path in waste.paths:
                store.delete(path)
            deleted(waste)
        store.sweep()
    return found


def reach(store: Store, without: Iterable[str] = ()) -> Reach:
    """What refs (but for those in `without`) and running builds reach now.

    Raises:
        StoreError: The store is damaged where it says what to keep.
    """
    contents = _read(store)
    kept = _reached(contents, {*_named(store, contents, frozenset(without)), *claims.claimed(store.root)})
    return Reach(contents.records, kept, contents.foreign)


def _choose(
    store: Store,
    older_than_s: float,
    budget_bytes: int | None,
    copies_after_s: float,
    without: frozenset[str] = frozenset(),
) -> Collection:
    contents = _read(store)
    published = list(publications.histories(store))
    before_that = {key for history in published for key in history.before[:1]}
    kept = _reached(contents, {*_named(store, contents, without), *before_that, *claims.claimed(store.root)})
    before = left = sum(_size(path) for name in _COUNTED for path in _files(store.root / name))
    doomed: list[Waste] = []
    now = time.time()
    for waste in _waste(store, contents, kept, _superseded(published)):
        too_big = budget_bytes is not None and left > budget_bytes and waste.kind != "timing"
        needless = waste.kind == "delta" or (now - waste.made > copies_after_s and _is_copy(store, contents, waste))
        if now - waste.made > older_than_s or too_big or needless:
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


_COUNTED = ("objects", "deltas", "records", "published", "timing", "logs", "damaged")


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
    for name, path in deltas.files(store.root).items():
        _hold_bases(contents, name, path)
    return contents


def _hold_bases(contents: _Contents, name: str, delta: Path) -> None:
    """Whoever holds an object holds what its delta lies beside; so does a delta that nobody holds, until it is gone."""
    try:
        bases = deltas.read(delta).bases
    except (StoreError, OSError):
        return  # damaged: nothing comes out of it, whatever stays
    contents.bases[name] = {base.digest for base in bases}
    for base in contents.bases[name]:
        contents.holders[base] |= contents.holders.get(name) or {name}
    if name in contents.foreign:
        contents.foreign |= contents.bases[name]


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
    """The keys of `roots`, and of the records that made what these were made from.

    Of several that made the same, one that is reached anyhow is enough: of a hundred trainings of one structure all
    `split` gave the same structure, and only one the weights that are in use. Where none is, all stay.
    """
    reached: set[str] = set()
    made_from_foreign = {key for name in contents.foreign for key in contents.makers.get(name, ())}
    front = [*roots, *(contents.foreign & contents.records.keys()), *made_from_foreign]
    of_several: list[str] = []
    while front or of_several:
        if not front:
            makers = _first_makers(contents, heappop(of_several))
            front += [] if makers & reached else makers
            continue
        key = front.pop()
        if key in reached or key not in contents.records:
            continue
        reached.add(key)
        for name in contents.records[key].inputs:
            makers = _first_makers(contents, name)
            front += contents.makers.get(name, set()) - makers
            if len(makers) > 1:
                heappush(of_several, name)
            else:
                front += makers
    return reached


def _first_makers(contents: _Contents, name: str) -> set[str]:
    """The records that made the object `name`, but for those that only hand it on, as `publish` does."""
    return {maker for maker in contents.makers.get(name, ()) if name not in contents.records[maker].inputs}


def _superseded(published: Iterable[publications.History]) -> dict[str, float]:
    """When each key ceased to be published, seconds since 1970."""
    found: dict[str, float] = {}
    for history in published:
        for key, at in history.superseded.items():
            found[key] = max(found.get(key, 0.0), datetime.fromisoformat(at).timestamp() if at else 0.0)
    return found


def _waste(store: Store, contents: _Contents, kept: set[str], superseded: Mapping[str, float]) -> Iterator[Waste]:
    """All that nobody reaches, oldest first, each with what it alone holds once the older is gone."""
    loose = [*_loose(store, contents), *_unpublished(store, kept, superseded), *_timing(store, contents)]
    loose += [*_aged(store, "logs"), *_aged(store, "damaged")]
    needless = list(_needless(store))
    loose += [waste for waste in needless if waste.paths not in {each.paths for each in loose}]
    unkept = contents.records.keys() - kept
    aged = [(max(came(store.record_path(key)), superseded.get(key, 0.0)), key) for key in unkept]
    queue: list[tuple[float, str | Waste]] = [(waste.made, waste) for waste in loose]
    queue += aged
    for made, each in sorted(queue, key=lambda item: item[0]):
        yield each if isinstance(each, Waste) else _with_its_objects(store, contents, each, made)


def _with_its_objects(store: Store, contents: _Contents, key: str, made: float) -> Waste:
    record = contents.records[key]
    paths = [store.record_path(key)]
    held = {blob.digest for blob in record.blobs}
    held |= {base for name in held for base in contents.bases.get(name, ())}
    for name in sorted(held):
        contents.holders[name].discard(key)
    gone = [name for name in sorted(held) if not contents.holders[name] and name not in contents.foreign]
    # A delta before what it lies beside, so that whoever is killed in between leaves none without.
    places = [deltas.place(store.root, name) for name in gone]
    places += [store.root / "objects" / name[:2] / name[2:] for name in gone]
    paths += [place for place in places if place.exists()]
    return Waste("record", key, record.about.title, tuple(paths), sum(map(_size, paths)), made)


def _loose(store: Store, contents: _Contents) -> Iterator[Waste]:
    """Objects that no record holds."""
    for path in [*_files(store.root / "objects"), *_files(store.root / "deltas")]:
        name = path.parent.name + path.name
        if not contents.holders.get(name) and name not in contents.foreign:
            yield Waste("object", name, "", (path,), _size(path), came(path))


def _needless(store: Store) -> Iterator[Waste]:
    """Deltas of objects that somebody asked for, and that are whole again."""
    for name, path in deltas.files(store.root).items():
        with suppress(StoreError, OSError):  # what is damaged, `verify` and the next build set aside
            blob = Blob(name, deltas.read(path).bytes)
            if store.place(blob).exists() and not store.problem(blob):
                yield Waste("delta", name, "", (path,), _size(path), came(path))


def _unpublished(store: Store, kept: set[str], superseded: Mapping[str, float]) -> Iterator[Waste]:
    """Directories that were published once, and that no link and no kept record stands for now."""
    base = store.root / "published"
    kept = kept | _linked(store)
    for path in (base / ".by-key").glob("*"):
        if path.name not in kept:
            made = max(came(path), superseded.get(path.name, 0.0))
            yield Waste("published", path.name, "", (path,), sum(map(_size, _files(path))), made)


def _is_copy(store: Store, contents: _Contents, waste: Waste) -> bool:
    """Whether it is a published directory that can be made anew from the store's objects."""
    record = contents.records.get(waste.name) if waste.kind == "published" else None
    return record is not None and all(map(store.disk_bytes, record.outputs))


def _timing(store: Store, contents: _Contents) -> Iterator[Waste]:
    """Timing caches, but for those of plans that are recorded."""
    for name in timing.names(store):
        path = store.root / "timing" / name
        if timing.pinned_key(path) not in contents.records.keys() | contents.foreign:
            yield Waste("timing", f"timing/{name}", "", (path,), _size(path), came(path))


def _aged(store: Store, name: Literal["logs", "damaged"]) -> Iterator[Waste]:
    for path in (store.root / name).glob("*"):
        size = sum(map(_size, _files(path))) if path.is_dir() else _size(path)
        kind: Kind = "log" if name == "logs" else "damaged"
        yield Waste(kind, path.relative_to(store.root).as_posix(), "", (path,), size, came(path))


def _files(base: Path) -> list[Path]:
    return [path for path in base.rglob("*") if path.is_symlink() or not path.is_dir()]


def _size(path: Path) -> int:
    with suppress(OSError):
        return path.lstat().st_size
    return 0


def came(path: Path) -> float:
    """When it came here: renaming it and writing it both count. A time in the future is young."""
    try:
        stat = path.lstat()
    except OSError:
        return time.time()
    return (
        stat.st_mtime if digest.is_digest(path.stem) and path.suffix == ".json" else max(stat.st_mtime, stat.st_ctime)
    )
