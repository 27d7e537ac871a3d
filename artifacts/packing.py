"""Which objects become deltas, and beside what.

What no ref reaches, and no running build claims, is deleted only when it is old. Until then it is kept, from a day of
age on as a delta, where that is smaller. Beside another plan of the same structure little would be won (see the figures
in `artifacts.deltas`), so an object lies beside those that it was made from, by the questions of the records that made
it: a plan beside the weights or the ONNX file that it was built from, an ONNX file beside the one before it; and beside
what was made from it, where that lies whole for others: the ONNX file beside the weights that were taken out of it.

What a delta lies beside is never packed, and what is packed has nothing beside it. The last steps of a flow choose
first: their objects, the plans, are the most, one for each target.

The delta is written aside, synced, read back and compared; this takes a second for 100 MB and keeps nobody from
anything. Only then, with the gate of `artifacts.claims` held and unless somebody has claimed it meanwhile, is the delta
renamed and the whole file deleted. Whoever has that open goes on reading; whoever asks the store for its path gets a
whole file again.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from artifacts import deltas, digest, gc
from artifacts.errors import StoreError
from artifacts.index import Index, Summary
from artifacts.record import Blob
from artifacts.store import Store

SMALLEST_BYTES = 1 << 16
"""A plan of an empty network has 100 kB; smaller files, such as reports, are not worth one of their own."""

WORTH = 0.8
"""A delta of more than this share of the whole is thrown away, and not made again while the memo knows."""

BATCH_BYTES = 1 << 30
"""So much is packed at a time before the gate is held once."""


@dataclass(frozen=True)
class Packable:
    """An object that may become a delta.

    Attributes:
        blob: The object.
        bases: What it will lie beside.
        what: `build[l4] of digits`.
        disk_bytes: The size of the delta; None while there is none.
        reason: Why it stays whole; empty where it does not.
    """

    blob: Blob
    bases: tuple[Blob, ...]
    what: str
    disk_bytes: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Saving:
    """What deltas save.

    Attributes:
        objects: How many objects are kept as deltas.
        bytes: What they would take as whole files.
        disk_bytes: What they take.
    """

    objects: int
    bytes: int
    disk_bytes: int


def saving(store: Store) -> Saving:
    """What deltas save in `store`, by its records."""
    blobs = {blob for summary in Index(store).summaries()[0].values() for blob in summary.outputs}
    packed = deltas.files(store.root).keys()
    kept = [blob for blob in blobs if blob.digest in packed and not store.place(blob).exists()]
    return Saving(len(kept), sum(blob.bytes for blob in kept), sum(map(store.disk_bytes, kept)))


def packable(store: Store, after_s: float, until_s: float, without: Iterable[str] = ()) -> list[Packable]:
    """What would be tried now.

    Args:
        store: The store.
        after_s: What is younger stays whole.
        until_s: What is older is about to be deleted, and is not packed first.
        without: Refs to look past, as if they were deleted.

    Raises:
        StoreError: The store is damaged where it says what to keep.
    """
    doomed = {path for waste in gc.look(store, until_s, without=without).waste for path in waste.paths}
    return list(_choose(store, gc.reach(store, without), after_s, doomed))


def pack(
    store: Store,
    after_s: float,
    until_s: float,
    holder: str,
    waiting: Callable[[str], None],
    telling: Callable[[Packable], None] = lambda each: None,
) -> list[Packable]:
    """Packs what no ref reaches.

    Args:
        store: The store.
        after_s: What is younger stays whole.
        until_s: What is older is about to be deleted, and is not packed first.
        holder: One line that says who does it, for builds that wait.
        waiting: Called again and again while a build is just claiming or adding; it may raise to give up.
        telling: Called before each object; it may raise to give up.

    Returns:
        What was tried, with the size of its delta or the reason why it stays whole.

    Raises:
        StoreError: The store cannot be written, or is damaged where it says what to keep.
    """
    tried: list[Packable] = []
    for batch in _batches(packable(store, after_s, until_s)):
        with store.scratch() as aside:
            made = [_try(store, each, aside, telling) for each in batch]
            with store.alone(holder, waiting):
                tried += _commit(store, made, aside)
    store.memo.save()
    return tried


def _choose(store: Store, reach: gc.Reach, after_s: float, doomed: set[Path]) -> Iterator[Packable]:
    blobs = {blob.digest: blob for summary in reach.records.values() for blob in summary.outputs}
    made_from = _made_from(reach.records.values(), blobs)
    latest_first = sorted(reach.records.values(), key=lambda each: each.about.finished or "", reverse=True)
    made_first_by = {blob.digest: each.about.title for each in latest_first for blob in each.outputs}
    made_into = _turned(made_from)
    needed, bases, packed = _needed(reach), _bases(store), set[str]()
    now = time.time()
    for key in _last_steps_first(reach, made_from):
        for blob in reach.records[key].outputs:
            place = store.place(blob)
            if blob.digest in needed | bases | packed or blob.bytes < SMALLEST_BYTES:
                continue
            if place in doomed or not place.exists():
                continue
            akin = made_from[blob.digest] | (made_into[blob.digest] & bases)
            own = _fitting(blob, [blobs[name] for name in akin - packed if store.place(blobs[name]).exists()])
            known = _note(blob, own)
            if not own or now - gc.came(place) <= after_s or store.memo.noted(known) is not None:
                continue
            bases |= {base.digest for base in own}
            packed.add(blob.digest)
            yield Packable(blob, own, made_first_by[blob.digest])


def _needed(reach: gc.Reach) -> set[str]:
    """The digests of all that is kept, and so stays whole."""
    return {blob.digest for key in reach.kept for blob in reach.records[key].blobs} | reach.foreign


def _bases(store: Store) -> set[str]:
    """The digests of all that deltas lie beside."""
    found: set[str] = set()
    for path in deltas.files(store.root).values():
        try:
            found |= {base.digest for base in deltas.read(path).bases}
        except (StoreError, OSError):
            continue  # damaged: nothing comes out of it
    return found


def _made_from(records: Iterable[Summary], blobs: Mapping[str, Blob]) -> dict[str, set[str]]:
    """The objects that each was made from, by digest."""
    found: dict[str, set[str]] = defaultdict(set)
    for summary in records:
        for blob in summary.outputs:
            found[blob.digest] |= {name for name in summary.inputs if name in blobs and name != blob.digest}
    return found


def _turned(made_from: Mapping[str, set[str]]) -> dict[str, set[str]]:
    """The objects that were made from each."""
    found: dict[str, set[str]] = defaultdict(set)
    for name, inputs in made_from.items():
        for each in inputs:
            found[each].add(name)
    return found


def _last_steps_first(reach: gc.Reach, made_from: Mapping[str, set[str]]) -> list[str]:
    """The keys of what nothing reaches, those first whose objects are the furthest from the user's files."""
    steps: dict[str, int] = {}

    def step(name: str) -> int:
        if name not in steps:
            steps[name] = 0  # for one that was made from itself, at the end of a circle of steps that undo each other
            steps[name] = 1 + max(map(step, made_from[name]), default=0)
        return steps[name]

    furthest = {
        key: max((step(blob.digest) for blob in reach.records[key].outputs), default=0)
        for key in reach.records.keys() - reach.kept
    }
    return sorted(furthest, key=lambda key: (-furthest[key], key))


