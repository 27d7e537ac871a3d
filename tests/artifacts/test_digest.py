"""Digests: one spelling of every value, and no value without one."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import digest
from artifacts.errors import StoreError

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4), max_leaves=12
)


def spelled(value: Any) -> Any:
    """`value` with the type of everything in it: Python says that 1, 1.0 and True are equal; a key must not."""
    if isinstance(value, dict):
        return {key: spelled(inner) for key, inner in value.items()}
    return [spelled(inner) for inner in value] if isinstance(value, list) else (type(value).__name__, repr(value))


def turned(value: Any) -> Any:
    """`value` with the keys of every mapping in the opposite order."""
    if isinstance(value, dict):
        return {key: turned(value[key]) for key in reversed(value)}
    return [turned(inner) for inner in value] if isinstance(value, list) else value


@given(VALUES)
def test_the_order_of_keys_never_matters(value: Any) -> None:
    assert digest.of_json(turned(value)) == digest.of_json(value)


@given(VALUES, VALUES)
def test_different_values_have_different_digests(one: Any, other: Any) -> None:
    assert (digest.of_json(one) == digest.of_json(other)) == (spelled(one) == spelled(other))


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, 1.0), (1, True), (0, None), ("1", 1), ([], {}), ([1, [2]], [1, 2]), ("é", "e\u0301"), ({"a": ""}, {})],
)
def test_values_that_look_alike_differ(one: object, other: object) -> None:
    assert digest.of_json(one) != digest.of_json(other)


@given(VALUES)
def test_canonical_json_is_json_and_says_the_value(value: Any) -> None:
    assert spelled(json.loads(digest.canonical_json(value))) == spelled(value)


def deep() -> object:
    value: object = 0
    for _ in range(200_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        {"a": [float("inf")]},
        object(),
        b"bytes",
        {1, 2},
        Path("a"),
        {"a": [{1: "a number"}]},
        {"a": {None: 1}},
        {("a", "b"): 1},
        "\ud800",
        {"\udcff": 1},
        deep(),
    ],
    ids=[
        "nan",
        "infinity",
        "object",
        "bytes",
        "set",
        "path",
        "number-key",
        "null-key",
        "tuple-key",
        "surrogate",
        "surrogate-key",
        "deep",
    ],
)
def test_what_json_cannot_say_exactly_is_refused(value: object) -> None:
    with pytest.raises(StoreError, match="cannot be hashed") as caught:
        digest.of_json(value)
    assert "\n" not in caught.value.what
    assert caught.value.next_step


@pytest.mark.parametrize("size", [0, 1, digest.CHUNK_BYTES - 1, digest.CHUNK_BYTES, 2 * digest.CHUNK_BYTES + 1])
def test_the_digest_of_a_file_is_its_sha256(size: int, tmp_path: Path) -> None:
    content = bytes(range(256)) * (size // 256 + 1)
    (tmp_path / "file").write_bytes(content[:size])
    assert digest.of_file(tmp_path / "file") == hashlib.sha256(content[:size]).hexdigest()


def test_a_file_that_is_not_there_has_no_digest(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digest.of_file(tmp_path / "gone")


def test_only_64_lower_case_hex_digits_are_a_digest() -> None:
    whole = digest.of_bytes(b"")
    assert digest.is_digest(whole)
    for text in ("", whole[:8], whole[:-1], whole + "0", whole.upper(), whole[:-1] + "g", whole[:-1] + "\u0663"):
        assert not digest.is_digest(text)
