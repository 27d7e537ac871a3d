"""Digests: sha256, always whole, of canonical JSON and of files."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from artifacts.errors import StoreError

CHUNK_BYTES = 1 << 20
"""Large enough that sha256 (2 GB/s) and not the calls around it decides the speed."""


def canonical_json(value: object) -> bytes:
    """The one spelling of `value`: sorted keys, no spaces, UTF-8.

    Raises:
        StoreError: `value` holds what JSON cannot say exactly (an object, NaN, infinity, a key that is no text), so it
            cannot be hashed.
    """
    try:
        _require_text_keys(value)
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
        return text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise StoreError(f"cannot be hashed: {error}", "use plain strings, numbers, lists and mappings") from error


def _require_text_keys(value: object) -> None:
    # json writes the keys 1 and "1" alike.
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"the key {key!r} of a mapping is no text")
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return
    for inner in value:
        if isinstance(inner, (dict, list, tuple)):  # a call for each number and text would double the time
            _require_text_keys(inner)


def of_json(value: object) -> str:
    """The digest of `value` as canonical JSON, 64 hex digits."""
    return of_bytes(canonical_json(value))


def of_bytes(content: bytes) -> str:
    """The digest of `content`, 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def of_file(path: Path) -> str:
    """The digest of the content of the file at `path`, 64 hex digits.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_digest(text: str) -> bool:
    """Whether `text` is a whole digest: 64 lower-case hex digits."""
    return len(text) == 64 and all(character in "0123456789abcdef" for character in text)
