"""The index of the records: finds the nearest, may be lost at any time, and is never believed."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import pytest

from artifacts import index
from artifacts.index import CANDIDATES, About, Index
from artifacts.record import Record
from artifacts.store import Store
from tests.artifacts.processes import running, said

BUILD = About("build", "l4", "digits", "int8")
FACTS = {"backend": "tensorrt_rtx", "compute_capability": "8.9", "gpu": None, "backend_version": "1.7"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "störe")


def question(level: int | None = None, **changes: Any) -> dict[str, Any]:
    config = {"level": level, "streams": changes.pop("streams", 0)}
    return {"stage": "build", "version": 1, "config": config, "inputs": {"onnx": "a"}, "facts": FACTS, **changes}


def answer(store: Store, asked: dict[str, Any], about: About = BUILD, minute: int = 0) -> str:
    made = {"step": about.step, "target": about.target, "model": about.model, "flow": about.flow}
    record = Record(asked, {}, provenance={**made, "finished": f"2026-01-01T00:{minute:02}:00+00:00"})
    store.put(record)
    return record.key


def nearest(store: Store, asked: dict[str, Any], about: About = BUILD) -> str | None:
    found = Index(store).nearest(asked, about)
    return found.record.key if found else None


def test_an_empty_store_has_nothing_near(store):
    assert nearest(store, question()) is None


def test_the_nearest_has_the_fewest_differing_fields(store):
    near = answer(store, question(1), minute=1)
    answer(store, question(2, streams=4), minute=2)
    assert nearest(store, question(3)) == near


def test_of_equally_near_ones_the_latest_is_taken(store):
    answer(store, question(1), minute=1)
    later = answer(store, question(2), minute=2)
    answer(store, question(4), minute=0)
    assert nearest(store, question(3)) == later


def test_the_same_flow_comes_before_another_flow_and_that_before_another_step_of_the_stage(store):
    other_model = answer(store, question(1), About("compile", "gpu", "resnet", "own"), minute=9)
    assert nearest(store, question(3)) == other_model
    other_flow = answer(store, question(1, streams=1), About("build", "l4", "digits", "fp16"), minute=1)
    assert nearest(store, question(3)) == other_flow
    same_flow = answer(store, question(1, streams=2, version=0), minute=0)
    assert nearest(store, question(3)) == same_flow


def test_another_capability_or_another_stage_is_not_near(store):
    answer(store, question(1, facts={**FACTS, "compute_capability": "8.6"}), About("build", "a10", "digits", "int8"))
    answer(store, question(1, stage="refit"), About("refit", "l4", "digits", "int8"))
    assert nearest(store, question(3)) is None


def test_a_record_is_not_near_itself_and_what_came_later_is_not_earlier(store):
    first, second = answer(store, question(1), minute=1), answer(store, question(2), minute=2)
    about = About("build", "l4", "digits", "int8", "2026-01-01T00:01:00+00:00")
    assert nearest(store, question(1), about) is None
    assert nearest(store, question(2)) == first
    assert nearest(store, question(1)) == second


def test_records_that_come_and_go_are_noticed(store):
    key = answer(store, question(1))
    assert nearest(store, question(3)) == key
    other = answer(store, question(2), minute=1)
    assert nearest(store, question(3)) == other
    (store.root / f"records/{other}.json").unlink()
    assert nearest(store, question(3)) == key


def test_the_index_may_be_deleted(store):
    key = answer(store, question(1))
    assert nearest(store, question(3)) == key
    (store.root / "records.sqlite").unlink()
    assert nearest(store, question(3)) == key


@pytest.mark.parametrize("size", [0, 7, 100, 5000, 20000])
def test_an_index_of_garbage_is_made_anew(store, size):
    key = answer(store, question(1))
    nearest(store, question(3))
    path = store.root / "records.sqlite"
    content = path.read_bytes()
    path.write_bytes(b"garbage" * (size // 7) + content[size:])
    assert nearest(store, question(3)) in (key, None)  # damage may look like an index in which nothing is listed
    path.unlink(missing_ok=True)
    assert nearest(store, question(3)) == key


def test_an_index_of_another_shape_is_made_anew(store):
    key = answer(store, question(1))
    with sqlite3.connect(store.root / "records.sqlite") as database:
        database.execute("CREATE TABLE records (key TEXT)")
    assert [nearest(store, question(3)) for _ in range(2)] == [key, key]


def test_an_index_that_lies_is_not_believed(store):
    key = answer(store, question(1))
    other = answer(store, question(1, stage="refit"), About("refit", "l4", "digits", "int8"))
    nearest(store, question(3))
    with sqlite3.connect(store.root / "records.sqlite") as database:
        database.execute("UPDATE records SET step = 'build', stage = 'build', finished = '2027' WHERE key = ?", [other])
        database.execute("INSERT INTO records SELECT ?, stage, step, target, model, flow, facts, finished, holds, "
                         "stat, seal FROM records WHERE key = ?", ["f" * 64, key])  # fmt: skip
    assert nearest(store, question(3)) == key


def kept(store: Store, content: bytes, asked: dict[str, Any]) -> Record:
    with store.scratch() as directory:
        (directory / "file").write_bytes(content)
        record = Record(asked, {"plan": store.add(directory / "file")}, provenance={"step": "build", "target": "l4"})
    store.put(record)
    return record


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if all files were old: they are remembered."""
    monkeypatch.setattr(index, "RACY_NS", -(10**18))


