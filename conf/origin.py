"""Where a value of a config came from: an override, the environment, a file and why it was chosen, or a default."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from io import StringIO
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from conf import auto_skip
from conf.compose import raw
from conf.groups import GROUPS, PACKAGE

DEFAULT = "default"

_KEY = re.compile(r"[+~]*([^=@]+)")
_PACKAGE = re.compile(r"^# @package (\S+)", re.MULTILINE)
_VARIABLE = re.compile(r"\$\{oc\.env:([A-Za-z_][A-Za-z0-9_]*)")
_REFERENCE = re.compile(r"\$\{([A-Za-z_][\w.]*)\}")


def causing(overrides: Sequence[str], path: str) -> str | None:
    """The last of `overrides` that decides `path`, or a part of it, or the whole that it is part of."""
    found = [line for line in overrides if (match := _KEY.match(line)) and _related(match[1], path)]
    return found[-1] if found else None


class Origins:
    """Where the values of one run's config came from; nothing is read before the first question.

    Args:
        overrides: Hydra's.
        config_dirs: The user's own config directories.
    """

    def __init__(self, overrides: Sequence[str], config_dirs: Sequence[Path]) -> None:
        self.overrides = tuple(overrides)
        self._config_dirs = tuple(config_dirs)
        self._known: dict[str, str] = {}

    def of(self, path: str) -> str:
        """Where the value of `path` came from.

        Returns:
            `override flow=fp16`, `variable TRTFORGE_STORE`, `conf/flow/fp16.yaml (override flow=fp16)`, or `default`.

        Raises:
            ConfigError: The config cannot be composed.
        """
        if path not in self._known:
            self._known[path] = self._find(path)
        return self._known[path]

    def _find(self, path: str) -> str:
        if line := causing(self.overrides, path):
            return f"override {line}"
        written = _at(self._composed, path)
        if isinstance(written, str):
            if (variable := _VARIABLE.search(written)) and variable[1] in os.environ:
                return f"variable {variable[1]}"
            if reference := _REFERENCE.fullmatch(written):
                return self.of(reference[1])
        return next((told for group, name in self._files if (told := self._in_file(group, name, path))), DEFAULT)

    def _in_file(self, group: str, name: str, path: str) -> str | None:
        for directory, spelled in self._directories:
            file = directory / group / f"{name}.yaml"
            if file.is_file():
                if not _says(file, group, path):
                    return None
                chosen = causing(self.overrides, group) if group else None
                told = "/".join(part for part in (spelled, group, f"{name}.yaml") if part)
                return told + (f" (override {chosen})" if chosen else "")
        return None

    @cached_property
    def _composed(self) -> Mapping[str, Any]:
        composed = _plain(raw(self.overrides, self._config_dirs))
        steps = composed.get("steps") or {}
        if auto_skip.is_asked(steps):
            flow = str(composed["hydra"]["runtime"]["choices"].get("flow"))
            return {**composed, "steps": auto_skip.rewired(steps, composed["gates"], flow)}
        return composed

    @property
    def _files(self) -> Iterator[tuple[str, str]]:
        """(group, name) of every file that takes part; what comes first wins."""
        choices = self._composed["hydra"]["runtime"]["choices"]
        for group in GROUPS:
            if group != "targets" and choices.get(group):
                yield group, str(choices[group]).removesuffix(".yaml")
        yield from (("targets", name) for name in self._composed["targets"])
        yield "", "config"

    @property
    def _directories(self) -> Iterator[tuple[Path, str]]:
        """Each directory of configs, and how a person is told of it: the shipped one is `conf`."""
        yield Path(__file__).parent, PACKAGE
        for entry in self._composed["hydra"]["searchpath"] or ():
            path = str(entry).removeprefix("file://")
            yield Path(path), path


def _related(key: str, path: str) -> bool:
    return key == path or path.startswith((f"{key}.", f"{key}[")) or key.startswith(f"{path}.")


def _says(file: Path, group: str, path: str) -> bool:
    package, content = _read(file.read_text(encoding="utf-8"))
    prefix = {None: group, "_global_": ""}.get(package, package)
    if prefix and not path.startswith(f"{prefix}."):
        return False
    return _at(content, path[len(prefix) + 1 :] if prefix else path) is not None


@lru_cache(maxsize=64)
def _read(text: str) -> tuple[str | None, Mapping[str, Any]]:
    """The package and the content of a config file. Every value of every model asks the same few, 10 ms each."""
    match = _PACKAGE.search(text)
    loaded = OmegaConf.load(StringIO(text))
    return match[1] if match else None, _plain(loaded) if isinstance(loaded, DictConfig) else {}


def _plain(node: DictConfig) -> Mapping[str, Any]:
    content = OmegaConf.to_container(node, resolve=False)
    return content if isinstance(content, dict) else {}  # type: ignore[return-value]


def _at(content: Mapping[str, Any], path: str) -> Any:
    found: Any = content
    for part in path.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return found
