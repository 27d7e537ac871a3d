"""The benchmark of scale: what was built twice, hangs, or makes others wait is seen, and nothing else is."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path

import onnx
import pytest

from artifacts.record import Record
from artifacts.store import Store
from benchmarks.scale import catalog, claims
from benchmarks.scale.__main__ import _gaps, _spread
from benchmarks.scale.chaos import Workers
from benchmarks.scale.usage import MARK, Usage
from benchmarks.scale.witness import Witness, Written

A, B = Path("a/records"), Path("b/records")


def record(stage: str, number: int, finished: str = "noon") -> Record:
    fields = {"stage": stage, "version": 1, "config": {"number": number}, "inputs": {}, "facts": {}, "tools": {}}
    return Record(fields, {}, provenance={"finished": finished})


def plans(*written: Written) -> list[Written]:
    """What `written` says of builds, and one publication for the one plan there is."""
    return [*written, Written(A, "p", "publish", "0")]


def failing(seen: list[Written], count: int = 1) -> list[str]:
    return [claim.what.partition(":")[0] for claim in claims.built_once(seen, count) if not claim.holds]


def until(holds, limit_s: float = 10.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_no_two_models_are_alike_and_each_is_valid():
    models = [catalog.model(number) for number in range(12)]
    for model in models:
        onnx.checker.check_model(model, full_check=True)
    shapes = {str([[*tensor.dims] for tensor in model.graph.initializer]) for model in models}
    assert len(shapes) == len({model.SerializeToString() for model in models}) == 12


def test_every_record_of_every_store_is_seen_and_one_that_is_written_anew_a_second_time(tmp_path):
    stores = [Store(tmp_path / name) for name in "ab"]
    directories = [store.root / "records" for store in stores]
    for directory in directories:
        directory.mkdir(parents=True)
    witness = Witness(directories)
    first = record("build", 1)
    for store in stores:  # fetched by the other
        store.put(first)
    stores[0].put(record("export", 2))
    stores[0].put(replace(first, provenance={"finished": "evening"}))
    witness.end()
    assert not witness.lost
    assert [(each.directory, each.stage) for each in witness.seen] == [
        (directories[0], "build"), (directories[1], "build"), (directories[0], "export"), (directories[0], "build"),
    ]  # fmt: skip
    assert {each.key for each in witness.seen if each.stage == "build"} == {first.key}
    assert failing(plans(*witness.seen[:3])) == []
    assert failing(plans(*witness.seen)) == ["build"]


@pytest.mark.parametrize(
    "seen",
    [
        plans(),
        plans(Written(A, "k", "build", "1"), Written(B, "k", "build", "2")),
        plans(Written(A, "k", "build", "1"), Written(A, "k", "build", "1")),
        plans(Written(A, "k", "build", "1"), Written(A, "other", "build", "1")),
    ],
    ids=["never", "by two machines", "twice by one", "one too many"],
)
def test_a_plan_that_was_not_built_exactly_once_breaks_the_promise(seen):
    assert failing(seen) == ["build"]


def test_what_machines_share_may_be_built_by_both_and_is_counted():
    seen = [Written(A, "k", "export", "1"), Written(B, "k", "export", "1"), Written(A, "l", "export", "1")]
    assert claims.shared_again(seen, "export") == (2, 0)
    assert claims.shared_again([*seen, Written(B, "l", "export", "2")], "export") == (2, 1)


def test_a_run_that_has_not_ended_hangs():
    done, dead = {"name": "a", "state_type": "CRASHED"}, {"name": "b", "state_type": "PENDING"}
    assert claims.ended([done], "flow run").holds
    found = claims.ended([done, dead], "flow run")
    assert not found.holds
    assert found.figure == "1 Crashed, 1 Pending: b"


def test_a_lock_that_somebody_holds_is_named(tmp_path):
    (tmp_path / "locks").mkdir()
    path = tmp_path / "locks/abcd"
    path.touch()
    assert claims.nothing_held([tmp_path]).holds
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        found = claims.nothing_held([tmp_path])
    assert not found.holds
    assert found.figure == "1 held: abcd"


def test_a_lease_of_a_dead_holder_makes_somebody_wait_unless_its_record_is_there(tmp_path):
    lease = tmp_path / "leases/abcd"
    lease.mkdir(parents=True)
    (lease / "00000001").write_text(json.dumps({"released": True}))
    assert claims.nobody_waits_for(tmp_path).figure == "0 not given back, 0 without a record"
    (lease / "00000002").write_text(json.dumps({"released": False}))
    assert not claims.nobody_waits_for(tmp_path).holds
    (tmp_path / "records").mkdir()
    (tmp_path / "records/abcd.json").touch()
    found = claims.nobody_waits_for(tmp_path)
    assert (found.holds, found.figure) == (True, "1 not given back, 0 without a record")


def test_processes_of_the_measurement_are_known_by_their_variable_and_their_seconds_counted():
    busy = "import time\nuntil = time.process_time() + 0.3\nwhile time.process_time() < until: pass\ntime.sleep(60)"
    with Usage("this") as usage:
        roles = {"this/server": {}, "this/q": {"PREFECT__FLOW_RUN_ID": "1"}, "other/server": {}}
        processes = [
            subprocess.Popen([sys.executable, "-c", busy], env={**os.environ, MARK: role, **own})
            for role, own in roles.items()
        ]
        try:
            until(lambda: {"server", "run"} <= {k for k, v in usage.seconds().items() if v >= 0.3}, 30)
            assert [each.pid for each in usage.living("server")] == [processes[0].pid]
            assert [(each.pid, each.role) for each in usage.living("run")] == [(processes[1].pid, "q")]
        finally:
            for process in processes:
                process.kill()
                process.wait()


def test_a_killed_worker_comes_back_after_its_time():
    workers = Workers(lambda queue: subprocess.Popen(["/bin/sleep", "60"]), ("q", "r"))
    workers.tend()
    try:
        assert workers.kill("q", 0.2)
        assert not workers.kill("q", 0.2)  # it is not there
        workers.tend()
        assert workers.starts == 2
        until(lambda: workers.tend() or workers.starts == 3)
    finally:
        workers.end()


def test_only_the_time_between_two_runs_that_follow_each_other_is_idle():
    start = datetime(2026, 11, 21, tzinfo=timezone.utc)
    at = [start + timedelta(seconds=seconds) for seconds in (0, 10, 14, 30, 25, 40)]
    # The third begins while the second runs: an orphan of a killed worker.
    assert list(_gaps([(at[2], at[3]), (at[0], at[1]), (at[4], at[5])])) == [4.0]
    assert _spread([1.0]) == {"count": 1}
    assert _spread([1.0, 2.0, 9.0])["p50"] == 2.0