@pytest.mark.usefixtures("settled")
def test_a_summary_says_what_a_record_is_and_holds(store):
    record = kept(store, b"plan", question(1, inputs={"onnx": "a" * 64, "data": ["b" * 64, "c" * 64]}))
    for _ in range(2):  # read, and remembered
        found, odd = Index(store).summaries()
        assert (list(found), odd) == ([record.key], [])
        summary = found[record.key]
        assert (summary.stage, summary.about.step, summary.about.target) == ("build", "build", "l4")
        assert (set(summary.outputs), summary.log) == (set(record.outputs.values()), None)
        assert set(summary.inputs) == {"a" * 64, "b" * 64, "c" * 64}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("column", ["holds", "stat", "step", "seal", "key"])
def test_a_summary_that_lies_is_not_believed(store, column):
    first, second = kept(store, b"one", question(1)), kept(store, b"two", question(2))
    truth = Index(store).summaries()
    with sqlite3.connect(store.root / "records.sqlite") as database:
        other = database.execute(f"SELECT {column} FROM records WHERE key = ?", [second.key]).fetchone()[0]  # noqa: S608
        database.execute("DELETE FROM records WHERE key = ?", [second.key])
        database.execute(f"UPDATE records SET {column} = ? WHERE key = ?", [other, first.key])  # noqa: S608
    assert Index(store).summaries() == truth


@pytest.mark.usefixtures("settled")
def test_a_summary_of_a_record_that_was_replaced_damaged_or_deleted_is_not_believed(store):
    record = kept(store, b"one", question(1))
    Index(store).summaries()
    again = kept(store, b"another answer", question(1))
    assert again.key == record.key
    assert Index(store).summaries()[0][record.key].outputs == tuple(again.outputs.values())
    path = store.record_path(record.key)
    path.write_text(path.read_text().replace('"level": 1', '"level": 3'))
    assert Index(store).summaries() == ({}, [record.key])
    path.unlink()
    assert Index(store).summaries() == ({}, [])


def test_a_record_as_young_as_a_time_stamp_is_coarse_is_read_again(store):
    record = kept(store, b"one", question(1))
    Index(store).summaries()
    with sqlite3.connect(store.root / "records.sqlite") as database:
        assert database.execute("SELECT key, stat FROM records").fetchall() == [(record.key, "")]


def test_a_store_that_has_no_index_and_gets_none_is_summed_up_nonetheless(store):
    record = kept(store, b"one", question(1))
    (store.root / "records.sqlite").mkdir()
    assert list(Index(store).summaries()[0]) == [record.key]


def test_a_damaged_record_is_passed_over(store):
    key, damaged = answer(store, question(1)), answer(store, question(2), minute=1)
    nearest(store, question(3))
    path = store.root / f"records/{damaged}.json"
    path.write_text(path.read_text().replace('"level": 2', '"level": 3'))
    assert nearest(store, question(3)) == key


def test_an_index_that_another_process_holds_is_done_without(store):
    key = answer(store, question(1))
    holder = sqlite3.connect(store.root / "records.sqlite")
    holder.execute("BEGIN EXCLUSIVE")
    assert nearest(store, question(3)) == key
    holder.close()


ASK = """
    import sys
    from pathlib import Path
    from artifacts.index import About, Index
    from artifacts.store import Store
    question = {"stage": "build", "config": {}, "facts": {}, "asked by": sys.argv[2]}
    print("ready", flush=True)
    sys.stdin.readline()
    found = Index(Store(Path(sys.argv[1]))).nearest(question, About("build", "l4", "digits", "int8"))
    print(found.record.key, flush=True)
"""


def test_several_processes_make_the_index_at_once(store):
    for level in range(100):
        answer(store, question(level), minute=level % 60)
    with running(ASK, store.root, 1) as one, running(ASK, store.root, 2) as other:
        assert [said(process) for process in (one, other)] == ["ready", "ready"]
        for process in (one, other):
            print(file=process.stdin, flush=True)
        found = {said(process) for process in (one, other)}
    assert len(found) == 1
    assert store.record(found.pop()) is not None


def test_no_more_records_are_read_than_there_are_candidates(store, monkeypatch):
    for level in range(3 * CANDIDATES):
        answer(store, question(level), minute=level)
    read: list[str] = []
    record = store.record
    monkeypatch.setattr(store, "record", lambda key: read.append(key) or record(key))
    assert Index(store).nearest(question(-1), BUILD)
    assert len(read) == CANDIDATES


def test_an_index_is_not_read_again_while_nothing_has_changed(store, monkeypatch):
    answer(store, question(1))
    time.sleep(2.1)  # a directory that changed just now may change again within the same time stamp
    nearest(store, question(3))
    monkeypatch.setattr(Store, "recorded", lambda store: pytest.fail("the records were listed again"))
    assert nearest(store, question(3))


def test_an_index_that_an_older_trtforge_made_is_made_anew(store):
    key = answer(store, question())
    listed = (store.root / "records").stat().st_mtime_ns
    with sqlite3.connect(store.root / "records.sqlite") as database:
        database.execute(
            "CREATE TABLE records (key TEXT PRIMARY KEY, stage, step, target, model, flow, facts, finished)"
        )
        database.execute("CREATE TABLE listed (mtime_ns INTEGER)")
        database.execute(
            "INSERT INTO records VALUES (?, 'build', 'build', 'l4', 'digits', 'int8', '{}', '2026')", (key,)
        )
        database.execute("INSERT INTO listed VALUES (?)", (listed,))
    database.close()
    assert set(Index(store).summaries()[0]) == {key}
    assert set(Index(store).summaries()[0]) == {key}
    assert nearest(store, question(3)) == key
