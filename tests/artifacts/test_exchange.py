"""Records and objects go to a remote and come from it whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts.errors import DamagedRemoteError, RemoteError
from artifacts.exchange import Exchange
from artifacts.record import Record
from artifacts.remote import Remote
from artifacts.store import Hit, Store


class Machine:
    """A store of its own, and what it shares."""

    def __init__(self, root: Path, url: str) -> None:
        self.store = Store(root)
        self.remote = Remote(url, 60)
        self.exchange = Exchange(self.store, self.remote)

    def build(self, contents: dict[str, bytes], question: str = "q", **provenance: str) -> Record:
        with self.store.scratch() as directory:
            blobs = {}
            for name, content in [*contents.items(), ("the log", b"log")]:
                (directory / name).write_bytes(content)
                blobs[name] = self.store.add(directory / name)
        outputs = {name: blobs[name] for name in contents}
        record = Record({"stage": question}, outputs, provenance=provenance, log=blobs["the log"])
        self.store.put(record)
        return record

    def fetch(self, key: str) -> Record | None:
        return self.exchange.fetch(key, lambda holder: None)

    def content(self, record: Record, name: str) -> bytes:
        return self.store.path(record.outputs[name]).read_bytes()


@pytest.fixture
def machine(tmp_path: Path, url: str) -> Callable[[str], Machine]:
    """Machines that share one remote, by name."""
    return lambda name: Machine(tmp_path / name, url)


def object_of(record: Record, name: str) -> str:
    digest = record.outputs[name].digest
    return f"objects/{digest[:2]}/{digest[2:]}"


def test_what_one_sends_another_fetches(machine: Callable[[str], Machine]) -> None:
    one, two = machine("one"), machine("two")
    sent = one.build({"a": b"a" * 100_000, "b": b"b", "empty": b""})
    assert two.fetch(sent.key) is None
    assert one.exchange.send(sent) == sent
    assert two.exchange.recorded() == {sent.key}
    assert two.fetch(sent.key) == sent
    assert isinstance(two.store.lookup(sent.key), Hit)
    assert two.content(sent, "a") == b"a" * 100_000
    assert sent.log
    assert two.store.path(sent.log).read_bytes() == b"log"
    assert not list((two.store.root / "tmp").iterdir())


def flipped(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (flipped, "with the digest"),
        (lambda content: content[:-1], "9 bytes with the digest"),
        (lambda content: b"", "0 bytes with the digest"),
        (None, "it is gone"),
    ],
    ids=["flipped", "truncated", "empty", "gone"],
)
def test_a_damaged_object_of_the_remote_is_not_taken_and_is_replaced_by_whoever_builds_it(
    machine: Callable[[str], Machine], damage: Callable[[bytes], bytes] | None, told: str
) -> None:
    one, two = machine("one"), machine("two")
    sent = one.exchange.send(one.build({"a": b"0123456789", "b": b"fine"}))
    name = object_of(sent, "a")
    one.remote.delete(name) if damage is None else one.remote.write(name, damage(b"0123456789"))
    with pytest.raises(DamagedRemoteError, match=told) as caught:
        two.fetch(sent.key)
    assert name in caught.value.what
    assert not two.store.record_path(sent.key).exists()
    assert not two.store.path(sent.outputs["a"]).exists()
    theirs = two.build({"a": b"another plan", "b": b"fine"})
    assert two.exchange.send(theirs) == theirs
    assert machine("three").fetch(sent.key) == theirs


def test_the_same_bytes_built_again_mend_a_damaged_object(machine: Callable[[str], Machine]) -> None:
    one, two = machine("one"), machine("two")
    sent = one.exchange.send(one.build({"a": b"0123456789"}))
    one.remote.write(object_of(sent, "a"), b"9876543210")  # of the right size
    with pytest.raises(DamagedRemoteError):
        two.fetch(sent.key)
    two.exchange.send(two.build({"a": b"0123456789"}))
    assert machine("three").fetch(sent.key) is not None


def test_a_lost_log_costs_the_log_alone(machine: Callable[[str], Machine]) -> None:
    one, two = machine("one"), machine("two")
    sent = one.exchange.send(one.build({"a": b"a"}))
    assert sent.log
    one.remote.delete(f"objects/{sent.log.digest[:2]}/{sent.log.digest[2:]}")
    fetched = two.fetch(sent.key)
    assert fetched is not None
    assert fetched.log is None


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b'{"format": 1, "seal": "no"}'])
def test_a_damaged_record_of_the_remote_is_no_answer_and_is_replaced(
    machine: Callable[[str], Machine], content: bytes
) -> None:
    one, two = machine("one"), machine("two")
    sent = one.exchange.send(one.build({"a": b"a"}))
    one.remote.write(f"records/{sent.key}.json", content)
    with pytest.raises(DamagedRemoteError, match=sent.key):
        two.fetch(sent.key)
    two.exchange.send(two.build({"a": b"a"}))
    assert machine("three").fetch(sent.key) is not None


def test_a_record_that_answers_another_question_is_no_answer(machine: Callable[[str], Machine]) -> None:
    one = machine("one")
    first, second = one.build({"a": b"a"}, "first"), one.build({"a": b"b"}, "second")
    one.exchange.send(first)
    one.remote.write(f"records/{second.key}.json", first.dumps().encode())
    with pytest.raises(DamagedRemoteError, match="it answers"):
        machine("two").fetch(second.key)


def test_a_record_of_a_newer_format_is_left_as_it_is(machine: Callable[[str], Machine]) -> None:
    one = machine("one")
    record = one.build({"a": b"a"})
    newer = record.dumps().replace('"format": 1', '"format": 99').encode()
    one.remote.write(f"records/{record.key}.json", newer)
    assert machine("two").fetch(record.key) is None
    assert one.exchange.send(record) == record
    assert one.remote.read(f"records/{record.key}.json") == newer


def test_who_is_later_with_another_result_takes_over_the_first(machine: Callable[[str], Machine]) -> None:
    one, two = machine("one"), machine("two")
    first, second = one.build({"a": b"first plan"}), two.build({"a": b"second plan"})
    one.exchange.send(first)
    assert two.exchange.send(second) == first
    found = two.store.lookup(first.key)
    assert isinstance(found, Hit)
    assert two.content(found.record, "a") == b"first plan"


def test_who_has_lost_its_turn_sends_no_record(machine: Callable[[str], Machine]) -> None:
    one = machine("one")

    def lost() -> None:
        raise RemoteError("lost")

    record = one.build({"a": b"a"})
    with pytest.raises(RemoteError, match="lost"):
        one.exchange.send(record, lost)
    assert one.exchange.recorded() == set()


def test_an_upload_that_was_cut_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    one = Machine(tmp_path / "one", f"file://{tmp_path}/share")
    record = one.build({"a": b"a" * 1000, "b": b"b" * 1000})
    done, half = (tmp_path / "share" / object_of(record, name) for name in ("a", "b"))
    one.remote.upload({object_of(record, "a"): one.store.path(record.outputs["a"])})
    half.parent.mkdir(parents=True, exist_ok=True)
    half.write_bytes(b"b" * 10)  # as a remote might hold it that shows halves
    before = done.stat()
    one.exchange.send(record)
    assert os.path.samestat(before, done.stat())
    assert half.stat().st_size == 1000


def test_a_name_is_not_moved_back_by_who_has_not_heard_of_the_later_record(machine: Callable[[str], Machine]) -> None:
    one, two = machine("one"), machine("two")
    old = one.build({"a": b"a"}, "old", finished="2026-01-01T00:00:00+00:00")
    new = two.build({"a": b"b"}, "new", finished="2026-01-02T00:00:00+00:00")
    for each, record in ((one, old), (two, new), (one, old)):
        each.exchange.send(record)
        each.exchange.send_refs({"plans/net": record.key})
    assert one.remote.read("refs/plans/net") == f"{new.key}\n".encode()


def test_names_are_taken_over_where_they_mean_nothing_here(machine: Callable[[str], Machine]) -> None:
    one, two = machine("one"), machine("two")
    ours, theirs = one.build({"a": b"a"}, "ours"), two.build({"a": b"b"}, "theirs")
    one.exchange.send(ours)
    one.exchange.send_refs({"plans/net": ours.key, "plans/known": ours.key, "plans/elsewhere": theirs.key})
    two.store.set_ref("plans/known", theirs.key)
    assert two.exchange.fetch_refs() == ["plans/elsewhere"]  # of the others the record is not here
    two.fetch(ours.key)
    assert two.exchange.fetch_refs() == ["plans/net"]
    assert two.store.refs("plans") == {
        "plans/elsewhere": theirs.key,
        "plans/known": theirs.key,
        "plans/net": ours.key,
    }
