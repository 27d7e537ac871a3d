"""What was published under a name: every move is noted once, the way back is known, and damage is found."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts import digest, gc, publications
from artifacts.errors import StoreError
from artifacts.publications import History, Publication, history, let_pass, move, refusal, refuse
from artifacts.record import Record
from artifacts.store import Store
from artifacts.verify import repair, verify
from tests.artifacts.test_gc import DAY, age, keep

NAME = "digits/sm_89/rtx-1.7/int8"
A, B, C = (digest.of_bytes(name.encode()) for name in "abc")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def publish(store: Store, record: Record, **more: object) -> Path:
    at = more.pop("at", publications.now())
    return move(store, NAME, record.outputs, Publication(record.key, at=str(at), by="me@here", **more))  # type: ignore[arg-type]


def test_a_move_is_noted_and_the_name_means_it(store: Store) -> None:
    first, second = keep(store, "first"), keep(store, "second")
    directory = publish(store, first)
    assert directory.resolve().name == store.ref(f"published/{NAME}") == first.key
    publish(store, second)
    assert [each.key for each in history(store, NAME).moves] == [first.key, second.key]
    assert history(store, NAME).before == [first.key]
    assert not verify(store).findings


def test_the_same_key_again_is_no_move(store: Store) -> None:
    record = keep(store, "plan")
    for _ in range(2):
        publish(store, record)
    assert len(history(store, NAME).moves) == 1


def test_what_was_published_before_there_were_histories_can_be_gone_back_to(store: Store) -> None:
    old, new = keep(store, "old"), keep(store, "new")
    store.set_ref(f"published/{NAME}", old.key)
    publish(store, new)
    assert history(store, NAME).before == [old.key]


def test_a_move_that_was_cut_off_after_the_history_is_finished_by_the_next(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = keep(store, "old"), keep(store, "new")
    publish(store, old)
    with monkeypatch.context() as patched:
        patched.setattr(store, "publish", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            publish(store, new)
    assert store.ref(f"published/{NAME}") == old.key
    publish(store, new)
    assert store.ref(f"published/{NAME}") == new.key
    assert [each.key for each in history(store, NAME).moves] == [old.key, new.key]


def moves(*keys: str) -> History:
    """`+` publishes, `-` goes back."""
    return History(tuple(Publication(key[1:], "publish" if key[0] == "+" else "rollback") for key in keys))


def test_going_back_withdraws_what_lies_between() -> None:
    found = moves("+a", "+b", "+c", "-a")
    assert (found.current, found.before, found.withdrawn) == ("a", [], {"b", "c"})


def test_what_was_withdrawn_is_not_any_more_once_it_is_published_again() -> None:
    found = moves("+a", "+b", "-a", "+b")
    assert (found.current, found.before, found.withdrawn) == ("b", ["a"], set())


def test_going_back_twice_goes_back_two() -> None:
    assert moves("+a", "+b", "+c", "-b").before == ["a"]


@given(st.lists(st.tuples(st.sampled_from("+-"), st.sampled_from("abcd")), max_size=12))
def test_the_current_key_is_never_one_to_go_back_to_nor_withdrawn(steps: list[tuple[str, str]]) -> None:
    found = moves(*(how + key for how, key in steps))
    ever = {key for _, key in steps}
    assert found.current not in {*found.before, *found.withdrawn, *found.superseded} or found.current is None
    assert {found.current, *found.before, *found.withdrawn} - {None} == ever
    assert len(set(found.before)) == len(found.before)


def test_only_so_many_moves_are_remembered(store: Store) -> None:
    records = [keep(store, f"n{number}") for number in range(4)]
    for number in range(publications.KEPT + 10):
        publish(store, records[number % 4])
    assert len(history(store, NAME).moves) == publications.KEPT


def test_a_refused_plan_is_marked_with_what_the_gates_have_against_it_until_one_passes(store: Store) -> None:
    assert refusal(store, NAME) is None
    refuse(store, NAME, A, ["cosine 0.5 < 0.9"])
    first = refusal(store, NAME)
    assert first is not None
    assert (first.key, first.gates) == (A, ("cosine 0.5 < 0.9",))
    refuse(store, NAME, A, ["cosine 0.5 < 0.9"])
    assert refusal(store, NAME) == first
    refuse(store, NAME, B, ["plan_bytes 2 > 1"])
    assert getattr(refusal(store, NAME), "key", None) == B
    let_pass(store, NAME)
    let_pass(store, NAME)
    assert refusal(store, NAME) is None


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"format": 1, "moves": [], "seal": "0"}'])
def test_a_damaged_history_is_named_and_repair_sets_it_aside(content: bytes, store: Store) -> None:
    publish(store, keep(store, "plan"))
    path = store.root / publications.HISTORY / f"{NAME}.json"
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="is damaged"):
        history(store, NAME)
    (finding,) = verify(store).findings
    assert (store.root / finding.path) == path
    repair(store, [finding])
    assert not verify(store).findings
    assert history(store, NAME).moves == ()


def test_a_history_of_a_newer_format_is_no_damage_and_is_not_read(store: Store) -> None:
    publish(store, keep(store, "plan"))
    path = store.root / publications.HISTORY / f"{NAME}.json"
    body = {"format": 2, "moves": "otherwise"}
    path.chmod(0o644)
    path.write_text(json.dumps({**body, "seal": digest.of_json(body)}))
    assert not verify(store).findings
    with pytest.raises(StoreError, match="newer trtforge"):
        history(store, NAME)


def test_gc_keeps_what_can_be_rolled_back_to_and_the_rest_for_its_age_from_when_it_was_superseded(
    store: Store,
) -> None:
    source = keep(store, "source", days=400)
    oldest, older, last, now = (keep(store, name, source, days=300) for name in ("oldest", "older", "last", "now"))
    days = ("2020-01-01T00:00:00+00:00", "2020-01-02T00:00:00+00:00", publications.now(), publications.now())
    for record, day in zip((oldest, older, last, now), days, strict=True):
        publish(store, record, at=day)
        for path in (store.root / "published" / ".by-key").iterdir():
            age(path, 300)
    gone = gc.collect(store, 30 * DAY, None, "gc", lambda holder: None)
    # `older` was made 300 days ago, and was the published one until a moment ago.
    assert {waste.name for waste in gone.waste if waste.kind == "record"} == {oldest.key}
    assert store.record(older.key) and store.record(last.key) and store.record(source.key)
    gone = gc.collect(store, -1, None, "gc", lambda holder: None)
    assert older.key in {waste.name for waste in gone.waste}
    assert store.record(last.key)
    assert not verify(store).findings


def test_gc_believes_no_damaged_history(store: Store) -> None:
    publish(store, keep(store, "plan"))
    path = store.root / publications.HISTORY / f"{NAME}.json"
    path.chmod(0o644)
    path.write_text("{}")
    with pytest.raises(StoreError, match="is damaged"):
        gc.collect(store, 0, None, "gc", lambda holder: None)
