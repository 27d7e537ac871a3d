"""What is killed in the middle of a run, and how it goes on: nothing is lost, nothing hangs, nothing is built twice."""

from __future__ import annotations

import time

import pytest

from tests.chaos.harness import (
    CRASHED_AFTER_SECONDS,
    Server,
    all_gone,
    frozen_child,
    kill,
    parent,
    working,
)
from tests.pipelines.conftest import Forge

pytestmark = pytest.mark.chaos


def unharmed(forge: Forge, unfinished: str) -> dict[str, int]:
    """The records after a crash, with their times: the store is whole, and none is of the step that was broken off."""
    all_gone(forge.home)
    verified = forge("verify", "--json", "-q")
    assert verified.code == 0 and verified.document["ok"], verified.out
    stages = [record["stage"] for record in forge("ls", "--records", "--json").document["records"]]
    assert stages and unfinished not in stages
    return {path.name: path.stat().st_mtime_ns for path in (forge.store / "records").iterdir()}


def goes_on(server: Server, forge: Forge, run: str, before: dict[str, int]) -> None:
    """Resumed, the same run is completed from what was finished, and waits for nobody."""
    resumed = forge("resume", "--json", run)
    assert (resumed.code, resumed.document["resumed"]["next"]) == (0, "queued"), resumed.err
    with working(forge) as worker:
        assert server.ended(run)["state_name"] == "Completed", worker.said
        assert "waiting for" not in worker.said
    steps = server.steps(run, "cached: ")
    assert any(name.startswith("cached: ") and state == "Cached" for name, state in steps)
    after = {path.name: path.stat().st_mtime_ns for path in (forge.store / "records").iterdir()}
    assert before.items() <= after.items()  # what was finished was not built again
    status = forge.status("flow=fp32", "targets=[l4]")
    assert set(status.states().values()) == {"cached"}


@pytest.mark.parametrize("stage", ["surgery", "build"])
def test_a_step_whose_process_is_killed_fails_its_run_and_no_other_step_is_lost(
    stage: str, server: Server, forge: Forge
) -> None:
    run = server.run()
    with working(forge) as worker:
        kill(frozen_child(forge.store, stage))
        assert server.ended(run)["state_name"] == "Failed", worker.said
        assert "killed by SIGKILL" in worker.said
    goes_on(server, forge, run, unharmed(forge, stage))


def test_a_run_whose_process_is_killed_is_crashed_by_its_worker(server: Server, forge: Forge) -> None:
    run = server.run()
    with working(forge) as worker:
        flow = parent(frozen_child(forge.store, "build"))
        kill(flow)
        killed = time.monotonic()
        assert server.ended(run)["state_name"] == "Crashed", worker.said
        assert time.monotonic() - killed < CRASHED_AFTER_SECONDS / 2
    goes_on(server, forge, run, unharmed(forge, "build"))


def test_runs_whose_worker_is_killed_are_ended_and_say_so(server: Server, forge: Forge) -> None:
    run = server.run()
    with working(forge) as worker:
        flow = parent(frozen_child(forge.store, "build"))
        assert parent(parent(flow)) == worker.process.pid
        kill(parent(flow))
        assert worker.process.wait(30) == 1  # for systemd or whoever watches it to start it anew
        assert "the worker of the queue cpu ended with -9" in worker.said
        assert server.ended(run, 10)["state_name"] == "Crashed"
    goes_on(server, forge, run, unharmed(forge, "build"))


def test_trtforge_worker_killed_takes_its_runs_with_it(server: Server, forge: Forge) -> None:
    run = server.run()
    with working(forge) as worker:
        frozen_child(forge.store, "build")
        kill(worker.process.pid)
        all_gone(forge.home)
        assert server.ended(run, CRASHED_AFTER_SECONDS + 30)["state_name"] == "Crashed"
    goes_on(server, forge, run, unharmed(forge, "build"))


def test_a_run_that_is_killed_with_its_worker_is_crashed_for_want_of_heartbeats(server: Server, forge: Forge) -> None:
    run = server.run()
    with working(forge) as worker:
        flow = parent(frozen_child(forge.store, "build"))
        kill(flow, parent(flow), worker.process.pid)
        killed = time.monotonic()
        refused = forge("resume", run)
        assert refused.code == 2
        assert "it gave a sign of life" in refused.err
        ended = server.ended(run)
        assert time.monotonic() - killed < CRASHED_AFTER_SECONDS + 30
    assert ended["state_name"] == "Crashed"
    assert ended["state"]["message"] == f"no heartbeat for {CRASHED_AFTER_SECONDS} s: its process died"
    goes_on(server, forge, run, unharmed(forge, "build"))
