"""The groups of configs and the directories they lie in; nothing here imports Hydra."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from conf.errors import ConfigError

PACKAGE = "conf"
GROUPS = ("model", "flow", "targets", "backend", "store")


def package_directory(name: str) -> str:
    """The directory of an installed package, which is not imported.

    Raises:
        ConfigError: No package of that name is installed.
    """
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError(f"${{package:{name}}}: no package of that name is installed")
    return str(spec.submodule_search_locations[0])


def check_own_directory(path: Path) -> None:
    """Holds a directory of the user's own configs to be there, and to hide nothing that trtforge ships.

    Raises:
        ConfigError: It is not there, or has a file of a shipped name.
    """
    if not path.is_dir():
        raise ConfigError(f"{path}: no such config directory", "give an existing one: --config-dir DIR")
    shipped = Path(package_directory(PACKAGE))
    for group in GROUPS:
        for own in sorted(path / group / name for name in _yaml(path / group) & _yaml(shipped / group)):
            raise ConfigError(
                f"{own}: trtforge ships a {group} of this name, which would be taken instead",
                f"rename the file, and choose it with {group}=NEW_NAME",
            )


def _yaml(directory: Path) -> set[str]:
    try:
        return {name for name in os.listdir(directory) if name.endswith(".yaml")}  # noqa: PTH208 - a catalog has many
    except OSError:
        return set()
