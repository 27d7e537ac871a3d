"""Packing: what nothing reaches becomes deltas beside what it was made from; what is needed stays whole."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from artifacts import gc, packing, publications
from artifacts.errors import StoreError
from artifacts.record import Blob, Record
from artifacts.store import Hit, Store
from artifacts.verify import verify
from tests.artifacts.processes import running, said
from tests.artifacts.test_gc import CLAIM, DAY, age
from tests.artifacts.test_store import add, flip

SIZE = 200_000


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@dataclass(frozen=True)
class Version:
    """What one training leaves in the store: the ONNX file, the weights out of it, a plan for each of two targets."""

    surgery: Record
    split: Record
    refits: tuple[Record, Record]
    publish: Record

    @property
    def records(self) -> tuple[Record, ...]:
        return (self.surgery, self.split, *self.refits, self.publish)

    @property
    def plans(self) -> list[Blob]:
        return [refit.outputs["plan"] for refit in self.refits]


def answer(store: Store, stage: str, inputs: dict[str, str], **outputs: bytes) -> Record:
    about = {"step": stage, "model": "net", "flow": "refit"}
    added = {name: add(store, content) for name, content in outputs.items()}
    record = Record({"stage": stage, "inputs": inputs}, added, provenance=about)
    store.put(record)
    return record


def version(store: Store, structure: bytes = os.urandom(70_000)) -> Version:
    """Of each version the weights are all others, and of no version the bytes of a plan lie as in the ONNX file."""
    weights, mark = os.urandom(SIZE), os.urandom(8).hex()
    model = {"onnx": b"onnx" + structure + weights}
    surgery = answer(store, "surgery", {"onnx": mark}, **model)
    split = answer(store, "split", {"onnx": surgery.outputs["onnx"].digest}, weights=weights, structure=b"graph")
    built = answer(store, "build", {"onnx": split.outputs["structure"].digest}, plan=structure + b"\0" * SIZE)
    inputs = {"plan": built.outputs["plan"].digest, "weights": split.outputs["weights"].digest}
    one, two = (
        answer(store, f"refit {n}", inputs, plan=structure + weights[n * 1000 :] + weights[: n * 1000]) for n in (1, 2)
    )
    plan = one.outputs["plan"]
    publish = answer(store, "publish", {"plan": plan.digest}, plan=store.path(plan).read_bytes())
    return Version(surgery, split, (one, two), publish)


def pack(store: Store, telling: Callable[[packing.Packable], None] = lambda each: None) -> list[packing.Packable]:
    tried = packing.pack(store, -1, 30 * DAY, "gc", lambda holder: None, telling)
    assert not verify(store).findings
    return tried


def whole(store: Store, *blobs: Blob) -> list[bool]:
    return [store.place(blob).exists() for blob in blobs]


def test_superseded_plans_lie_beside_their_own_weights_and_the_new_ones_stay_whole(store: Store) -> None:
    old, new = version(store), version(store)
    for number, refit in enumerate(new.refits):
        store.set_ref(f"plans/net/{number}", refit.key)
    before = gc.look(store, 30 * DAY).bytes_before
    tried = pack(store)
    assert {each.blob for each in tried} == {*old.plans, old.surgery.outputs["onnx"]}
    assert all(old.split.outputs["weights"] in each.bases for each in tried)
    assert whole(store, *old.plans, *new.plans) == [False, False, True, True]
    assert all(each.disk_bytes is not None and each.disk_bytes < 0.4 * SIZE for each in tried)
    saved = sum(each.blob.bytes - (each.disk_bytes or 0) for each in tried)
    assert gc.look(store, 30 * DAY).bytes_before == before - saved  # what a budget counts
    assert packing.saving(store).bytes - packing.saving(store).disk_bytes == saved


def test_all_that_was_packed_comes_out_again(store: Store) -> None:
    old = version(store)
    contents = {blob: store.path(blob).read_bytes() for record in old.records for blob in record.outputs.values()}
    assert pack(store)
    assert {blob: store.path(blob).read_bytes() for blob in contents} == contents
    assert [store.lookup(record.key) for record in old.records] == [Hit(record) for record in old.records]


def test_a_chain_of_files_is_packed_so_that_no_delta_lies_beside_another(store: Store) -> None:
    content = os.urandom(SIZE)
    first = answer(store, "export", {"onnx": "user's"}, onnx=content)
    second = answer(store, "surgery", {"onnx": first.outputs["onnx"].digest}, onnx=content + b"2")
    third = answer(store, "cast", {"onnx": second.outputs["onnx"].digest}, onnx=content + b"3")
    plan = answer(store, "build", {"onnx": third.outputs["onnx"].digest}, plan=content + b"4")
    pack(store)
    blobs = [blob for record in (first, second, third, plan) for blob in record.outputs.values()]
    assert whole(store, *blobs) == [True, False, True, False]
    assert pack(store) == []


def test_steps_that_undo_each_other_are_no_circle_without_end(store: Store) -> None:
    one, other = os.urandom(SIZE), os.urandom(SIZE)
    to = answer(store, "to", {"onnx": add(store, one).digest}, onnx=other)
    fro = answer(store, "fro", {"onnx": to.outputs["onnx"].digest}, onnx=one)
    assert [each.disk_bytes for each in pack(store)] == [None]
    assert whole(store, to.outputs["onnx"], fro.outputs["onnx"]) == [True, True]


def test_a_day_passes_before_anything_is_packed(store: Store) -> None:
    version(store)
    assert packing.pack(store, DAY, 30 * DAY, "gc", lambda holder: None) == []


def test_what_is_about_to_be_deleted_is_not_packed_first(store: Store) -> None:
    old = version(store)
    for record in old.records:
        age(store.record_path(record.key), 31)
    assert packing.packable(store, -1, 30 * DAY) == []
    assert packing.packable(store, -1, 32 * DAY)


def test_what_was_superseded_lately_is_packed_however_old_it_is(store: Store) -> None:
    first, second = version(store), version(store)
    for each in (first, second, version(store)):
        publish(store, each)
    for record in (*first.records, *second.records):
        age(store.record_path(record.key), 90)
    assert first.plans[0] in {each.blob for each in packing.packable(store, -1, 30 * DAY)}


def test_what_hardly_shrinks_is_left_and_not_tried_again(store: Store) -> None:
    source = answer(store, "surgery", {"onnx": "user's"}, onnx=os.urandom(SIZE))
    plan = answer(store, "build", {"onnx": source.outputs["onnx"].digest}, plan=os.urandom(SIZE)).outputs["plan"]
    (tried,) = pack(store)
    assert (tried.disk_bytes, tried.reason) == (None, "100% of it would be left")
    assert whole(store, plan) == [True]
    assert packing.packable(Store(store.root), -1, 30 * DAY) == []


def test_a_reader_that_has_the_whole_file_open_goes_on_reading(store: Store) -> None:
    old = version(store)
    plan = old.plans[0]
    content = store.path(plan).read_bytes()
    with store.path(plan).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        pack(store)
        assert not store.place(plan).exists()
        assert mapped[:] == file.read() == content


def test_what_a_running_build_claims_stays_whole(store: Store) -> None:
    old = version(store)
    with running(CLAIM, store.root, old.refits[0].key) as build:
        assert said(build) == "claimed"
        pack(store)
    assert whole(store, *old.plans) == [True, False]


def test_what_is_claimed_while_it_is_packed_stays_whole(store: Store) -> None:
    old = version(store)
    other = Store(store.root)
    tried = pack(store, lambda each: other.claim([refit.key for refit in old.refits]))
    assert {each.reason for each in tried} == {"it is needed again"}
    assert whole(store, *old.plans) == [True, True]
    other.release()


def test_a_damaged_object_is_told_and_the_others_are_packed(store: Store) -> None:
    old = version(store)
    flip(store.place(old.plans[0]))
    tried = {each.blob: each for each in packing.pack(store, -1, 30 * DAY, "gc", lambda holder: None)}
    assert tried[old.plans[0]].disk_bytes is None
    assert "damaged" in tried[old.plans[0]].reason
    assert whole(store, *old.plans) == [True, False]


def test_whoever_gives_up_in_the_middle_has_lost_nothing(store: Store) -> None:
    old = version(store)

    def stop(each: packing.Packable) -> None:
        if each.blob == old.plans[1]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(store, stop)
    assert whole(store, *old.plans) == [True, True]
    assert list((store.root / "tmp").iterdir()) == []


# --- gc ---------------------------------------------------------------------------------------------------------------


def collect(store: Store, days: float = 30.0, budget: int | None = None) -> gc.Collection:
    found = gc.collect(store, days * DAY, budget, "gc", lambda holder: None)
    assert not verify(store).findings
    return found


def test_a_base_stays_as_long_as_any_record_holds_its_delta(store: Store) -> None:
    old = version(store)
    pack(store)
    for record in (old.surgery, old.split):
        age(store.record_path(record.key), 40)
    collect(store)
    assert store.record(old.split.key) is None
    assert store.lookup(old.refits[1].key) == Hit(old.refits[1])
    for refit in (*old.refits, old.publish):
        age(store.record_path(refit.key), 40)
    collect(store)
    assert packing.saving(store).objects == 0
    assert not store.place(old.split.outputs["weights"]).exists()
    assert not any(store.delta(plan).exists() for plan in old.plans)


def test_a_budget_is_met_by_what_deltas_really_take(store: Store) -> None:
    version(store)
    pack(store)
    size = gc.look(store, 30 * DAY).bytes_before
    assert collect(store, budget=size).waste == ()
    assert collect(store, budget=size - 1).waste


def test_earlier_trainings_are_not_kept_for_the_structure_that_they_gave_too(store: Store) -> None:
    old, new = version(store), version(store)
    for number, refit in enumerate(new.refits):
        store.set_ref(f"plans/net/{number}", refit.key)
    collect(store, days=-1)
    assert [store.record(record.key) for record in (old.split, old.surgery)] == [None, None]
    assert [store.lookup(record.key) for record in (new.split, new.surgery)] == [Hit(new.split), Hit(new.surgery)]


def test_a_ref_keeps_the_delta_that_it_reaches_and_its_base(store: Store) -> None:
    old = version(store)
    pack(store)
    store.set_ref("plans/net", old.refits[0].key)  # as a pull may do
    collect(store, days=-1)
    assert store.lookup(old.refits[0].key) == Hit(old.refits[0])
    assert not store.delta(old.plans[1]).exists()


def test_the_delta_of_what_is_whole_again_goes(store: Store) -> None:
    old = version(store)
    pack(store)
    store.path(old.plans[0])
    (waste,) = collect(store).waste
    assert (waste.kind, waste.name) == ("delta", old.plans[0].digest)
    assert whole(store, *old.plans) == [True, False]


def test_a_delta_that_is_all_that_is_right_of_an_object_stays(store: Store) -> None:
    old = version(store)
    pack(store)
    flip(store.path(old.plans[0]))
    found = gc.collect(store, 30 * DAY, None, "gc", lambda holder: None)
    assert found.waste == ()
    store.set_aside(store.place(old.plans[0]))
    assert store.lookup(old.refits[0].key) == Hit(old.refits[0])


def test_a_delta_that_no_record_holds_goes_before_its_base(store: Store) -> None:
    old = version(store)
    pack(store)
    for record in old.records:
        store.delete(store.record_path(record.key))
    collect(store, days=-1)
    assert not list((store.root / "deltas").glob("*/*"))
    collect(store, days=-1)
    assert gc.look(store, 30 * DAY).bytes_before == 0


def test_what_was_published_before_is_packed_and_rolled_back_to(store: Store) -> None:
    first, second = version(store), version(store)
    publish(store, first)
    publish(store, second)
    pack(store)
    assert whole(store, first.plans[0], second.plans[0]) == [False, True]
    directory = publish(store, first, how="rollback")
    assert (directory / "model.plan").read_bytes() == store.path(first.plans[0]).read_bytes()
    pack(store)
    assert whole(store, first.plans[0], second.plans[0]) == [True, False]


def test_the_directory_of_what_was_published_long_before_is_a_copy_too_many(store: Store) -> None:
    versions = [version(store) for _ in range(3)]
    first, second, third = (publish(store, each).resolve() for each in versions)
    (waste,) = gc.collect(store, 30 * DAY, None, "gc", lambda holder: None, copies_after_s=-1).waste
    assert (waste.kind, waste.name) == ("published", versions[0].publish.key)
    assert [path.exists() for path in (first, second, third)] == [False, True, True]
    assert (publish(store, versions[0], how="rollback") / "model.plan").exists()
    assert not verify(store).findings


def test_the_directory_of_what_the_store_has_no_more_is_no_copy(store: Store) -> None:
    versions = [version(store) for _ in range(3)]
    first, *_ = (publish(store, each).resolve() for each in versions)
    store.delete(store.place(versions[0].plans[0]))
    assert gc.collect(store, 30 * DAY, None, "gc", lambda holder: None, copies_after_s=-1).waste == ()
    assert first.exists()


def publish(store: Store, each: Version, how: Literal["publish", "rollback"] = "publish") -> Path:
    publication = publications.Publication(each.publish.key, how, publications.now())
    return publications.move(store, "net", {"model.plan": each.publish.outputs["plan"]}, publication)


# --- several at once --------------------------------------------------------------------------------------------------

PACK = """
    import sys
    from pathlib import Path
    from artifacts import packing
    from artifacts.store import Store
    store = Store(Path(sys.argv[1]))
    print("ready", flush=True)
    for line in sys.stdin:
        packing.pack(store, -1, 10**7, "gc", lambda holder: None)
        print("packed", flush=True)
