"""Locks that the kernel releases when their holder dies, and scratch directories that vanish with their owner."""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

POLL_SECONDS = 0.05


@contextmanager
def exclusive(path: Path, holder: str, waiting: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock file at `path`, against other processes and against other threads of this one.

    Args:
        path: The lock file, in a directory that exists. It stays, empty, when nobody holds it: unlinking it would let
            two hold it.
        holder: One line that says who holds it, for those who wait.
        waiting: Called with the holder's line, again and again while somebody else holds the lock; it may raise to
            give up.

    Raises:
        OSError: The lock file cannot be made.
    """
    with first_free([path], holder, waiting):
        yield


@contextmanager
def first_free(paths: Sequence[Path], holder: str, waiting: Callable[[str], None]) -> Iterator[Path]:
    """Holds one of several lock files, the first that is free, as `exclusive` holds its one; yields which.

    Args:
        paths: The lock files, at least one.
        holder: As for `exclusive`.
        waiting: Likewise; called with the holder of the first while all are held.

    Raises:
        OSError: A lock file cannot be made.
    """
    with ExitStack() as opened:
        handles = {path: _opened(opened, path) for path in paths}
        while (held := next(filter(lambda path: _try_lock(handles[path]), paths), None)) is None:
            waiting(os.pread(handles[paths[0]], 4096, 0).decode(errors="replace").strip())
            time.sleep(POLL_SECONDS)
        handle = handles[held]
        os.ftruncate(handle, 0)
        os.pwrite(handle, holder.encode(), 0)
        try:
            yield held
        finally:
            with suppress(OSError):  # what was done is done, whatever the disk says about a line for those who wait
                os.ftruncate(handle, 0)


def _opened(stack: ExitStack, path: Path) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    stack.callback(os.close, handle)  # releases the lock
    return handle


@contextmanager
def shared(path: Path, waiting: Callable[[str], None]) -> Iterator[None]:
    """Holds the lock file at `path` together with others who share it, while nobody holds it `exclusive`.

    Raises:
        OSError: The lock file cannot be made.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while not _try_lock(handle, fcntl.LOCK_SH):
            waiting(os.pread(handle, 4096, 0).decode(errors="replace").strip())
            time.sleep(POLL_SECONDS)
        yield
    finally:
        os.close(handle)


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock file at `path`, or nobody can say."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    try:
        return not _try_lock(handle)
    finally:
        os.close(handle)


@contextmanager
def scratch(parent: Path) -> Iterator[Path]:
    """A new directory below `parent`, removed at the end, or by the next caller if this process dies before.

    Raises:
        OSError: The directory cannot be made.
    """
    parent.mkdir(parents=True, exist_ok=True)
    sweep(parent)
    name = f"{os.getpid()}-{secrets.token_hex(4)}"
    guard, directory = parent / f"{name}.lock", parent / name
    handle = os.open(guard, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while not _try_lock(handle) or not guard.exists():  # a sweeper saw it in the instant before it was held
            os.close(handle)
            handle = os.open(guard, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        directory.mkdir()
        yield directory
    finally:
        _remove(directory, guard)
        os.close(handle)


def sweep(parent: Path) -> None:
    """Removes the scratch directories below `parent` whose owners are dead."""
    for guard in parent.glob("*.lock"):
        try:
            handle = os.open(guard, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            continue  # its owner has just ended
        try:
            if _try_lock(handle) and _is_still(guard, handle):
                _remove(guard.with_suffix(""), guard)
        finally:
            os.close(handle)


def _remove(directory: Path, guard: Path) -> None:
    # What the disk does not let go of now, the next sweep finds by its guard; it is no reason to fail.
    shutil.rmtree(directory, ignore_errors=True)
    if not directory.exists():
        with suppress(OSError):
            guard.unlink(missing_ok=True)


def _is_still(guard: Path, handle: int) -> bool:
    # Another sweeper may have removed the guard since it was opened, and its owner, who lives, have made it anew.
    try:
        return os.path.samestat(guard.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def hold(handle: int) -> None:
    """Locks an open file that nobody else has reason to lock, until it is closed or its holder dies."""
    fcntl.flock(handle, fcntl.LOCK_EX)


def _try_lock(handle: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