def _fitting(blob: Blob, inputs: Iterable[Blob]) -> tuple[Blob, ...]:
    """Of what `blob` was made from, the smallest first, as much as fits into memory: the weights before a plan."""
    bases: list[Blob] = []
    for each in sorted(inputs, key=lambda each: (each.bytes, each.digest)):
        if each.bytes >= SMALLEST_BYTES and sum(b.bytes for b in (blob, each, *bases)) <= deltas.LARGEST_BYTES:
            bases.append(each)
    return tuple(bases)


def _batches(found: Iterable[Packable]) -> Iterator[list[Packable]]:
    batch: list[Packable] = []
    for each in found:
        batch.append(each)
        if sum(other.blob.bytes for other in batch) >= BATCH_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch


def _try(store: Store, each: Packable, aside: Path, telling: Callable[[Packable], None]) -> Packable:
    telling(each)
    delta = aside / each.blob.digest
    try:
        size = deltas.pack(each.blob, each.bases, store.place, delta)
    except StoreError as error:
        return replace(each, reason=error.what)
    except OSError as error:
        return replace(each, reason=store.cannot_be_written(error).what)
    if size > WORTH * each.blob.bytes:
        delta.unlink()
        store.memo.note(_note(each.blob, each.bases), "not worth it")
        return replace(each, reason=f"{size / each.blob.bytes:.0%} of it would be left")
    return replace(each, disk_bytes=size)


def _commit(store: Store, made: Iterable[Packable], aside: Path) -> Iterator[Packable]:
    """Puts deltas in the place of whole files, while nobody can claim anything."""
    needed, bases = _needed(gc.reach(store)), _bases(store)
    for each in made:
        if each.disk_bytes is None:
            yield each
        elif each.blob.digest in needed | bases or not all(store.place(base).exists() for base in each.bases):
            yield replace(each, disk_bytes=None, reason="it is needed again")
        else:
            store.move_in(aside / each.blob.digest, store.delta(each.blob))
            store.delete(store.place(each.blob))
            yield each


def _note(blob: Blob, bases: Iterable[Blob]) -> str:
    """What the memo knows a fruitless attempt by."""
    return digest.of_json(["delta", deltas.FORMAT, blob.digest, [base.digest for base in bases]])