"""

READ = """
    import hashlib, sys, time
    from pathlib import Path
    from artifacts.record import Blob
    from artifacts.store import Store
    store, blob = Store(Path(sys.argv[1])), Blob(sys.argv[2], int(sys.argv[3]))
    print("ready", flush=True)
    ends, times = time.monotonic() + 1, 0
    while time.monotonic() < ends:
        try:
            content = store.path(blob).read_bytes()
        except FileNotFoundError:
            continue  # packed between the path and the reading: it claims nothing, as a build would
        assert hashlib.sha256(content).hexdigest() == blob.digest
        times += 1
    print(times, flush=True)
"""


def test_two_that_unpack_and_one_that_packs_never_see_wrong_bytes(store: Store) -> None:
    old = version(store)
    plan = old.plans[0]
    arguments = (store.root, plan.digest, plan.bytes)
    with running(PACK, store.root) as packer, running(READ, *arguments) as one, running(READ, *arguments) as two:
        assert [said(process) for process in (packer, one, two)] == ["ready"] * 3
        ends = time.monotonic() + 1
        assert packer.stdin
        while time.monotonic() < ends:
            packer.stdin.write("again\n")
            packer.stdin.flush()
            assert said(packer) == "packed"
        assert int(said(one)) > 0
        assert int(said(two)) > 0
    assert not verify(store).findings


def test_a_store_that_cannot_be_written_says_so(store: Store) -> None:
    version(store)
    (store.root / "tmp").rename(store.root / "away")
    (store.root / "tmp").write_text("in the way")
    with pytest.raises(StoreError, match="cannot be written"):
        packing.pack(store, -1, 30 * DAY, "gc", lambda holder: None)
