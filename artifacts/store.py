"""The store: immutable objects by content, records by question, refs by name.

```
<root>/objects/ab/cdef…          content, mode 0444, named by its sha256
<root>/deltas/ab/cdef…           content that is kept beside other content; see `artifacts.deltas`
<root>/records/<key>.json        question -> answer
<root>/refs/plans/…              names for people -> key
<root>/published/…               directories that were published: plan and manifest
<root>/timing/…                  what builders measured, by GPU or plan; see `artifacts.timing`
<root>/damaged/                  what was set aside because its bytes were not what its name says
<root>/index.sqlite              remembered digests; may be thrown away
<root>/records.sqlite            where to find records; may be thrown away
<root>/claims/                   what running builds rely on, for gc to see
<root>/tmp, <root>/locks
```

Everything is written aside, synced and renamed: a reader sees the whole or nothing.
"""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from artifacts import claims, deltas, digest, locks
from artifacts.errors import NewerFormatError, StoreError
from artifacts.memo import Memo
from artifacts.record import Blob, Record

T = TypeVar("T")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@-]*(/[A-Za-z0-9_][A-Za-z0-9._+@-]*)*")


@dataclass(frozen=True)
class Hit:
    """A record whose outputs are all here, byte for byte."""

    record: Record


@dataclass(frozen=True)
class Miss:
    """No usable answer.

    Attributes:
        reason: Why, in words; empty when the question was never answered here.
        damaged: Files whose bytes are not what their names say.
    """

    reason: str = ""
    damaged: tuple[Path, ...] = ()


