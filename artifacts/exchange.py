"""Records, objects and timing caches between a store and a remote: checked on arrival, and no record is replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from artifacts import digest, timing
from artifacts.errors import DamagedRemoteError, NewerFormatError, RemoteError, StoreError
from artifacts.record import Blob, Record
from artifacts.remote import Remote
from artifacts.store import Store

FETCHES = 3
"""gc may take an object between its arrival and its record's, once; more often is a broken disk."""

Waiting = Callable[[str], None]


class Exchange:
    """What `store` and `remote` send each other."""

    def __init__(self, store: Store, remote: Remote) -> None:
        self.store = store
        self.remote = remote
        self._damaged: set[str] = set()  # names in the remote whose content was found wrong: they are replaced

    def recorded(self) -> set[str]:
        """The keys of the records that the remote has.

        Raises:
            RemoteError: The remote cannot be used.
        """
        names = [name.rpartition("/")[2] for name in self.remote.names("records")]
        return {name[:64] for name in names if name.endswith(".json") and digest.is_digest(name[:-5])}

    def fetch(self, key: str, waiting: Waiting) -> Record | None:
        """Brings the record of `key` and all its objects into the store; None where the remote has no such record.

        Args:
            key: The record's key.
            waiting: Called while gc keeps the store; it may raise to give up.

        Raises:
            DamagedRemoteError: The record or an object of it is not what its name says, or is gone.
            RemoteError: The remote cannot be used.
            StoreError: The store cannot be written.
        """
        record = self._record(key)
        if record is None:
            return None
        try:
            return self._fetch(record, waiting)
        except DamagedRemoteError:
            self._damaged.add(_record_name(key))  # it promises what it cannot keep
            raise

    def send(self, record: Record, require: Callable[[], None] = lambda: None) -> Record:
        """Sends the record and its objects, unless the remote has an answer to the same question already.

        Objects that are there are not sent again, so an upload that was cut off goes on where it stopped.

        Args:
            record: A record of the store.
            require: Called between objects and record; it raises if the sender has lost its turn.

        Returns:
            What counts from now on: `record`, or the remote's own, which is then in the store too.

        Raises:
            RemoteError: The remote cannot be used, or `require` said no.
            StoreError: An object of the record is damaged.
        """
        self.send_objects(record.blobs)
        require()
        name = _record_name(record.key)
        if name in self._damaged:
            self.remote.delete(name)
        if self.remote.create(name, record.dumps().encode()):
            self._damaged.discard(name)
            return record
        try:
            theirs = self._record(record.key)
            if theirs is None or theirs.outputs == record.outputs:
                return record
            return self.fetch(record.key, lambda holder: None) or record
        except DamagedRemoteError:
            return self.send(record, require)  # now it is known to be damaged, and is replaced

    def send_refs(self, refs: Mapping[str, str]) -> None:
        """Lets the names in the remote mean the same keys as here, unless a later record has the name there.

        Raises:
            RemoteError: The remote cannot be used.
        """
        theirs = dict(zip(refs, self._keys_of(list(refs)), strict=True))
        moved = {name: key for name, key in refs.items() if theirs[name] != key}
        made = {key: _finished(self._record(key)) for key in {theirs[name] for name in moved} if key}
        later = {name for name in moved if made.get(theirs[name], "") > _finished(self.store.record(moved[name]))}
        self.remote.write_all({f"refs/{name}": f"{moved[name]}\n".encode() for name in moved.keys() - later})

    def move_refs(self, refs: Mapping[str, str]) -> None:
        """Lets the names in the remote mean these keys, whatever they mean there: somebody said so.

        Raises:
            RemoteError: The remote cannot be used.
        """
        self.remote.write_all({f"refs/{name}": f"{key}\n".encode() for name, key in refs.items()})

    def fetch_refs(self) -> list[str]:
        """Takes over every plan's name of the remote that means nothing here and whose record is here.

        Returns:
            These names. (What is published is published by a build, with its directory.)

        Raises:
            RemoteError: The remote cannot be used.
            StoreError: The store cannot be written.
        """
        names = [name.removeprefix("refs/") for name in self.remote.names("refs/plans")]
        taken = []
        for name, key in zip(names, self._keys_of(names), strict=True):
            if key and self.store.ref(name) is None and self.store.record(key) is not None:
                self.store.set_ref(name, key)
                taken.append(name)
        return taken

    def fetch_timing(self, prefix: str, told: Callable[[str], None]) -> int:
        """Brings the timing caches whose place is `prefix` or below it; what is damaged is deleted there.

        Args:
            prefix: Empty for all.
            told: Told of each that is damaged.

        Returns:
            How many.

        Raises:
            RemoteError: The remote cannot be used.
            StoreError: The store cannot be written.
        """
        there, here = self._timing(prefix), timing.names(self.store, prefix)
        wanted = sorted(there - {*here})
        with self.store.scratch() as aside:
            files = {name: aside / str(number) for number, name in enumerate(wanted)}
            with suppress(FileNotFoundError):  # another machine has merged it; what came before it is here
                self.remote.download({f"timing/{name}": file for name, file in files.items()})
            taken = [name for name, file in files.items() if file.exists() and self._take_timing(name, file, told)]
        return len(taken)

    def _take_timing(self, name: str, file: Path, told: Callable[[str], None]) -> bool:
        place, _, expected = name.rpartition("/")
        found = digest.of_file(file)
        if found == expected:
            timing.keep(self.store, place, file, (), lambda holder: None)
            return True
        self.remote.delete(f"timing/{name}")
        told(f"timing/{name} in the remote {self.remote.url} is damaged: its content has the digest {found}")
        return False

    def send_timing(self, prefix: str, merged: Iterable[str] = ()) -> int:
        """Sends the timing caches whose place is `prefix` or below it, and deletes there those that went into them.

        Args:
            prefix: Empty for all.
            merged: Names of files whose content is in the store's; with a whole place only.

        Returns:
            How many were sent.

        Raises:
            RemoteError: The remote cannot be used.
        """
        there, here = self._timing(prefix), {*timing.names(self.store, prefix)}
        with self.store.scratch() as aside:  # of what is sent nothing may be merged, and go, meanwhile
            fresh = {name: copy for name in sorted(here - there) if (copy := timing.copied(self.store, name, aside))}
            self.remote.upload({f"timing/{name}": copy for name, copy in fresh.items()})
        for name in sorted(({f"{prefix}/{each}" for each in merged} & there) - here):
            self.remote.delete(f"timing/{name}")
        return len(fresh)

    def _timing(self, prefix: str) -> set[str]:
        names = self.remote.names(f"timing/{prefix}".rstrip("/"))
        return {name for each in names if timing.is_name(name := each.removeprefix("timing/"))}

    def _keys_of(self, names: Sequence[str]) -> list[str]:
        """The keys that the names mean in the remote; empty for each that means none."""
        texts = [
            (text or b"").decode(errors="replace").strip()
            for text in self.remote.read_all([f"refs/{n}" for n in names])
        ]
        return [text if digest.is_digest(text) else "" for text in texts]

    def _fetch(self, record: Record, waiting: Waiting) -> Record:
        record = self._with_log(record, waiting)
        for _ in range(FETCHES):
            missing = [blob for blob in set(record.outputs.values()) if self.store.problem(blob)]
            self.fetch_objects(missing, waiting)
            with self.store.keeping(waiting):  # gc may have taken one that no record held
                if not any(self.store.problem(blob) for blob in record.outputs.values()):
                    self.store.put(record)
                    return record
        raise StoreError(
            f"objects of {record.key} do not stay in the store", "run `trtforge verify`: the disk may be broken"
        )

    def _record(self, key: str) -> Record | None:
        name = _record_name(key)
        content = self.remote.read(name)
        if content is None:
            return None
        try:
            record = Record.loads(content.decode())
            if record.key != key:
                raise StoreError(f"it answers {record.key}")
        except NewerFormatError:
            return None
        except (StoreError, UnicodeDecodeError) as error:
            raise self._damage(name, str(error)) from error
        return record

    def _with_log(self, record: Record, waiting: Waiting) -> Record:
        if record.log and self.store.problem(record.log):
            try:
                self.fetch_objects([record.log], waiting)
            except DamagedRemoteError:
                return replace(record, log=None)  # the answer is worth having without it
        return record

    def fetch_objects(self, blobs: Iterable[Blob], waiting: Waiting) -> None:
        """Brings these objects into the store.

        Raises:
            DamagedRemoteError: One is not what its name says, or is gone.
            RemoteError: The remote cannot be used.
            StoreError: The store cannot be written.
        """
        with self.store.scratch() as directory:
            files = {blob: directory / blob.digest for blob in blobs}
            try:
                self.remote.download({_object_name(blob): file for blob, file in files.items()})
            except FileNotFoundError as error:
                lost = [blob for blob, file in files.items() if not file.exists()]
                raise self._damage(_object_name(lost[0]) if lost else str(error), "it is gone") from error
            with self.store.keeping(waiting):
                for blob, file in files.items():
                    self._add(blob, file)

    def _add(self, blob: Blob, file: Path) -> None:
        found = Blob(digest.of_file(file), file.stat().st_size)
        if found != blob:
            told = f"{found.bytes} bytes with the digest {found.digest}, not {blob.bytes}"
            raise self._damage(_object_name(blob), told)
        self.store.add(file)

    def send_objects(self, blobs: Iterable[Blob]) -> None:
        """Sends those of the objects that the remote has not.

        Raises:
            RemoteError: The remote cannot be used.
            StoreError: One is damaged here.
        """
        for blob in blobs:
            if problem := self.store.problem(blob):
                raise StoreError(problem, "run `trtforge build` again: it rebuilds what is damaged")
        named = {_object_name(blob): blob for blob in blobs}
        sizes = dict(zip(named, self.remote.sizes(list(named)), strict=True))
        fresh = {name for name, blob in named.items() if sizes[name] != blob.bytes or name in self._damaged}
        self.remote.upload({name: self.store.path(named[name]) for name in fresh})
        self._damaged -= fresh

    def _damage(self, name: str, what: str) -> RemoteError:
        self._damaged.add(name)
        what = f"{name} in the remote {self.remote.url} is damaged: {what}"
        return DamagedRemoteError(what, "run `trtforge build`: it builds the step again and replaces it")


def _finished(record: Record | None) -> str:
    return str(record.provenance.get("finished") or "") if record is not None else ""


def _object_name(blob: Blob) -> str:
    return f"objects/{blob.digest[:2]}/{blob.digest[2:]}"


def _record_name(key: str) -> str:
    return f"records/{key}.json"
