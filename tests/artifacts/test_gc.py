"""gc: what a ref reaches stays, the rest goes oldest first, and a running build never notices."""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path

import pytest

from artifacts import digest, gc
from artifacts.errors import StoreError
from artifacts.record import Record
from artifacts.store import Hit, Store
from artifacts.verify import verify
from tests.artifacts.processes import running, said
from tests.artifacts.test_store import add, flip

DAY = 86400.0


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def keep(store: Store, name: str, made_from: Record | None = None, days: float = 0.0, size: int = 1000) -> Record:
    """A record with one output, `size` bytes of its own, made from another's output some days ago."""
    inputs = {"file": made_from.outputs["file"].digest} if made_from else {"file": [digest.of_bytes(b"user's own")]}
    record = Record({"stage": name, "inputs": inputs}, {"file": add(store, name.encode().ljust(size))})
    store.put(record)
    age(store.record_path(record.key), days)
    return record


def age(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    os.utime(path, (then, then), follow_symlinks=False)


def collect(store: Store, days: float = 30, budget: int | None = None) -> list[str]:
    """What goes, by name of the stage or by kind."""
    found = gc.collect(store, days * DAY, budget, "gc", lambda holder: None)
    assert not verify(store).findings
    return [Path(waste.name).name if waste.kind != "record" else waste.name for waste in found.waste]


def test_what_a_ref_reaches_stays_with_all_it_was_made_from(store: Store) -> None:
    source = keep(store, "source", days=900)
    middle = keep(store, "middle", source, days=800)
    plan = keep(store, "plan", middle, days=700)
    other = keep(store, "other", middle, days=600)
    store.set_ref("plans/net", plan.key)
    assert collect(store) == [other.key]
    assert [store.lookup(record.key) for record in (source, middle, plan)] == [Hit(source), Hit(middle), Hit(plan)]
    assert store.record(other.key) is None
    assert not store.path(other.outputs["file"]).exists()


def test_of_two_that_made_the_same_both_stay_while_neither_is_needed_for_more(store: Store) -> None:
    blob = add(store, b"the same")
    makers = [Record({"stage": name}, {"file": blob}) for name in ("one", "other")]
    plan = Record({"stage": "build", "inputs": {"file": blob.digest}}, {"file": add(store, b"plan")})
    for record in (*makers, plan):
        store.put(record)
        age(store.record_path(record.key), 90)
    store.set_ref("plans/net", plan.key)
    assert collect(store) == []
    store.set_ref("plans/one", makers[0].key)
    assert collect(store) == [makers[1].key]


def test_what_only_hands_content_on_stays_and_is_not_taken_for_its_maker(store: Store) -> None:
    source = keep(store, "source", days=90)
    blob = source.outputs["file"]
    steps = [Record({"stage": name, "inputs": {"file": blob.digest}}, {"file": blob}) for name in ("one", "other")]
    for record in steps:
        store.put(record)
        age(store.record_path(record.key), 90)
        store.set_ref(f"plans/{record.fields['stage']}", record.key)
    assert collect(store) == []
    store.delete_ref("plans/one")
    assert collect(store) == []


def test_the_young_stay_and_so_does_what_is_from_the_future(store: Store) -> None:
    young, old, future = keep(store, "young", days=29), keep(store, "old", days=31), keep(store, "future", days=-400)
    assert collect(store) == [old.key]
    assert isinstance(store.lookup(young.key), Hit)
    assert isinstance(store.lookup(future.key), Hit)


def test_beyond_a_budget_the_oldest_go_first_and_only_until_it_is_met(store: Store) -> None:
    records = [keep(store, f"n{days}", days=days, size=10_000) for days in (3, 1, 2)]
    size = gc.look(store, 30 * DAY).bytes_before
    assert collect(store, budget=size) == []
    assert collect(store, budget=size - 1) == [records[0].key]
    assert collect(store, budget=size - 15_000) == [records[2].key]
    assert isinstance(store.lookup(records[1].key), Hit)


def test_a_budget_never_costs_what_a_ref_reaches(store: Store) -> None:
    record = keep(store, "plan", days=900)
    store.set_ref("plans/net", record.key)
    found = gc.collect(store, 0, 1, "gc", lambda holder: None)
    assert found.waste == ()
    assert found.bytes_after > 1


def test_content_that_a_kept_record_shares_stays(store: Store) -> None:
    blob = add(store, b"the same")
    one, other = Record({"stage": "1"}, {"file": blob}), Record({"stage": "2"}, {"file": blob}, log=add(store, b"log"))
    for record in (one, other):
        store.put(record)
        age(store.record_path(record.key), 90)
    store.set_ref("plans/one", one.key)
    assert collect(store) == [other.key]
    assert store.lookup(one.key) == Hit(one)


def test_a_log_that_a_kept_record_holds_stays(store: Store) -> None:
    record = Record({"stage": "1"}, {"file": add(store)}, log=add(store, b"log"))
    store.put(record)
    store.set_ref("plans/one", record.key)
    assert collect(store, days=0) == []
    assert record.log
    assert store.problem(record.log) == ""


def test_a_dry_run_says_the_same_and_deletes_nothing(store: Store) -> None:
    keep(store, "old", days=90)
    keep(store, "older", days=91)
    before = set(store.root.rglob("*"))
    would = gc.look(store, 30 * DAY)
    assert set(store.root.rglob("*")) == before | {store.root / "records.sqlite"}
    did = gc.collect(store, 30 * DAY, None, "gc", lambda holder: None)
    assert [w.name for w in did.waste] == [w.name for w in would.waste]
    assert (did.bytes_before, did.bytes_after) == (would.bytes_before, would.bytes_after)
    left = sum(path.stat().st_size for path in (store.root / "objects").rglob("*") if path.is_file())
    assert did.bytes_after == left == 0


def test_objects_that_no_record_holds_logs_and_what_was_set_aside_go_by_age(store: Store) -> None:
    blob = add(store, b"added, never recorded")
    (store.root / "logs").mkdir()
    log = store.root / "logs" / f"{'0' * 64}.log"
    log.write_text("failed")
    assert collect(store) == []
    assert len(collect(store, days=-1)) == 2
    assert not store.path(blob).exists()
    assert not log.exists()


def test_a_published_plan_stays_and_a_superseded_directory_goes(store: Store) -> None:
    old, new = keep(store, "old", days=90), keep(store, "new", days=80)
    for record in (old, new):
        link = store.publish("net", record.key, {"model.plan": record.outputs["file"]})
        store.set_ref("published/net", record.key)
    assert sorted(collect(store, days=-1)) == sorted([old.key, old.key])  # the record and the directory
    assert (link / "model.plan").read_bytes() == b"new".ljust(1000)
    (store.root / "refs/published/net").unlink()
    assert collect(store, days=-1) == []  # the link alone keeps it


def test_nothing_is_deleted_on_the_word_of_a_damaged_ref_or_record(store: Store) -> None:
    plan, old = keep(store, "plan", days=90), keep(store, "old", days=90)
    store.set_ref("plans/net", plan.key)
    flip(store.record_path(plan.key))
    with pytest.raises(StoreError, match="ref plans/net is damaged") as caught:
        collect(store)
    assert "verify --repair" in caught.value.next_step
    assert isinstance(store.lookup(old.key), Hit)


def test_what_a_newer_record_mentions_stays(store: Store) -> None:
    source, foreign, old = keep(store, "source", days=90), keep(store, "new", days=90), keep(store, "old", days=90)
    path = store.record_path(foreign.key)
    body = json.loads(path.read_text())
    new = {**body, "format": 99, "made": {"of": [source.outputs["file"].digest]}}
    path.write_text(json.dumps(new))
    store.set_ref("plans/new", foreign.key)
    assert collect(store) == [old.key]
    assert isinstance(store.lookup(source.key), Hit)
    assert store.path(foreign.outputs["file"]).exists()
    assert json.loads(path.read_text())["format"] == 99


# --- beside running builds --------------------------------------------------------------------------------------------

CLAIM = """
    import sys
    from pathlib import Path
    from artifacts.store import Hit, Store
    store = Store(Path(sys.argv[1]))
    store.claim([sys.argv[2]])
    assert isinstance(store.lookup(sys.argv[2]), Hit)
    print("claimed", flush=True)
    sys.stdin.readline()
    assert isinstance(store.lookup(sys.argv[2]), Hit)
    store.release()
    print("released", flush=True)
    sys.stdin.readline()
"""


def test_what_a_running_build_claims_stays_until_it_ends(store: Store) -> None:
    source = keep(store, "source", days=90)
    used = keep(store, "used", source, days=90)
    with running(CLAIM, store.root, used.key) as build:
        assert said(build) == "claimed"
        assert collect(store) == []
        assert build.stdin
        build.stdin.write("go on\n")
        build.stdin.flush()
        assert said(build) == "released"
        assert len(collect(store)) == 2


def test_a_build_killed_with_9_claims_nothing(store: Store) -> None:
    used = keep(store, "used", days=90)
    with running(CLAIM, store.root, used.key) as build:
        assert said(build) == "claimed"
        build.kill()
        build.wait()
        assert collect(store) == [used.key]
    assert not list((store.root / "claims").iterdir())


def test_a_claim_made_before_the_answer_is_there_counts(store: Store) -> None:
    record = Record({"stage": "build"}, {})
    store.claim([record.key])
    store.put(record)
    age(store.record_path(record.key), 90)
    assert collect(Store(store.root)) == []
    store.release()
    assert collect(Store(store.root)) == [record.key]


def test_gc_waits_while_objects_are_added_and_builds_wait_while_gc_runs(store: Store) -> None:
    keep(store, "x")
    heard: list[str] = []

    class GaveUpError(Exception):
        pass

    def give_up(holder: str) -> None:
        heard.append(holder)
        raise GaveUpError

    with store.keeping(), pytest.raises(GaveUpError):
        gc.collect(store, 0, None, "gc", give_up)
    with store.alone("gc in process 1", give_up):
        for wait in (lambda: store.claim(["0" * 64], give_up), lambda: store.keeping(give_up).__enter__()):
            with pytest.raises(GaveUpError):
                wait()
    assert heard[1:] == ["gc in process 1"] * 2


def test_builds_that_add_and_record_beside_gc_lose_nothing(store: Store) -> None:
    """Every record that a build has just written and still claims is whole, whatever gc does meanwhile."""
    done = threading.Event()

    def build(number: int) -> None:
        own = Store(store.root)
        for turn in range(40):
            record = Record({"stage": f"{number}-{turn}"}, {})
            own.claim([record.key])
            with own.keeping(), own.scratch() as directory:
                (directory / "file").write_text(f"{turn % 3}")  # all builds make the same few objects
                record = Record(record.fields, {"file": own.add(directory / "file")})
                own.put(record)
            assert own.lookup(record.key) == Hit(record)
        own.release()

    errors: list[BaseException] = []

    def noting(number: int) -> None:
        try:
            build(number)
        except BaseException as error:
            errors.append(error)

    builds = [threading.Thread(target=noting, args=(number,)) for number in range(4)]
    collector = threading.Thread(target=lambda: [collect(store, days=-1) for _ in iter(done.is_set, True)])
    for thread in (*builds, collector):
        thread.start()
    for thread in builds:
        thread.join()
    done.set()
    collector.join()
    assert errors == []


def test_a_gc_killed_at_any_moment_leaves_no_record_that_pretends(store: Store) -> None:
    record = keep(store, "old", days=90)
    waste = gc.look(store, DAY).waste[0]
    assert waste.paths[0] == store.record_path(record.key)  # it goes first
    waste.paths[0].unlink()
    assert not verify(store).findings
    assert len(collect(store, days=-1)) == 1  # the object that was left
