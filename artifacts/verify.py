"""Looks at every file of a store: what is damaged, what was lost by it, and how to set it aside.

Content is read anew, whatever the memo remembers: a disk that forgets leaves size and times as they were. A record of a
newer format is no damage and is left alone. What nobody needs to be right is not looked at: remembered digests, locks,
scratch and the logs of failed attempts.
"""

from __future__ import annotations

import json
import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from artifacts import deltas, digest, publications, timing
from artifacts.errors import NewerFormatError, StoreError
from artifacts.record import Blob, Record
from artifacts.store import Store

Progress = Callable[[str, "float | None"], None]
Cure = Literal["aside", "chmod", "unlink", "nothing"]

AT_ONCE = os.cpu_count() or 1
"""hashlib lets go of the interpreter's lock while it hashes, so threads use all cores."""


@dataclass(frozen=True)
class Finding:
    """One file that is not what it should be.

    Attributes:
        path: The file, from the store's root.
        what: What is wrong, one line.
        records: Keys of the records whose answer is lost by it.
        refs: Names that stand for those records.
        logs: Keys of the records that lose no more than their log.
        cure: What `repair` does with the file itself.
    """

    path: Path
    what: str
    records: tuple[str, ...] = ()
    refs: tuple[str, ...] = ()
    logs: tuple[str, ...] = ()
    cure: Cure = "aside"


@dataclass
class Report:
    """What `verify` saw.

    Attributes:
        files: How many files were looked at.
        bytes: How many bytes of content were hashed.
        findings: The damage.
        newer: Records that a newer trtforge wrote, from the store's root.
        steps: `build[l4] of digits` for each record that could be read, by key.
    """

    files: int = 0
    bytes: int = 0
    findings: list[Finding] = field(default_factory=list)
    newer: list[Path] = field(default_factory=list)
    steps: dict[str, str] = field(default_factory=dict)


@dataclass
class _Holders:
    """Who needs what: the records behind each object, and the names behind each record."""

    outputs: dict[Blob, list[str]] = field(default_factory=lambda: defaultdict(list))
    logs: dict[Blob, list[str]] = field(default_factory=lambda: defaultdict(list))
    refs: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    records: dict[str, Record] = field(default_factory=dict)

    def lost(self, finding: Finding, blobs: Sequence[Blob]) -> Finding:
        """`finding`, with all that is lost if the content `blobs` is."""
        records = tuple(sorted({key for blob in blobs for key in self.outputs.get(blob, ())}))
        logs = {key for blob in blobs for key in self.logs.get(blob, ())} - set(records)
        refs = tuple(sorted({name for key in records for name in self.refs.get(key, ())}))
        return replace(finding, records=records, refs=refs, logs=tuple(sorted(logs)))


def verify(store: Store, progress: Progress = lambda phase, fraction: None) -> Report:
    """Looks at all content, records, names and histories of `store`; changes nothing.

    Raises:
        OSError: A directory of the store cannot be listed.
    """
    report, holders = Report(), _Holders()
    # Names first and content last: what a running build writes meanwhile is there before what points to it.
    refs = list(_check_refs(store, report, holders))
    published = list(_published(store, report))
    _check_publications(store, report)
    _check_records(store, report, holders)
    report.findings += [found for name, key in refs if (found := _check_ref(store, name, key))]
    _check_content(store, report, holders, published, progress)
    # While a running build mends a published directory, its link leads nowhere for a moment.
    report.findings = [f for f in report.findings if f.cure != "unlink" or not (store.root / f.path).exists()]
    report.findings.sort(key=lambda finding: finding.path)
    return report


def repair(store: Store, findings: Sequence[Finding]) -> list[Path]:
    """Sets aside what is damaged and the records that answered with it, so that the next build makes it anew.

    A record that only lost its log goes on without it.

    Returns:
        Where things went.

    Raises:
        StoreError: The store cannot be written.
    """
    kept: list[Path] = []
    for finding in findings:
        _cure(store, finding, kept)
        lost = [f"refs/{name}" for name in finding.refs] + [f"records/{key}.json" for key in finding.records]
        kept += [store.set_aside(store.root / name) for name in lost if (store.root / name).exists()]
        for key in finding.logs:
            store.forget_log(key)
    for path in _files(store.root / "published", skip=".by-key"):
        if path.is_symlink() and not path.exists():  # it led to what was set aside
            path.unlink(missing_ok=True)
    return kept


def _cure(store: Store, finding: Finding, kept: list[Path]) -> None:
    path = store.root / finding.path
    if finding.cure == "aside" and path.exists():
        kept.append(store.set_aside(path))
    elif finding.cure == "chmod":
        path.chmod(0o444)
    elif finding.cure == "unlink":
        path.unlink(missing_ok=True)