class Store:
    """The store below `root`, made when the first thing is written."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._memo: Memo | None = None
        self._claims = claims.Claims(self.root)

    @property
    def identity(self) -> str:
        """Tells this store from others, here and on other machines; the same for all who can lock each other out."""
        stat = self.root.stat()
        return f"{platform.node()}:{stat.st_dev}:{stat.st_ino}:{self.root}"

    @property
    def memo(self) -> Memo:
        """Digests of files, remembered by stat."""
        if self._memo is None:
            self._memo = Memo(self.root / "index.sqlite")
        return self._memo

    # Objects

    def path(self, blob: Blob) -> Path:
        """Where the content of `blob` lies, whole: an object that is kept as a delta is one file again first.

        Raises:
            StoreError: The object is kept as a delta, and is damaged or the store cannot be written.
        """
        place = self.place(blob)
        if not place.exists() and self.delta(blob).exists():
            with self.scratch() as aside:
                with self._writing():
                    (aside / "whole").write_bytes(self._unpacked(blob))
                self.move_in(aside / "whole", place)
        return place

    def place(self, blob: Blob) -> Path:
        """Where the content of `blob` lies when it is whole."""
        return self.root / "objects" / blob.digest[:2] / blob.digest[2:]

    def delta(self, blob: Blob) -> Path:
        """Where the content of `blob` lies when it is kept as a delta."""
        return deltas.place(self.root, blob.digest)

    def disk_bytes(self, blob: Blob) -> int:
        """How much of the disk the content of `blob` takes, without the base that it may be kept beside; 0: gone."""
        with suppress(OSError):
            return self.place(blob).stat().st_size
        with suppress(OSError):
            return self.delta(blob).stat().st_size
        return 0

    def objects(self, beginning: str) -> list[str]:
        """The digests of all objects whose digest begins with these two or more hex digits, whole ones and deltas."""
        folders = (self.root / kind / beginning[:2] for kind in ("objects", "deltas"))
        found = {beginning[:2] + path.name for folder in folders for path in folder.glob(f"{beginning[2:]}*")}
        return sorted(filter(digest.is_digest, found))

    def problem(self, blob: Blob) -> str:
        """What is wrong with the object of `blob`: gone, of another size, of other content; empty if nothing is."""
        problem = self._problem_of_whole(blob)
        return problem if problem is not None else self._problem_of_delta(blob)

    def _problem_of_whole(self, blob: Blob) -> str | None:
        """What is wrong with the file of `blob`, empty if nothing is; None where there is none."""
        path = f"{self.root}/objects/{blob.digest[:2]}/{blob.digest[2:]}"  # asked 16,000 times for a catalog
        try:
            stat = os.stat(path)  # noqa: PTH116
            if stat.st_size != blob.bytes:
                return f"object {blob.digest} is damaged: {stat.st_size} bytes, not {blob.bytes}"
            if self.memo.digest_of(path, stat) != blob.digest:
                return f"object {blob.digest} is damaged: its content has another digest"
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"object {blob.digest} cannot be read: {error.strerror}"
        return ""

    def _problem_of_delta(self, blob: Blob) -> str:
        try:
            known = deltas.check(self.delta(blob))
        except FileNotFoundError:
            return f"object {blob.digest} is gone"
        except StoreError as error:
            return error.what
        except OSError as error:
            return f"object {blob.digest} cannot be read: {error.strerror}"
        if known.bytes != blob.bytes:
            return f"object {blob.digest} is damaged: {known.bytes} bytes, not {blob.bytes}"
        problems = [self._problem_of_base(base) for base in known.bases]
        return next((f"object {blob.digest} is kept as a delta: {problem}" for problem in problems if problem), "")

    def _problem_of_base(self, blob: Blob) -> str:
        problem = self._problem_of_whole(blob)
        return f"object {blob.digest} is gone" if problem is None else problem

    def _unpacked(self, blob: Blob) -> bytes:
        bases = deltas.read(self.delta(blob)).bases
        if problem := next(filter(None, map(self._problem_of_base, bases)), ""):
            raise StoreError(f"object {blob.digest} is kept as a delta: {problem}", "run `trtforge verify --repair`")
        content = deltas.unpacked(self.delta(blob), self.place)
        if digest.of_bytes(content) != blob.digest:
            what = f"object {blob.digest} is damaged: other content comes out of its delta"
            raise StoreError(what, "run `trtforge verify --repair`, then the build again")
        return content

    def add(self, source: Path) -> Blob:
        """Takes the file at `source`, which lies on the store's file system, as an object.

        Raises:
            StoreError: The store cannot be written.
        """
        with self._writing():
            blob = Blob(digest.of_file(source), source.stat().st_size)
        # The same bytes may be there already: then nothing changes, and damage is mended.
        self.move_in(source, self.place(blob))
        return blob

    def move_in(self, source: Path, target: Path) -> None:
        """Lets the file at `source`, which lies on the store's file system, be the store's `target`, for good.

        Raises:
            StoreError: The store cannot be written.
        """
        with self._writing():
            target.parent.mkdir(parents=True, exist_ok=True)
            source.chmod(0o444)
            _sync(source)
            source.replace(target)
            _sync(target.parent)

    def set_aside(self, damaged: Path) -> Path:
        """Moves a damaged file out of the way, kept for a look at it.

        Raises:
            StoreError: The store cannot be written.
        """
        with self._writing():
            kept = self.root / "damaged" / damaged.relative_to(self.root).as_posix().replace("/", "-")
            kept.parent.mkdir(exist_ok=True)
            if damaged.is_dir():
                shutil.rmtree(kept, ignore_errors=True)
            with suppress(FileNotFoundError):  # another build that met the same damage was faster
                damaged.replace(kept)
                if damaged.is_relative_to(self.root / "objects") and _is_whole(damaged, kept):
                    kept.replace(damaged)  # and has mended it already
            return kept

    # Records

    def record_path(self, key: str) -> Path:
        """Where the record of `key` lies."""
        return self.root / "records" / f"{key}.json"

    def lookup(self, key: str) -> Hit | Miss:
        """The answer to the question with the digest `key`, checked down to the last byte of its outputs."""
        try:
            text, answers, learn = self.memo.read_record(f"{self.root}/records/{key}.json")
            record = Record.loads_checked(text) if answers else Record.loads(text)
        except (FileNotFoundError, NotADirectoryError):
            return Miss()
        except OSError as error:
            return Miss(f"record {key} cannot be read: {error.strerror}")
        except NewerFormatError as error:
            return Miss(str(error))
        except (StoreError, UnicodeDecodeError) as error:
            return Miss(f"record {key} is damaged: {error}", (self.record_path(key),))
        if answers is None:
            answers = record.key
            learn(answers)
        if answers != key:
            return Miss(f"record {key} is damaged: it answers {answers}", (self.record_path(key),))
        problems = {blob: reason for blob in record.outputs.values() if (reason := self.problem(blob))}
        if problems:
            return Miss("; ".join(problems.values()), tuple(path for blob in problems for path in self._at_fault(blob)))
        return Hit(record)

    def _at_fault(self, blob: Blob) -> list[Path]:
        """The files for which an object with a problem cannot be used: its own, or those of its bases."""
        if self.place(blob).exists():
            return [self.place(blob)]
        try:
            bases = deltas.read(self.delta(blob)).bases
        except (FileNotFoundError, NewerFormatError):
            return []
        except (StoreError, OSError):
            return [self.delta(blob)]
        bad = [base for base in bases if self._problem_of_base(base)]
        return [place for place in map(self.place, bad) if place.exists()] if bad else [self.delta(blob)]

    def put(self, record: Record) -> None:
        """Keeps `record`, whose outputs and log are objects already; one of a newer format is left as it is.

        Raises:
            StoreError: The store cannot be written.
        """
        path = self.record_path(record.key)
        if not _is_newer(path):
            self._write(path, record.dumps())

    def forget_log(self, key: str) -> None:
        """Takes the log out of the record of `key`, whose question and answer stay.

        Raises:
            StoreError: The store cannot be written.
        """
        record = self.record(key)
        if record is not None:
            self.put(replace(record, log=None))

    def record(self, key: str) -> Record | None:
        """The record of `key` without a look at its outputs; None where it is gone or damaged."""
        try:
            record = Record.loads(self.record_path(key).read_text(encoding="utf-8"))
        except (StoreError, UnicodeDecodeError, OSError):
            return None
        return record if record.key == key else None

    def recorded(self) -> Iterator[str]:
        """The key of every record, in no order, readable or not."""
        with suppress(FileNotFoundError), os.scandir(self.root / "records") as entries:
            yield from (e.name[:-5] for e in entries if e.name.endswith(".json") and digest.is_digest(e.name[:-5]))

    # Refs

    def set_ref(self, name: str, key: str) -> None:
        """Lets `name` (`plans/digits/sm_89/rtx-1.7.1.116/int8`) mean `key`.

        Raises:
            StoreError: The name is not made of plain segments, or the store cannot be written.
        """
        _require_name(name)
        path = self.root / "refs" / name
        if self.ref(name) != key:
            self._write(path, key + "\n")

    def ref(self, name: str) -> str | None:
        """The key that `name` means, None if it means nothing."""
        try:
            key = (self.root / "refs" / name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return key if digest.is_digest(key) else None

    def delete_ref(self, name: str) -> None:
        """Lets `name` mean nothing; what it meant stays until gc finds that nothing else reaches it.

        Raises:
            StoreError: The store cannot be written.
        """
        _require_name(name)
        self.delete(self.root / "refs" / name)

    def refs(self, prefix: str) -> dict[str, str]:
        """All refs below `prefix`, name -> key, sorted by name."""
        base = self.root / "refs"
        names = sorted(path.relative_to(base).as_posix() for path in (base / prefix).rglob("*") if path.is_file())
        return {name: key for name in names if (key := self.ref(name))}

    # Published directories

    def publish(self, name: str, key: str, files: Mapping[str, Blob]) -> Path:
        """Makes `published/<name>` a directory that holds `files` (file name -> content), all at once.

        The name is a link to a directory of its own for each key, so that a reader sees the old one or the new one.

        Returns:
            The directory's path.

        Raises:
            StoreError: The name is not made of plain segments, an object is damaged, or the store cannot be written.
        """
        _require_name(name)
        link = self.root / "published" / name
        directory = self.root / "published" / ".by-key" / key
        with self._writing():
            if not self._holds(directory, files):
                with self.lock(f"published-{key}", f"publishing {name} in process {os.getpid()}", lambda holder: None):
                    if not self._holds(directory, files):
                        self._fill(directory, files)
            target = os.path.relpath(directory, link.parent)
            if not link.is_symlink() or link.readlink() != Path(target):
                link.parent.mkdir(parents=True, exist_ok=True)
                with self.scratch() as aside:
                    (aside / "link").symlink_to(target)
                    (aside / "link").replace(link)
                _sync(link.parent)
        return link

    def _holds(self, directory: Path, files: Mapping[str, Blob]) -> bool:
        try:
            return {path.name for path in directory.iterdir()} == set(files) and all(
                self.memo.digest(directory / name) == blob.digest for name, blob in files.items()
            )
        except OSError:
            return False

    def _fill(self, directory: Path, files: Mapping[str, Blob]) -> None:
        with self.scratch() as aside:
            fresh = aside / "directory"
            fresh.mkdir()
            for name, blob in files.items():
                if problem := self.problem(blob):
                    raise StoreError(problem, "run `trtforge build` again: it rebuilds what is damaged")
                shutil.copyfile(self.path(blob), fresh / name)
                if digest.of_file(fresh / name) != blob.digest:  # of what is handed out, whatever is remembered
                    what = f"object {blob.digest} is damaged, though its size and times are as they were"
                    raise StoreError(what, "run `trtforge verify --repair`, then the same build again")
                _sync(fresh / name)
            _sync(fresh)
            if directory.exists():
                directory.replace(aside / "old")
            directory.parent.mkdir(parents=True, exist_ok=True)
            fresh.replace(directory)
            _sync(directory.parent)

    # Working on it

    def claim(self, keys: Iterable[str], waiting: Callable[[str], None] = lambda holder: None) -> None:
        """Keeps gc from the records of `keys`, whether they are there yet or not, until `release` or the process ends.

        Args:
            keys: The keys.
            waiting: Called with one line that says which gc this waits for, again and again; it may raise to give up.

        Raises:
            StoreError: The store cannot be written.
        """
        with self._writing():
            self._claims.add(keys, waiting)

    @property
    def claiming(self) -> bool:
        """Whether anything is claimed: a build is at work."""
        return self._claims.any

    def release(self) -> None:
        """Claims nothing any more."""
        self._claims.release()

    def alone(self, holder: str, waiting: Callable[[str], None]) -> AbstractContextManager[None]:
        """Keeps builds from claiming and adding, for gc; see `locks.exclusive`.

        Raises:
            StoreError: The store cannot be written.
        """
        return self._entered(claims.gate(self.root), lambda gate: locks.exclusive(gate, holder, waiting))

    def sweep(self) -> None:
        """Removes what dead processes left, for gc, which is `alone`.

        Raises:
            StoreError: The store cannot be written.
        """
        with self._writing():
            claims.sweep(self.root)
            locks.sweep(self.root / "tmp")

    def delete(self, path: Path) -> None:
        """Deletes a file or directory of the store, for gc.

        Raises:
            StoreError: The store cannot be written.
        """
        with self._writing(), suppress(FileNotFoundError):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

    def keeping(self, waiting: Callable[[str], None] = lambda holder: None) -> AbstractContextManager[None]:
        """Keeps gc out while objects are added that no record holds yet.

        Raises:
            StoreError: The store cannot be written.
        """
        return self._entered(claims.gate(self.root), lambda gate: locks.shared(gate, waiting))

    def lock(self, key: str, holder: str, waiting: Callable[[str], None]) -> AbstractContextManager[None]:
        """The lock of `key`; see `locks.exclusive`.

        Raises:
            StoreError: The store cannot be written.
        """
        return self._entered(self.root / "locks" / f"{key}.lock", lambda path: locks.exclusive(path, holder, waiting))

    def scratch(self) -> AbstractContextManager[Path]:
        """A directory on the store's file system to write aside in.

        Raises:
            StoreError: The store cannot be written.
        """
        return self._entered(self.root / "tmp", locks.scratch)

    @contextmanager
    def _entered(self, path: Path, enter: Callable[[Path], AbstractContextManager[T]]) -> Iterator[T]:
        """Enters what `enter` makes of `path`; an error while it is made, not one inside, is the store's."""
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            context = enter(path)
            made = context.__enter__()
        try:
            yield made
        finally:
            context.__exit__(None, None, None)

    def _write(self, path: Path, text: str) -> None:
        with self._writing(), self.scratch() as aside:
            fresh = aside / "fresh"
            fresh.write_text(text, encoding="utf-8")
            _sync(fresh)
            path.parent.mkdir(parents=True, exist_ok=True)
            fresh.replace(path)
            _sync(path.parent)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self.cannot_be_written(error) from error

    def cannot_be_written(self, error: OSError) -> StoreError:
        """What a failed write means to the user."""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            advice = "make room, or put the store on another disk: store.root=/path"
        else:
            advice = "choose a directory you may write: store.root=/path, or the variable TRTFORGE_STORE"
        return StoreError(f"the store {self.root} cannot be written: {error.strerror}", advice)


def _is_newer(path: Path) -> bool:
    try:
        Record.loads(path.read_text(encoding="utf-8"))
    except NewerFormatError:
        return True
    except (StoreError, OSError, UnicodeDecodeError):
        pass
    return False


def _is_whole(place: Path, content: Path) -> bool:
    try:
        return digest.of_file(content) == place.parent.name + place.name
    except OSError:
        return False  # a broken disk


def _require_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise StoreError(
            f"{name!r} cannot be the name of a ref: letters, digits and ._+@- between slashes are allowed",
            "rename the model or the flow",
        )


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
