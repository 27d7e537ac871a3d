"""Lets a `conf.trace.Trace` see what Hydra and OmegaConf read: files, places where none is, and the environment."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import datetime
from importlib.util import find_spec
from typing import Any

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.hydra_config import HydraConfig
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf
from omegaconf.resolvers import oc

from conf.groups import PACKAGE, package_directory
from conf.trace import current


def watch() -> None:
    """Takes the place of Hydra's source of files, and of the resolvers whose answers are not in the config.

    Hydra sets its own resolvers anew each time it is initialized, so this is called after that.
    """
    SourcesRegistry.instance().types["file"] = Files
    for name, resolver in _RESOLVERS.items():
        OmegaConf.register_new_resolver(name, resolver, replace=True)
    if find_spec("hydra_plugins") is not None:
        _doubt("a plugin of Hydra is installed")


class Files(FileConfigSource):
    """Hydra's source of files, that says what it is asked."""

    def load_config(self, config_path: str) -> ConfigResult:
        """Reads a file."""
        if (trace := current()) is not None:
            trace.file(self._at(self._normalize_file_name(config_path)))
        return super().load_config(config_path)

    def is_group(self, config_path: str) -> bool:
        """Whether a directory is there."""
        if (trace := current()) is not None:
            trace.place(self._at(config_path))
        return super().is_group(config_path)

    def is_config(self, config_path: str) -> bool:
        """Whether a file is there."""
        if (trace := current()) is not None:
            trace.place(self._at(self._normalize_file_name(config_path)))
        return super().is_config(config_path)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """What is in a directory."""
        _doubt("a directory was listed")
        return super().list(config_path, results_filter)

    def _at(self, config_path: str) -> str:
        return os.path.join(self.path, config_path)  # noqa: PTH118 - as Hydra does


def _doubt(why: str) -> None:
    if (trace := current()) is not None:
        trace.unsure = trace.unsure or why


def _variable(key: str, *default: Any) -> str | None:
    if (trace := current()) is not None:
        trace.variable(key)
    return oc.env(key, *default)


def _package(name: str) -> str:
    if name != PACKAGE:
        _doubt("it holds the place of a package, which may be installed elsewhere tomorrow")
    return package_directory(name)


def _now(pattern: str, *, _parent_: Any) -> str:
    # Hydra's own `hydra.run.dir` and `hydra.sweep.dir` hold the time; no config of ours can refer to them.
    if not str(_parent_._get_full_key(None)).startswith("hydra."):
        _doubt("it holds the time")
    return datetime.now().strftime(pattern)


def _hydra(path: str) -> Any:
    _doubt("it holds Hydra's own state")
    return OmegaConf.select(HydraConfig.get(), path)  # type: ignore[arg-type]


def _deprecated(key: str, *message: str, _parent_: Any, _node_: Any) -> Any:
    _doubt("it warns")
    return oc.deprecated(key, *message, _parent_=_parent_, _node_=_node_)


_RESOLVERS: dict[str, Callable[..., Any]] = {
    "oc.env": _variable,
    "package": _package,
    "now": _now,
    "hydra": _hydra,
    "oc.deprecated": _deprecated,
}
