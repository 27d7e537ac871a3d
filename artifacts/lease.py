"""Leases in a remote: of many machines that need one key, one builds it, and the others know whom they wait for.

A lease is the file `leases/<key>/<token>` with the highest token. Whoever wants the key creates the next token, which
succeeds for one (`Remote.create`); only its creator ever writes it again, to show that it lives (*beats*) and that it
is done. No clocks are compared: a waiter takes a holder for dead when the file has not changed for `seconds` by the
waiter's own clock. The token is the fence: a holder that was away too long finds a higher one and keeps its hands off.

The last token of a key stays, released, so that no token is ever given twice.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace

from artifacts.errors import LostLeaseError, RemoteError
from artifacts.remote import Remote

POLL_SECONDS = 0.5
BEATS = 4
"""So often within the time after which it would be taken for dead does a holder say that it lives."""


@dataclass(frozen=True)
class Claim:
    """What stands in a lease's file.

    Attributes:
        holder: One line that says who holds it, for those who wait.
        home: The store that the holder works for: it has a lock of its own for each key.
        nonce: Tells two claims apart that say the same.
        beat: Grows while the holder lives.
        released: Whether the holder is done.
    """

    holder: str
    home: str
    nonce: str
    beat: int = 0
    released: bool = False

    def dumps(self) -> bytes:
        """The claim as JSON."""
        return json.dumps(asdict(self)).encode()


class Lease:
    """A lease that is held."""

    def __init__(self, remote: Remote, key: str, token: int, claim: Claim) -> None:
        self.token = token
        self._remote = remote
        self._key = key
        self._claim = claim
        self._over = threading.Event()
        self._writing = threading.Lock()

    def require(self) -> None:
        """Makes sure that nobody has taken over.

        Raises:
            LostLeaseError: Somebody has.
            RemoteError: The remote cannot be used.
        """
        newest = _newest(self._remote, self._key)
        if newest != self.token:
            raise LostLeaseError(
                f"the lease of {self._key} was taken over (token {newest}, not {self.token}): this process was not "
                "heard of for too long, and its result is kept here alone",
                "run the same build again: it takes what the other built",
            )

    def beat(self, seconds: float) -> None:
        """Shows that the holder lives, until `release`; a beat that the remote does not take is left out."""
        while not self._over.wait(seconds / BEATS):
            with suppress(RemoteError), self._writing:
                self._write(replace(self._claim, beat=self._claim.beat + 1))

    def release(self) -> None:
        """Lets others have it; where the remote cannot be used they find out by themselves."""
        self._over.set()
        with suppress(RemoteError), self._writing:
            if self._write(replace(self._claim, released=True)):
                for token in range(1, self.token):
                    self._remote.delete(_name(self._key, token))

    def _write(self, claim: Claim) -> bool:
        """Writes the claim, unless it was released or taken over: who took over deletes it, and it stays deleted."""
        if self._claim.released or _newest(self._remote, self._key) > self.token:
            return False
        self._remote.write(_name(self._key, self.token), claim.dumps())
        self._claim = claim
        return True


@contextmanager
def held(
    remote: Remote, key: str, holder: str, home: str, seconds: float, waiting: Callable[[str], None]
) -> Iterator[Lease]:
    """Holds the lease of `key`.

    Args:
        remote: Where.
        key: What for.
        holder: One line that says who holds it, for those who wait.
        home: The store that this is for. The caller holds the store's own lock of the key, so another claim for the
            same store is a dead process's and is not waited for.
        seconds: A holder that has not been heard of for so long is dead.
        waiting: Called with the holder's line, again and again while somebody else holds the lease; it may raise to
            give up.

    Raises:
        RemoteError: The remote cannot be used.
    """
    lease = _take(remote, key, Claim(holder, home, secrets.token_hex(8)), seconds, waiting)
    threading.Thread(target=lease.beat, args=(seconds,), daemon=True).start()
    try:
        yield lease
    finally:
        lease.release()


def _take(remote: Remote, key: str, own: Claim, seconds: float, waiting: Callable[[str], None]) -> Lease:
    last, since = None, time.monotonic()
    while True:
        newest = _newest(remote, key)
        claim = _claim(remote, key, newest)
        if claim != last:
            last, since = claim, time.monotonic()
        dead = claim is not None and (claim.home == own.home or time.monotonic() - since > seconds)
        if newest == 0 or (claim is not None and claim.released) or dead:
            if remote.create(_name(key, newest + 1), own.dumps()):
                return Lease(remote, key, newest + 1, own)
            continue
        waiting(claim.holder if claim else "")
        time.sleep(min(POLL_SECONDS, seconds / BEATS))


def _newest(remote: Remote, key: str) -> int:
    numbers = [name.rpartition("/")[2] for name in remote.names(f"leases/{key}")]
    return max((int(number) for number in numbers if number.isdecimal()), default=0)


def _claim(remote: Remote, key: str, token: int) -> Claim | None:
    """The claim of `token`; one that says nothing where nobody can read it."""
    content = remote.read(_name(key, token)) if token else None
    if content is None:
        return None
    try:
        return Claim(**json.loads(content))
    except (ValueError, TypeError):
        return Claim("", "", content.hex()[:64])


def _name(key: str, token: int) -> str:
    return f"leases/{key}/{token:08d}"
