"""The config of a run: as it was composed before where nothing it was made from has changed, else composed anew.

Composing takes Hydra 0.2 s, half of it to be imported. A composed config is kept in the store, under a digest of the
overrides, the directories, our own files and what is installed; with it stands what else it was made from: the user's
files by content, the places where a file would be taken instead, the variables that it read. All of it is looked at
before a kept config is used. What is too young to be sure of (git's rule for racy entries), what holds the time, and
what fails is never kept.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import conf
import stages
from artifacts import digest
from artifacts.store import Store
from conf import plain
from conf.groups import check_own_directory
from conf.schema import Config
from conf.trace import RACY_NS, Trace
from stages import installed

COMPOSERS = ("trtforge", "hydra-core", "omegaconf", "antlr4-python3-runtime", "PyYAML")
"""The distributions whose version can change what is composed."""

_ROOT = "store.root="
_KEPT = 1
"""Raised when what is kept has another form."""


class Configs:
    """The configs of one command; a sweep asks for many.

    Args:
        config_dirs: The user's own config directories.
    """

    def __init__(self, config_dirs: Sequence[Path]) -> None:
        self._config_dirs = tuple(config_dirs)
        self._stores: dict[Path, Store] = {}
        self._fresh: list[tuple[Store, str, Trace, Config]] = []
        self._checked = False

    def compose(self, overrides: Sequence[str]) -> Config:
        """The config of these overrides.

        Raises:
            ConfigError: Anything is wrong with it.
        """
        key, store = self._key(overrides), self.store(_probable_root(overrides))
        if key is None:
            return _compose(overrides, self._config_dirs, None)
        kept = self._kept(store, key)
        if kept is not None:
            self._check_own_directories()
            return kept
        trace = Trace()
        composed = _compose(overrides, self._config_dirs, trace)
        self._fresh.append((store, key, trace, composed))
        return composed

    def store(self, root: Path) -> Store:
        """The store at `root`, one for all that ask."""
        root = root.absolute()
        if root not in self._stores:
            self._stores[root] = Store(root)
        return self._stores[root]

    def keep(self) -> None:
        """Keeps what was composed, as far as it is settled; called when the store is there."""
        settled = bool(self._fresh) and _is_settled(self._code)
        for store, key, trace, composed in self._fresh if settled else ():
            text = plain.dumps(composed)
            if text is not None and trace.settled():
                noted = {"variables": trace.variables, "places": trace.places, "files": trace.files}
                store.memo.note(key, json.dumps([noted, text]))
        for store in {id(store): store for store, *_ in self._fresh}.values():
            store.memo.save()
        self._fresh.clear()

    @cached_property
    def _code(self) -> str:
        return _code()

    def _kept(self, store: Store, key: str) -> Config | None:
        note = store.memo.noted(key)
        if note is None:
            return None
        try:
            noted, text = json.loads(note)
            return plain.loads(text) if Trace(**noted).holds() else None
        except (ValueError, TypeError):  # of a form that is not ours
            return None

    def _key(self, overrides: Sequence[str]) -> str | None:
        """What a config is kept under; None where it is not: Hydra's own settings change what it does."""
        if any("hydra" in line.partition("=")[0] for line in overrides):
            return None
        asked = {
            "kept": _KEPT,
            "overrides": list(overrides),
            "config_dirs": [os.path.abspath(path) for path in self._config_dirs],  # noqa: PTH100 - no link is followed
            "directory": os.getcwd(),  # noqa: PTH109
            "code": self._code,
        }
        return digest.of_bytes(json.dumps({"config": asked}).encode())  # ASCII, whatever bytes a path is made of

    def _check_own_directories(self) -> None:
        if not self._checked:
            for path in self._config_dirs:
                check_own_directory(path)
            self._checked = True


def _compose(overrides: Sequence[str], config_dirs: Sequence[Path], trace: Trace | None) -> Config:
    from conf.compose import compose  # which imports Hydra

    return compose(overrides, config_dirs, trace)


def _probable_root(overrides: Sequence[str]) -> Path:
    """Where the store will be, most likely; a kept config that is not found there is composed."""
    given = [line.removeprefix(_ROOT).strip("'\"") for line in overrides if line.startswith(_ROOT)]
    return Path((given or [os.environ.get("TRTFORGE_STORE", "")])[-1] or ".trtforge")


def _code() -> str:
    """A digest of what decides besides the user: our own files by stat, and the versions of what composes."""
    return digest.of_json(
        [
            sys.version,
            {name: installed.version(name) for name in COMPOSERS},
            find_spec("hydra_plugins") is not None,  # one that is installed tomorrow may change what is composed
            [[f, *_stat(f)] for f in _own_files()],
        ]
    )


def _own_files() -> list[str]:
    found = []
    waiting = [os.path.dirname(str(package.__file__)) for package in (conf, stages)]  # noqa: PTH120
    while waiting:
        for entry in os.scandir(waiting.pop()):
            if entry.is_dir(follow_symlinks=False):
                waiting += [entry.path] if entry.name != "__pycache__" else []
            elif entry.name.endswith((".py", ".yaml")):
                found.append(entry.path)
    return sorted(found)


def _stat(path: str) -> list[int]:
    found = os.stat(path)  # noqa: PTH116
    return [found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _is_settled(code: str) -> bool:
    now_ns = time.time_ns()
    return code == _code() and all(now_ns - max(_stat(file)[-2:]) > RACY_NS for file in _own_files())
