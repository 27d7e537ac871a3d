"""Published directories: exactly the files, replaced all at once, mended when damaged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from artifacts import digest
from artifacts.errors import StoreError
from artifacts.record import Blob
from artifacts.store import Store
from tests.artifacts.test_verify import believe

NAME = "digits/sm_89/int8"
KEY, OTHER = digest.of_bytes(b"key"), digest.of_bytes(b"other")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "a store")


def blobs(store: Store, **content: str) -> Mapping[str, Blob]:
    added = {}
    for name, text in content.items():
        with store.scratch() as directory:
            (directory / name).write_text(text)
            added[name] = store.add(directory / name)
    return added


def holds(directory: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in directory.iterdir()}


def test_a_published_directory_holds_exactly_the_files(store: Store) -> None:
    directory = store.publish(NAME, KEY, blobs(store, plan="p1", manifest="m1"))
    assert directory == store.root / "published" / NAME
    assert holds(directory) == {"plan": "p1", "manifest": "m1"}


def test_the_name_moves_to_another_key_and_back(store: Store) -> None:
    first, second = blobs(store, plan="p1", manifest="m1"), blobs(store, plan="p2")
    for key, files, want in (
        (KEY, first, {"plan": "p1", "manifest": "m1"}),
        (OTHER, second, {"plan": "p2"}),
        (KEY, first, {"plan": "p1", "manifest": "m1"}),
    ):
        assert holds(store.publish(NAME, key, files)) == want


def test_a_store_that_is_moved_keeps_what_it_published(store: Store) -> None:
    store.publish(NAME, KEY, blobs(store, plan="p1"))
    moved = store.root.rename(store.root.with_name("moved"))
    assert holds(moved / "published" / NAME) == {"plan": "p1"}


def rot(directory: Path) -> None:
    (directory / "plan").write_text("p?")


def lose(directory: Path) -> None:
    (directory / "plan").unlink()


def litter(directory: Path) -> None:
    (directory / "core").write_text("of no use")


def nest(directory: Path) -> None:
    (directory / "plan").unlink()
    (directory / "plan").mkdir()


def flatten(directory: Path) -> None:
    kept = directory.resolve()
    (kept / "plan").unlink()
    kept.rmdir()
    kept.write_text("a file")


@pytest.mark.parametrize("damage", [rot, lose, litter, nest, flatten])
def test_publishing_again_mends_the_directory(damage: Callable[[Path], None], store: Store) -> None:
    files = blobs(store, plan="p1")
    directory = store.publish(NAME, KEY, files)
    damage(directory)
    assert holds(store.publish(NAME, KEY, files)) == {"plan": "p1"}


def test_publishing_again_mends_a_link_that_points_elsewhere(store: Store, tmp_path: Path) -> None:
    files = blobs(store, plan="p1")
    directory = store.publish(NAME, KEY, files)
    directory.unlink()
    directory.symlink_to(tmp_path)
    assert holds(store.publish(NAME, KEY, files)) == {"plan": "p1"}


def test_a_damaged_object_is_not_published(store: Store) -> None:
    store.publish(NAME, KEY, blobs(store, plan="p1"))
    files = blobs(store, plan="p2")
    store.path(files["plan"]).chmod(0o644)
    store.path(files["plan"]).write_text("p?")
    with pytest.raises(StoreError, match="damaged") as caught:
        store.publish(NAME, OTHER, files)
    assert "run `trtforge build` again" in caught.value.next_step
    assert holds(store.root / "published" / NAME) == {"plan": "p1"}


def test_damage_that_the_memo_cannot_see_is_not_published(store: Store) -> None:
    files = blobs(store, plan="p2")
    store.path(files["plan"]).chmod(0o644)
    store.path(files["plan"]).write_text("p?")
    believe(store, files["plan"])
    with pytest.raises(StoreError, match="damaged, though its size and times are as they were"):
        store.publish(NAME, KEY, files)
    assert not (store.root / "published" / NAME).exists()


def test_a_directory_of_the_users_own_is_not_overwritten(store: Store) -> None:
    own = store.root / "published" / NAME
    own.mkdir(parents=True)
    (own / "file").write_text("mine")
    with pytest.raises(StoreError):
        store.publish(NAME, KEY, blobs(store, plan="p1"))
    assert holds(own) == {"file": "mine"}


def test_a_reader_sees_the_old_or_the_new_and_never_nothing(store: Store) -> None:
    versions = [(digest.of_bytes(text.encode()), blobs(store, plan=text, copy=text)) for text in ("old", "new")]
    directory = store.publish(NAME, *versions[0])
    over = threading.Event()

    def publish() -> None:
        for number in range(200):
            store.publish(NAME, *versions[number % 2])
        over.set()

    publisher = threading.Thread(target=publish)
    publisher.start()
    seen = set()
    while not over.is_set():
        now = directory.resolve()
        seen.add(tuple(sorted(holds(now).items())))
    publisher.join()
    assert seen <= {(("copy", text), ("plan", text)) for text in ("old", "new")}
    assert len(seen) == 2


def test_many_who_publish_the_same_at_once_all_succeed(tmp_path: Path) -> None:
    for turn in range(20):
        store = Store(tmp_path / str(turn))
        blob = blobs(store, plan="plan")["plan"]
        together = threading.Barrier(8)

        def publish(store: Store = store, blob: Blob = blob, together: threading.Barrier = together) -> bytes:
            own = Store(store.root)
            together.wait()
            return (own.publish("net", "0" * 64, {"model.plan": blob}) / "model.plan").read_bytes()

        with ThreadPoolExecutor(8) as pool:
            assert [future.result() for future in [pool.submit(publish) for _ in range(8)]] == [b"plan"] * 8
