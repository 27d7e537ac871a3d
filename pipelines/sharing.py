"""The remote as a build uses it: read through, written through, and done without when it is down.

A key is built by one machine: under the lease of the key, after a look whether somebody else has built it meanwhile.
What the remote cannot do is said once in a run; the build goes on locally, and `trtforge push` sends the rest later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from artifacts.errors import DamagedRemoteError, LostLeaseError, ReadOnlyRemoteError, RemoteError, StoreError
from artifacts.record import Record
from artifacts.store import Store
from conf.errors import ConfigError
from conf.schema import StoreConfig

if TYPE_CHECKING:
    from artifacts.exchange import Exchange
    from artifacts.lease import Lease

Waiting = Callable[[str], None]


class Sharing:
    """What one run shares with others through a remote.

    Args:
        exchange: Between the run's store and the remote.
        lease_s: A machine that builds a key and has not been heard of for so long is dead, in seconds.
        note: Told, once each, what the remote cannot do.
    """

    def __init__(self, exchange: Exchange, lease_s: float, note: Callable[[str], None]) -> None:
        self.exchange = exchange
        self._lease_s = lease_s
        self._note = note
        self._lock = threading.Lock()
        self._reads = self._writes = True
        self._said: set[str] = set()

    @property
    def url(self) -> str:
        """The remote's."""
        return self.exchange.remote.url

    def answer(self, key: str, holder: str, build: Callable[[], Record], waiting: Waiting) -> tuple[Record, bool]:
        """The record of `key`: the remote's, or what `build` makes, which the remote has afterwards.

        Args:
            key: The key, whose lock in the store the caller holds.
            holder: One line that says who asks, for those who wait.
            build: Makes the record and keeps it in the store.
            waiting: Called while somebody else builds it; it may raise to give up.

        Returns:
            The record, and whether `build` made it.
        """
        theirs = self.fetch(key, waiting)
        if theirs is not None:
            return theirs, False
        with self._turn(key, holder, waiting) as lease:
            theirs = self.fetch(key, waiting) if lease is not None else None
            if theirs is not None:
                return theirs, False
            record = build()
            return self._send(record, lease), True

    def send_refs(self, refs: Mapping[str, str]) -> None:
        """Lets the names in the remote mean the same as here."""
        if self._writes:
            try:
                self.exchange.send_refs(refs)
            except RemoteError as error:
                self._without(error)

    def move_refs(self, refs: Mapping[str, str]) -> None:
        """Lets the names in the remote mean these keys, though they may mean later ones there."""
        if self._writes:
            try:
                self.exchange.move_refs(refs)
            except RemoteError as error:
                self._without(error)

    def fetch_timing(self, place: str) -> None:
        """Brings the timing caches of a place into the store, as far as the remote can be used."""
        if self._reads:
            try:
                self.exchange.fetch_timing(place, self._say)
            except RemoteError as error:
                self._without(error)

    def send_timing(self, place: str, merged: Iterable[str]) -> None:
        """Sends the timing caches of a place, and deletes in the remote those that were merged into them."""
        if self._writes:
            try:
                self.exchange.send_timing(place, merged)
            except RemoteError as error:
                self._without(error)

    def fetch(self, key: str, waiting: Waiting) -> Record | None:
        """Brings the record of `key` into the store; None where the remote has none, or cannot be used."""
        if not self._reads:
            return None
        try:
            return self.exchange.fetch(key, waiting)
        except DamagedRemoteError as error:
            self._say(error.what)
        except RemoteError as error:
            self._without(error)
        return None

    def _send(self, record: Record, lease: Lease | None) -> Record:
        if not self._writes:
            return record
        try:
            return self.exchange.send(record, lease.require if lease is not None else lambda: None)
        except LostLeaseError as error:
            self._say(error.what)
        except RemoteError as error:
            self._without(error)
        return record

    @contextmanager
    def _turn(self, key: str, holder: str, waiting: Waiting) -> Iterator[Lease | None]:
        from artifacts import lease as leases

        if not self._writes:
            yield None
            return
        turn = leases.held(self.exchange.remote, key, holder, self.exchange.store.identity, self._lease_s, waiting)
        try:
            lease = turn.__enter__()
        except RemoteError as error:
            self._without(error)
            yield None
            return
        try:
            yield lease
        finally:
            turn.__exit__(None, None, None)

    def _without(self, error: RemoteError) -> None:
        """Goes on without what the remote cannot do, and says so once."""
        only_read = isinstance(error, ReadOnlyRemoteError)
        with self._lock:
            known = not self._writes and (only_read or not self._reads)
            self._writes, self._reads = False, self._reads and only_read
        if not known:
            how = (
                "what is built stays here" if only_read else "going on without it; `trtforge push` sends the rest later"
            )
            self._say(f"{error.what}; {how}")

    def _say(self, text: str) -> None:
        with self._lock:
            known = text in self._said
            self._said.add(text)
        if not known:
            self._note(text)


def from_remote(url: str | None) -> str:
    """Why a step is cached that was not, in words."""
    return f"from {url}"


def opened(config: StoreConfig, store: Store, note: Callable[[str], None]) -> Sharing | None:
    """What the config's remote is shared through, None where it names none.

    Raises:
        ConfigError: It names none that there could be.
    """
    if not config.remote:
        return None
    from artifacts.exchange import Exchange
    from artifacts.remote import Remote

    try:
        remote = Remote(config.remote, config.remote_limit_s)
    except StoreError as error:
        raise ConfigError(error.what, error.next_step) from error
    return Sharing(Exchange(store, remote), config.lease_s, note)
