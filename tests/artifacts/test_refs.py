"""Refs: names for people, made of plain segments, each of which means one key."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts import digest
from artifacts.errors import StoreError
from artifacts.store import Store
from tests.artifacts.test_store import add


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "a störe")


KEY, OTHER = digest.of_bytes(b"key"), digest.of_bytes(b"other")


def test_a_ref_means_what_it_was_last_set_to(store: Store) -> None:
    name = "plans/digits/sm_89/rtx-1.7.1.116/int8@l4"
    store.set_ref(name, OTHER)
    store.set_ref(name, KEY)
    store.set_ref("published/digits", OTHER)
    assert Store(store.root).ref(name) == KEY
    assert store.refs("plans") == {name: KEY}
    assert store.refs("") == {name: KEY, "published/digits": OTHER}


BAD_NAMES = ["", "/proc/x", "..", "a/../../b", "a/..", ".a", "a//b", "a/", "a b", "a\nb", "a\n", "é", "-a", "a\0", "~"]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_name_that_is_no_plain_path_is_refused(name: str, store: Store) -> None:
    blob = add(store)
    for refused in (lambda: store.set_ref(name, KEY), lambda: store.publish(name, KEY, {"plan": blob})):
        with pytest.raises(StoreError, match="cannot be the name") as caught:
            refused()
        assert caught.value.next_step
        assert "\n" not in caught.value.what
    assert not (store.root / "refs").exists()
    assert not (store.root / "published").exists()


def test_a_damaged_ref_means_nothing(store: Store) -> None:
    store.set_ref("plans/a", KEY)
    (store.root / "refs" / "plans" / "a").write_bytes(b"\xff" + KEY.encode()[1:])
    assert store.ref("plans/a") is None
    assert store.refs("plans") == {}
    store.set_ref("plans/a", KEY)
    assert store.ref("plans/a") == KEY


@pytest.mark.parametrize("name", ["plans", "plans/a/b", "n" * 300])
def test_a_name_that_cannot_be_a_file_beside_the_others_is_a_store_error(name: str, store: Store) -> None:
    store.set_ref("plans/a", KEY)
    assert store.ref(name) is None
    with pytest.raises(StoreError):
        store.set_ref(name, KEY)
    assert store.refs("") == {"plans/a": KEY}