# Names


def _check_refs(store: Store, report: Report, holders: _Holders) -> Iterator[tuple[str, str]]:
    for path in _files(store.root / "refs"):
        report.files += 1
        name = path.relative_to(store.root / "refs").as_posix()
        key = store.ref(name)
        if key is None:
            report.findings.append(_finding(store, path, f"ref {name} names no key"))
        else:
            holders.refs[key].append(name)
            yield name, key


def _check_ref(store: Store, name: str, key: str) -> Finding | None:
    if store.record_path(key).exists() or store.ref(name) != key:
        return None
    return Finding(Path("refs", name), f"ref {name} means record {key}, which is gone")


def _published(store: Store, report: Report) -> Iterator[Path]:
    """The published directories that can be looked into; links that lead nowhere are findings."""
    base = store.root / "published"
    for path in _files(base, skip=".by-key"):
        report.files += 1
        if not path.is_symlink():
            report.findings.append(_finding(store, path, "does not belong here: not a published directory"))
        elif not path.exists():
            what = "leads nowhere: the published directory is gone"
            report.findings.append(replace(_finding(store, path, what), cure="unlink"))
    if (base / ".by-key").is_dir():
        yield from sorted((base / ".by-key").iterdir())


def _check_publications(store: Store, report: Report) -> None:
    """What was published, one after the other, and what gates refused. No answer is lost with it."""
    for path in publications.files(store):
        report.files += 1
        if what := publications.problem(path):
            report.findings.append(_finding(store, path, what))


# Records


def _check_records(store: Store, report: Report, holders: _Holders) -> None:
    for path in _files(store.root / "records"):
        report.files += 1
        try:
            record = _read(path)
        except NewerFormatError:
            report.newer.append(path.relative_to(store.root))
        except FileNotFoundError:
            continue  # set aside, or collected, meanwhile
        except (StoreError, OSError, UnicodeDecodeError) as error:
            refs = tuple(holders.refs.get(path.stem, ()))
            what = f"record {path.stem} is damaged: {error}"
            report.findings.append(replace(_finding(store, path, what), refs=refs))
        else:
            _note(record, report, holders)


def _read(path: Path) -> Record:
    record = Record.loads(path.read_text(encoding="utf-8"))
    if path.name != f"{record.key}.json":
        raise StoreError(f"it answers {record.key}")
    return record


def _note(record: Record, report: Report, holders: _Holders) -> None:
    key = record.key
    holders.records[key] = record
    for blob in record.outputs.values():
        holders.outputs[blob].append(key)
    if record.log is not None:
        holders.logs[record.log].append(key)
    known = record.provenance
    step = f"{known.get('step')}[{known['target']}]" if known.get("target") else known.get("step")
    report.steps[key] = f"{step} of {known.get('model')}"


# Content


def _check_content(
    store: Store, report: Report, holders: _Holders, published: Sequence[Path], progress: Progress
) -> None:
    for blob in {**holders.outputs, **holders.logs}:
        if found := _check_presence(store, blob):
            report.findings.append(holders.lost(found, [blob]))
    objects = [(path, _size(path)) for path in _files(store.root / "objects")]
    packed = [(path, _size(path)) for path in _files(store.root / "deltas")]
    caches = [(path, _size(path)) for path in _files(store.root / "timing")]
    copies = [(path, sum(map(_size, _files(path)))) for path in published]
    everything = (*objects, *packed, *caches, *copies)
    total = sum(size for _, size in everything) or 1
    report.files += len(everything)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        looked = [pool.submit(_check_object, store, path, holders) for path, _ in objects]
        looked += [pool.submit(_check_delta, store, path, holders, report) for path, _ in packed]
        looked += [pool.submit(_check_timing, store, path) for path, _ in caches]
        looked += [pool.submit(_check_copy, store, path, holders) for path, _ in copies]
        for future, (path, size) in zip(looked, everything, strict=True):
            if found := future.result():
                report.findings.append(found)
            report.bytes += size
            progress(f"reading {path.parent.name}/{path.name[:8]}", report.bytes / total)
    damaged = {store.root / finding.path for finding in report.findings if finding.cure == "aside"}
    for path in (path for path, _ in packed if path not in damaged):
        if found := _check_bases(store, path, holders, damaged):
            report.findings.append(found)


def _check_presence(store: Store, blob: Blob) -> Finding | None:
    path = store.place(blob)
    if path.exists() or store.delta(blob).exists():
        return None  # its size is what it should be if its digest is
    return replace(_finding(store, path, f"object {blob.digest} is gone"), cure="nothing")


