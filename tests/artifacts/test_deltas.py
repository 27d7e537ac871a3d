"""Objects kept as deltas: what goes in comes out, and a damaged one is as good as gone."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import deltas, digest
from artifacts.errors import StoreError
from artifacts.exchange import Exchange
from artifacts.record import Blob, Record
from artifacts.remote import Remote
from artifacts.store import Hit, Miss, Store
from artifacts.verify import repair, verify
from tests.artifacts.test_store import add, flip
from tests.artifacts.test_verify import believe

WEIGHTS = os.urandom(100_000)
PLAN = b"header" + WEIGHTS[50_000:] + b"kernels" * 1000 + WEIGHTS[:50_000]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "störe")


def packed(store: Store) -> tuple[Record, Blob]:
    """A record whose plan is kept as a delta, and the weights beside which it is."""
    base = add(store, WEIGHTS)
    store.put(Record({"stage": "split"}, {"weights": base}))
    record = Record({"stage": "refit", "inputs": {"weights": base.digest}}, {"plan": add(store, PLAN)})
    store.put(record)
    plan = record.outputs["plan"]
    with store.scratch() as aside:
        deltas.pack(plan, [base], store.place, aside / "delta")
        store.move_in(aside / "delta", store.delta(plan))
    store.delete(store.place(plan))
    return record, base


def blob_of(directory: Path, content: bytes) -> Blob:
    blob = Blob(digest.of_bytes(content), len(content))
    (directory / blob.digest).write_bytes(content)
    return blob


CONTENT = st.one_of(
    st.binary(max_size=500),
    st.builds(lambda part, times: part * times, st.binary(max_size=50), st.integers(0, 500)),
    st.builds(lambda seed, size: Random(seed).randbytes(size), st.integers(0, 9), st.integers(0, 20_000)),  # noqa: S311
)


@settings(max_examples=60, deadline=None)
@given(bases=st.lists(CONTENT.filter(lambda base: len(base) >= 8), min_size=1, max_size=3), data=st.data())
def test_whatever_is_packed_beside_whatever_comes_out_as_it_went_in(
    bases: list[bytes], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory = tmp_path_factory.mktemp("blobs")
    everything = b"".join(bases)
    cut = data.draw(st.integers(0, len(everything)))
    content = data.draw(st.one_of(CONTENT, st.just(everything[cut:] + everything[:cut])))
    blob, beside = blob_of(directory, content), [blob_of(directory, base) for base in bases]
    size = deltas.pack(blob, beside, lambda each: directory / each.digest, directory / "delta")
    assert size == (directory / "delta").stat().st_size
    assert deltas.unpacked(directory / "delta", lambda each: directory / each.digest) == content
    known = deltas.check(directory / "delta")
    assert (known.bytes, known.bases) == (len(content), tuple(beside))


def test_a_delta_takes_what_the_object_has_beyond_its_base(store: Store) -> None:
    record, _ = packed(store)
    assert store.disk_bytes(record.outputs["plan"]) < len(PLAN) // 100


def test_a_packed_answer_is_there_and_its_path_leads_to_a_whole_file(store: Store) -> None:
    record, _ = packed(store)
    plan = record.outputs["plan"]
    assert store.lookup(record.key) == Hit(record)
    assert not store.place(plan).exists()
    assert store.path(plan).read_bytes() == PLAN
    assert store.path(plan).stat().st_mode & 0o777 == 0o444
    assert store.lookup(record.key) == Hit(record)
    assert list((store.root / "tmp").iterdir()) == []


def test_a_healthy_store_with_deltas_is_found_healthy(store: Store) -> None:
    packed(store)
    report = verify(store)
    assert report.findings == []
    assert report.files == 2 + 1 + 1  # records, weights, delta


def test_what_was_packed_is_published_and_sent_whole(store: Store, tmp_path: Path) -> None:
    record, _ = packed(store)
    sent = Exchange(store, Remote(str(tmp_path / "remote"), 60))
    sent.send(record)
    other = Store(tmp_path / "other")
    assert Exchange(other, sent.remote).fetch(record.key, lambda holder: None) == record
    assert other.place(record.outputs["plan"]).read_bytes() == PLAN
    directory = store.publish("net", record.key, {"model.plan": record.outputs["plan"]})
    assert (directory / "model.plan").read_bytes() == PLAN


def test_what_the_remote_has_is_not_unpacked_to_be_sent(store: Store, tmp_path: Path) -> None:
    record, _ = packed(store)
    exchange = Exchange(store, Remote(str(tmp_path / "remote"), 60))
    exchange.send(record)
    store.delete(store.place(record.outputs["plan"]))
    exchange.send(record)
    assert not store.place(record.outputs["plan"]).exists()


def shorten(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size - 1)


def empty(path: Path) -> None:
    path.chmod(0o644)
    os.truncate(path, 0)


@pytest.mark.parametrize("damage", [flip, shorten, empty])
def test_a_damaged_delta_is_a_miss_told_by_verify_and_set_aside(damage: Callable[[Path], None], store: Store) -> None:
    record, _ = packed(store)
    delta = store.delta(record.outputs["plan"])
    damage(delta)
    found = store.lookup(record.key)
    assert isinstance(found, Miss)
    assert found.damaged == (delta,)
    (finding,) = verify(store).findings
    assert store.root / finding.path == delta
    assert finding.records == (record.key,)
    with pytest.raises(StoreError, match="damaged"):
        store.path(record.outputs["plan"])
    store.set_aside(delta)
    again = add(store, PLAN)  # as the next build does
    assert store.lookup(record.key) == Hit(record)
    assert store.path(again).read_bytes() == PLAN


def test_with_a_damaged_base_its_deltas_are_lost_and_set_aside_with_it(store: Store) -> None:
    record, base = packed(store)
    flip(store.place(base))
    found = store.lookup(record.key)
    assert isinstance(found, Miss)
    assert found.damaged == (store.place(base),)
    findings = verify(store).findings
    assert {store.root / each.path for each in findings} == {store.place(base), store.delta(record.outputs["plan"])}
    repair(store, findings)
    assert verify(store).findings == []
    assert store.record(record.key) is None


def test_without_its_base_a_delta_is_a_miss_until_the_base_is_made_again(store: Store) -> None:
    record, base = packed(store)
    store.delete(store.place(base))
    found = store.lookup(record.key)
    assert isinstance(found, Miss)
    assert base.digest in found.reason
    assert found.damaged == ()
    assert any("damaged or gone" in finding.what for finding in verify(store).findings)
    add(store, WEIGHTS)
    assert store.lookup(record.key) == Hit(record)


def test_a_base_that_can_be_written_costs_no_delta(store: Store) -> None:
    _, base = packed(store)
    store.place(base).chmod(0o644)
    (finding,) = verify(store).findings
    assert finding.cure == "chmod"


def test_a_delta_of_a_newer_format_is_a_miss_and_left_as_it_is(store: Store) -> None:
    record, _ = packed(store)
    delta = store.delta(record.outputs["plan"])
    line, frame = delta.read_bytes().split(b"\n", 1)
    body = json.loads(line)
    del body["seal"]
    body = {**body, "format": 99, "bases": "otherwise"}
    delta.chmod(0o644)
    delta.write_bytes(json.dumps({**body, "seal": digest.of_json(body)}).encode() + b"\n" + frame)
    found = store.lookup(record.key)
    assert isinstance(found, Miss)
    assert "newer trtforge" in found.reason
    assert found.damaged == ()
    report = verify(store)
    assert (report.findings, report.newer) == ([], [delta.relative_to(store.root)])


def test_damage_that_the_memo_cannot_see_does_not_come_out(store: Store) -> None:
    record, base = packed(store)
    store.place(base).chmod(0o644)
    store.place(base).write_bytes(b"x" + WEIGHTS[1:])
    believe(store, base)
    assert store.problem(record.outputs["plan"]) == ""
    with pytest.raises(StoreError, match="damaged"):
        store.path(record.outputs["plan"])
    assert not store.place(record.outputs["plan"]).exists()
