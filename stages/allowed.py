"""What the values of a stage's config may be.

A config that is wrong cannot be made: `__post_init__` calls these, so that it is refused while a run is composed, and
no stage asks again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any

from stages.sizes import SIZES, size_bytes


class NotAllowedError(ValueError):
    """A field of a config has a value that it may not have.

    Args:
        key: The field.
        got: Its value.
        allowed: What it may be, in words.
    """

    def __init__(self, key: str, got: object, allowed: str) -> None:
        super().__init__(f"{key}: got {got!r}; allowed: {allowed}")
        self.key = key
        self.got = got
        self.allowed = allowed


def require(holds: bool, key: str, got: object, allowed: str) -> None:
    """Refuses `got` for the field `key` unless `holds`.

    Raises:
        NotAllowedError: It does not.
    """
    if not holds:
        raise NotAllowedError(key, got, allowed)


def require_at_least(config: Any, least: int, *keys: str) -> None:
    """Holds these fields of `config` to `least` and more; a field whose default is None may be None.

    Raises:
        NotAllowedError: One is less, or NaN.
    """
    for key in keys:
        _require_or_null(config, key, lambda value: value >= least, f"{least} and more")


def require_between(config: Any, least: int, most: int, *keys: str) -> None:
    """Holds these fields of `config` to `least` … `most`; a field whose default is None may be None.

    Raises:
        NotAllowedError: One lies outside.
    """
    for key in keys:
        _require_or_null(config, key, lambda value: least <= value <= most, f"{least} to {most}")


def require_word(config: Any, key: str, words: Sequence[str]) -> None:
    """Holds this field of `config` to one of `words`; a field whose default is None may be None.

    Raises:
        NotAllowedError: It is another word.
    """
    _require_or_null(config, key, lambda value: value in words, ", ".join(words))


def require_size(config: Any, *keys: str) -> None:
    """Holds these fields of `config` to an amount of bytes, such as `8GiB`; one whose default is None may be None.

    Raises:
        NotAllowedError: One is no amount.
    """
    for key in keys:
        _require_or_null(config, key, lambda value: size_bytes(value) is not None, f"{SIZES}, such as 8GiB")


def _require_or_null(config: Any, key: str, holds: Callable[[Any], bool], allowed: str) -> None:
    value = getattr(config, key)
    if any(field.name == key and field.default is None for field in fields(config)):
        require(value is None or holds(value), key, value, f"{allowed}, or null")
    else:
        require(holds(value), key, value, allowed)
