"""Timing caches: what builders measured of tactics, kept beside the answers and part of none.

```
<root>/timing/<place>/<digest>     content, mode 0444, named by its sha256
```

A place (`gpu/<backend and version>/<GPU>/<driver>`, or `pinned/<key>`) holds a set. A build takes copies of all of it,
and puts back one file that holds what they held and what it measured itself; those that it was made from go then. Two
builds that take the same each put back one, and the next takes both: nothing is lost, whoever ends first, and no lock
is held while anybody builds. A remote holds the same files and needs no locks either. A build that fails puts nothing
back, and what is damaged is set aside: a build goes on without it.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from pathlib import Path

from artifacts import digest
from artifacts.store import Store

PINNED = "pinned"
"""The first part of the place of a plan's own cache; the second is the plan's key."""

_PLACE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+@-]*(/[A-Za-z0-9_][A-Za-z0-9._+@-]*)*")

Waiting = Callable[[str], None]


def directory(store: Store, place: str) -> Path:
    """Where the files of a place lie."""
    return store.root / "timing" / place


def take(store: Store, place: str, into: Path, waiting: Waiting, told: Callable[[str], None]) -> list[Path]:
    """Copies the caches of a place into the directory `into`; each keeps its name.

    Args:
        store: The store.
        place: The place.
        into: An empty directory.
        waiting: Called while another process holds the place, for the moment that it takes to copy or move a file; it
            may raise to give up.
        told: Told of each file that is damaged and was set aside.

    Raises:
        StoreError: The store cannot be written.
    """
    with _alone(store, place, waiting):
        return [copy for path in _files(directory(store, place)) if (copy := _taken(store, path, into, told))]


def keep(store: Store, place: str, cache: Path, merged: Iterable[str], waiting: Waiting) -> str:
    """Puts the file `cache`, which lies on the store's file system, into a place, instead of those it was made from.

    Args:
        store: The store.
        place: The place.
        cache: The file; it is moved.
        merged: Names of the files whose content it holds.
        waiting: As for `take`.

    Returns:
        Its name from now on, the digest of its content.

    Raises:
        OSError: The file cannot be read.
        StoreError: The store cannot be written.
    """
    name = digest.of_file(cache)
    with _alone(store, place, waiting):
        store.move_in(cache, directory(store, place) / name)
        for other in {*merged} - {name}:
            store.delete(directory(store, place) / other)
    return name


def names(store: Store, prefix: str = "") -> list[str]:
    """`<place>/<digest>` of all caches whose place is `prefix` or below it, sorted."""
    base = store.root / "timing"
    return [path.relative_to(base).as_posix() for path in _files(base / prefix)]


def copied(store: Store, name: str, into: Path) -> Path | None:
    """Copies the cache `<place>/<digest>` into the directory `into`; None where it is gone, or damaged."""
    source = store.root / "timing" / name
    with suppress(FileNotFoundError):  # a build has just merged it into another
        copy = Path(shutil.copyfile(source, into / source.name))
        return copy if digest.of_file(copy) == source.name else None
    return None


def is_name(text: str) -> bool:
    """Whether `text` is `<place>/<digest>`, and no path that leads elsewhere."""
    place, _, name = text.rpartition("/")
    return digest.is_digest(name) and bool(_PLACE.fullmatch(place))


def pinned_key(path: Path) -> str | None:
    """The key of the plan whose cache the file at `path` is; None for a GPU's."""
    return path.parent.name if path.parent.parent.name == PINNED else None


def _files(base: Path) -> list[Path]:
    return sorted(path for path in base.rglob("*") if path.is_file())


def _alone(store: Store, place: str, waiting: Waiting) -> AbstractContextManager[None]:
    # A digest, since a place is a path and may be longer than a file name.
    holder = f"process {os.getpid()} on {platform.node()}, which reads or writes a timing cache"
    return store.lock(f"timing-{digest.of_bytes(place.encode())}", holder, waiting)


def _taken(store: Store, path: Path, into: Path, told: Callable[[str], None]) -> Path | None:
    with suppress(FileNotFoundError):  # gc took it
        try:
            what = "its content has another digest" if digest.of_file(path) != path.name else ""
        except FileNotFoundError:
            raise
        except OSError as error:
            what = f"it cannot be read: {error.strerror}"
        if not what:
            return Path(shutil.copyfile(path, into / path.name))
        kept = store.set_aside(path).relative_to(store.root)
        told(f"{path.relative_to(store.root)} is damaged: {what}; it is set aside as {kept}, and not used")
    return None
