"""Sees every record that is written into directories, whoever writes it: what was built twice shows here.

A record comes by a rename, and the kernel tells of each. Nothing of trtforge is asked or changed for it, and a process
that is killed a moment later was seen all the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import select
import struct
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MOVED_TO = 0x80
_OVERFLOW = 0x4000
_EVENT = struct.Struct("iIII")


@dataclass(frozen=True)
class Written:
    """A record that came to be in a directory.

    Attributes:
        directory: Which.
        key: The record's.
        stage: What it answers.
        content: A digest of the record: two builds of one key differ in when they ended.
    """

    directory: Path
    key: str
    stage: str
    content: str


class Witness:
    """Watches the directories `records` of stores, which exist, from now until `end`."""

    def __init__(self, directories: Sequence[Path]) -> None:
        self.seen: list[Written] = []
        self.lost = False
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = self._checked(self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK))
        self._watched = {self._watch(directory): directory for directory in directories}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Hears what there is to hear yet, and stops."""
        self._over.set()
        self._thread.join()
        os.close(self._inotify)

    def _watch(self, directory: Path) -> int:
        return self._checked(self._libc.inotify_add_watch(self._inotify, os.fsencode(directory), _MOVED_TO))

    def _checked(self, result: int) -> int:
        if result < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        return result

    def _listen(self) -> None:
        over = False
        while not over:
            over = self._over.is_set()  # looked at first: what came before `end` is heard
            if select.select([self._inotify], [], [], 0.0 if over else 0.2)[0]:
                self._hear(os.read(self._inotify, 1 << 16))
                over = False

    def _hear(self, events: bytes) -> None:
        at = 0
        while at < len(events):
            watch, mask, _, length = _EVENT.unpack_from(events, at)
            name = events[at + _EVENT.size : at + _EVENT.size + length].rstrip(b"\0")
            at += _EVENT.size + length
            if mask & _OVERFLOW:
                self.lost = True
            elif name.endswith(b".json"):
                self._note(self._watched[watch], os.fsdecode(name))

    def _note(self, directory: Path, name: str) -> None:
        with suppress(OSError, ValueError, KeyError):  # `lost` would be wrong: verify reads what is damaged
            content = (directory / name).read_bytes()
            stage = json.loads(content)["fields"]["stage"]
            digest = hashlib.sha256(content).hexdigest()
            self.seen.append(Written(directory, name[: -len(".json")], stage, digest))
