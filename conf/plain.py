"""A composed config as JSON and back, with the types of everything in it, so that it can be kept."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any

from conf.schema import Config

_CLASS, _VALUE = "class", "value"


def dumps(config: Config) -> str | None:
    """`config` as JSON; None where JSON cannot say all of it exactly."""
    try:
        text = json.dumps(_plain(config))  # ASCII, whatever bytes a path is made of
        return text if repr(loads(text)) == repr(config) else None
    except (TypeError, ValueError):
        return None


def loads(text: str) -> Config:
    """Makes the config that `dumps` wrote; its dataclasses hold their values to what is allowed, as ever.

    Raises:
        ValueError: It is none.
    """
    try:
        made = _typed(json.loads(text))
    except (AttributeError, ImportError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a config: {error!r}") from error
    if not isinstance(made, Config):
        raise ValueError("not a config")
    return made


def _plain(value: Any) -> Any:
    # A mapping of the config's own and the note of a class would look alike, so both are noted.
    if is_dataclass(value):
        content: Any = {each.name: _plain(getattr(value, each.name)) for each in fields(value)}
    elif isinstance(value, Enum):
        content = value.value
    elif isinstance(value, dict):
        return {_VALUE: {key: _plain(inner) for key, inner in value.items()}}
    elif isinstance(value, list):
        return [_plain(inner) for inner in value]
    else:
        return value  # json refuses what it does not know
    return {_CLASS: f"{type(value).__module__}:{type(value).__name__}", _VALUE: content}


def _typed(value: Any) -> Any:
    if isinstance(value, list):
        return [_typed(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    content = value[_VALUE]
    if _CLASS not in value:
        return {key: _typed(inner) for key, inner in content.items()}
    made = _class(value[_CLASS])
    return (
        made(**{key: _typed(inner) for key, inner in content.items()})
        if isinstance(content, Mapping)
        else made(content)
    )


@cache
def _class(name: str) -> Any:
    module, _, own = name.partition(":")
    if module != "conf.schema" and not module.startswith("stages."):
        raise ValueError(f"{module} has no part in a config")
    found = getattr(importlib.import_module(module), own)
    if not isinstance(found, type) or not (is_dataclass(found) or issubclass(found, Enum)):
        raise ValueError(f"{name} is no class of a config")
    return found
