"""The store: what is in it is whole, and what is not whole is a miss with its reason."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts.record import Blob, Record
from artifacts.store import Hit, Miss, Store

PLAN, REPORT = b"a plan " * 1000, b"{}"


@pytest.fixture(params=["store", "a störe with späces"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return Store(tmp_path / request.param)


def add(store: Store, content: bytes = PLAN) -> Blob:
    with store.scratch() as directory:
        (directory / "output").write_bytes(content)
        return store.add(directory / "output")


def answer(store: Store, stage: str = "build") -> Record:
    record = Record({"stage": stage, "note": "größe"}, {"plan": add(store), "report": add(store, REPORT)})
    store.put(record)
    return record


def missed(store: Store, key: str) -> Miss:
    found = store.lookup(key)
    assert isinstance(found, Miss)
    return found


# --- objects ----------------------------------------------------------------------------------------------------------


def test_an_object_is_read_only_and_lies_under_its_sha256(store: Store) -> None:
    blob = add(store)
    name = hashlib.sha256(PLAN).hexdigest()
    assert blob == Blob(name, len(PLAN))
    assert store.path(blob) == store.root / "objects" / name[:2] / name[2:]
    assert store.path(blob).read_bytes() == PLAN
    assert store.path(blob).stat().st_mode & 0o777 == 0o444
    assert store.problem(blob) == ""


def test_the_same_content_is_one_object(store: Store) -> None:
    assert add(store) == add(store) != add(store, b"")
    assert sum(path.is_file() for path in (store.root / "objects").rglob("*")) == 2
    assert list((store.root / "tmp").iterdir()) == []


def test_nothing_is_made_before_something_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    assert store.lookup("0" * 64) == Miss()
    assert store.ref("plans/x") is None
    assert store.refs("plans") == {}
    assert list(store.recorded()) == []
    store.memo.save()
    assert not store.root.exists()


# --- records and damage -----------------------------------------------------------------------------------------------


def test_what_was_put_is_found_again_by_its_question(store: Store) -> None:
    record = answer(store)
    assert Store(store.root).lookup(record.key) == Hit(record)
    assert list(store.recorded()) == [record.key]
    assert store.record(record.key) == record
    assert store.lookup("0" * 64) == Miss()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.chmod(0o644)
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-9])


@pytest.mark.parametrize(("damage", "said"), [(flip, "its content has another digest"), (truncate, "6991 bytes")])
def test_a_damaged_object_is_a_miss_is_kept_aside_and_mended(
    damage: Callable[[Path], None], said: str, store: Store
) -> None:
    record = answer(store)
    path = store.path(record.outputs["plan"])
    damage(path)
    wrong = path.read_bytes()
    miss = missed(store, record.key)
    assert f"object {record.outputs['plan'].digest} is damaged: {said}" in miss.reason
    assert miss.damaged == (path,)
    kept = store.set_aside(path)
    assert kept.parent == store.root / "damaged"
    assert kept.read_bytes() == wrong
    assert not path.exists()
    add(store)
    assert store.lookup(record.key) == Hit(record)


def test_adding_mends_an_object_that_is_still_in_its_place(store: Store) -> None:
    record = answer(store)
    flip(store.path(record.outputs["plan"]))
    add(store)
    assert store.lookup(record.key) == Hit(record)


def test_an_object_that_is_gone_is_a_miss_with_nothing_to_set_aside(store: Store) -> None:
    record = answer(store)
    for blob in record.outputs.values():
        store.path(blob).unlink()
    miss = missed(store, record.key)
    assert miss.damaged == ()
    for blob in record.outputs.values():
        assert f"object {blob.digest} is gone" in miss.reason


@pytest.mark.parametrize("damage", [flip, truncate, lambda path: path.write_bytes(b"\xff"), lambda p: p.write_text("")])
def test_a_damaged_record_is_a_miss_and_is_kept_aside(damage: Callable[[Path], None], store: Store) -> None:
    record = answer(store)
    path = store.root / "records" / f"{record.key}.json"
    damage(path)
    miss = missed(store, record.key)
    assert f"record {record.key} is damaged" in miss.reason
    assert miss.damaged == (path,)
    assert store.record(record.key) is None
    wrong = path.read_bytes()
    assert store.set_aside(path).read_bytes() == wrong
    assert store.lookup(record.key) == Miss()
    store.put(record)
    assert store.lookup(record.key) == Hit(record)


def test_a_record_under_another_key_is_a_miss(store: Store) -> None:
    record = answer(store)
    shutil.copy(store.root / "records" / f"{record.key}.json", store.root / "records" / f"{'0' * 64}.json")
    assert f"it answers {record.key}" in missed(store, "0" * 64).reason


def test_a_record_that_cannot_be_read_is_a_miss(store: Store) -> None:
    answer(store)
    (store.root / "records" / f"{'0' * 64}.json").mkdir()
    assert "cannot be read" in missed(store, "0" * 64).reason
    assert store.record("0" * 64) is None


def test_what_another_build_has_set_aside_or_mended_meanwhile_is_let_be(store: Store) -> None:
    record = answer(store)
    path = store.path(record.outputs["plan"])
    store.set_aside(path)  # its content is right by now: somebody has added it again
    assert store.lookup(record.key) == Hit(record)
    path.unlink()
    store.set_aside(path)  # somebody was faster
    assert not path.exists()
