"""The Prefect server is killed in the middle of a run: the steps go on, and what they made is kept."""

from __future__ import annotations

import os
import signal

import pytest

from tests.chaos.harness import Server, all_gone, eventually, frozen_child, working
from tests.pipelines.conftest import Forge

pytestmark = pytest.mark.chaos

GIVEN = ("flow=fp32", "targets=[l4]")


def is_running(server: Server, run: str) -> bool:
    """Whether its steps are known to the server, so that it is in the midst of it."""
    there = server.get(f"flow_runs/{run}")
    return bool(there["state_type"] == "RUNNING" and server.ask("task_runs/filter", flow_runs={"id": {"any_": [run]}}))


def test_a_build_whose_server_dies_is_finished_says_so_in_one_line_and_can_be_resumed(
    server: Server, forge: Forge
) -> None:
    given = (*GIVEN, f"store.root={forge.store}")
    build = forge.start("build", "--json", *given)
    child = frozen_child(forge.store, "build")
    run = server.run_of(forge.store)
    eventually(lambda: is_running(server, run), 60)
    server.kill()
    os.kill(child, signal.SIGCONT)
    _, err = build.communicate(timeout=120)
    assert build.returncode == 0, err
    told = [line for line in err.splitlines() if ": started" not in line and ": built in" not in line]
    assert told == [
        "all steps are over; Prefect is recording the run",
        f"the run is not recorded in Prefect: no end after 30 s; when its server is back: trtforge resume {run}",
    ]
    assert set(forge.status(*given).states().values()) == {"cached"}

    server.start()
    assert server.ended(run)["state_name"] == "Crashed"
    resumed = forge("resume", run)
    assert resumed.code == 0, resumed.err
    assert server.get(f"flow_runs/{run}")["state_name"] == "Cached"


def test_a_build_whose_server_comes_back_is_recorded_to_its_end(server: Server, forge: Forge) -> None:
    given = (*GIVEN, f"store.root={forge.store}")
    build = forge.start("build", "--json", *given)
    child = frozen_child(forge.store, "build")
    run = server.run_of(forge.store)
    eventually(lambda: is_running(server, run), 60)
    server.kill()
    server.start()
    os.kill(child, signal.SIGCONT)
    _, err = build.communicate(timeout=120)
    assert build.returncode == 0, err
    assert "not recorded" not in err
    assert server.ended(run, 30)["state_name"] == "Completed"
    assert ("build[l4]", "Completed") in server.steps(run, "build[l4]")


@pytest.mark.parametrize("back", ["meanwhile", "afterwards"])
def test_a_workers_run_whose_server_comes_back_is_completed_by_the_same_process(
    back: str, server: Server, forge: Forge
) -> None:
    run = server.run()
    with working(forge) as worker:
        child = frozen_child(forge.store, "build")
        eventually(lambda: is_running(server, run), 60)
        server.kill()
        if back == "meanwhile":
            server.start()
        os.kill(child, signal.SIGCONT)
        eventually(lambda: "publish[l4]: built in" in worker.said, 60)
        server.start()
        ended = server.ended(run, 90)
        assert ended["state_name"] == "Completed", worker.said
        assert worker.process.poll() is None  # it serves on
        again = server.run()
        assert server.ended(again)["state_name"] == "Completed", worker.said
    all_gone(forge.home)