def _check_object(store: Store, path: Path, holders: _Holders) -> Finding | None:
    name = path.parent.name + path.name
    if not digest.is_digest(name) or path.parent.parent != store.root / "objects":
        return _finding(store, path, "does not belong here: not named as a digest is")
    try:
        found, mode = digest.of_file(path), path.stat().st_mode
    except FileNotFoundError:
        return None  # set aside, or collected, meanwhile
    except OSError as error:
        return holders.lost(_finding(store, path, f"cannot be read: {error.strerror}"), _blobs(holders, name))
    if found != name:
        what = f"object {name} is damaged: its content has the digest {found}"
        return holders.lost(_finding(store, path, what), _blobs(holders, name))
    if mode & 0o222:
        return replace(_finding(store, path, f"object {name} can be written: mode {mode & 0o777:o}"), cure="chmod")
    return None


def _check_delta(store: Store, path: Path, holders: _Holders, report: Report) -> Finding | None:
    """An object that is kept as a delta, but for what it lies beside."""
    name = path.parent.name + path.name
    if not digest.is_digest(name) or path.parent.parent != store.root / "deltas":
        return _finding(store, path, "does not belong here: not named as a digest is")
    try:
        deltas.check(path)
    except FileNotFoundError:
        return None  # set aside, or collected, meanwhile
    except NewerFormatError:
        report.newer.append(path.relative_to(store.root))
    except StoreError as error:
        return _lost_unless_whole(store, _finding(store, path, error.what), holders, name)
    except OSError as error:
        what = f"cannot be read: {error.strerror}"
        return _lost_unless_whole(store, _finding(store, path, what), holders, name)
    return None


def _check_bases(store: Store, path: Path, holders: _Holders, damaged: Collection[Path]) -> Finding | None:
    """A delta that is whole itself, once all that it may lie beside was looked at."""
    name = path.parent.name + path.name
    try:
        bases = deltas.read(path).bases
    except (StoreError, OSError):
        return None  # of a newer format, gone meanwhile, or told already
    bad = [base for base in bases if store.place(base) in damaged or not store.place(base).exists()]
    if not bad or not path.exists():
        return None
    what = f"object {name} is kept as a delta beside {bad[0].digest}, which is damaged or gone"
    return _lost_unless_whole(store, _finding(store, path, what), holders, name)


def _lost_unless_whole(store: Store, finding: Finding, holders: _Holders, name: str) -> Finding:
    blobs = _blobs(holders, name)
    return finding if any(store.place(blob).exists() for blob in blobs) else holders.lost(finding, blobs)


def _check_timing(store: Store, path: Path) -> Finding | None:
    """A timing cache: named by its content. No answer is lost with it."""
    try:
        found = digest.of_file(path)
    except FileNotFoundError:
        return None  # a build has just merged it into another
    except OSError as error:
        return _finding(store, path, f"cannot be read: {error.strerror}")
    if found == path.name:
        return None
    lost = f", which pins the tactics of {key}," if (key := timing.pinned_key(path)) else ""
    return _finding(store, path, f"timing cache{lost} is damaged: its content has the digest {found}")


def _blobs(holders: _Holders, name: str) -> list[Blob]:
    return [blob for blob in {**holders.outputs, **holders.logs} if blob.digest == name]


def _check_copy(store: Store, directory: Path, holders: _Holders) -> Finding | None:
    """A published directory: what its record says, and what its own manifest says where the record is gone."""
    names = tuple(sorted(holders.refs.get(directory.name, ())))
    try:
        found = {path.name: digest.of_file(path) for path in directory.iterdir()}
        said = holders.records.get(directory.name)
        if said is None:
            right = _keeps_its_manifest(directory, found)
        else:
            right = sorted(found.values()) == sorted(blob.digest for blob in said.outputs.values())
    except (OSError, ValueError, KeyError, TypeError):
        right = False
    if right or not directory.exists():
        return None
    where = ", ".join(name for name in names if name.startswith("published/")) or directory.name
    return _finding(store, directory, f"{where} is damaged: its files are not those that were published")


def _keeps_its_manifest(directory: Path, found: dict[str, str]) -> bool:
    plan = json.loads((directory / "manifest.json").read_text(encoding="utf-8"))["plan"]
    return bool(found[plan["file"]] == plan["sha256"])


def _finding(store: Store, path: Path, what: str) -> Finding:
    return Finding(path.relative_to(store.root), what)


def _files(base: Path, skip: str = "") -> list[Path]:
    found: list[Path] = []
    for parent, directories, names in os.walk(base, onerror=_raise_unless_gone):
        linked = [name for name in directories if Path(parent, name).is_symlink()]
        directories[:] = sorted(name for name in directories if name != skip and name not in linked)
        found += [Path(parent, name) for name in sorted([*names, *linked])]
    return found


def _raise_unless_gone(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
