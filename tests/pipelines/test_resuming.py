"""`trtforge resume`, against a real Prefect server."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from datetime import datetime, timedelta, timezone
from uuid import uuid4

import pytest

from conf.errors import ConfigError
from pipelines.resuming import resume
from tests.pipelines.conftest import Forge
from tests.pipelines.test_flows import ask, runs_of, wait_for_task_states
from tests.pipelines.test_rebuild import DIGITS, write_catalog

pytestmark = [pytest.mark.prefect, pytest.mark.xdist_group("prefect")]


HEARTBEAT = "prefect.flow-run.heartbeat"


@pytest.fixture
def here(server):
    """A client of the server, which this process knows. It asks again where the server is busy."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: server}), get_client(sync_client=True) as client:
        yield client


def post(client, path, **body):
    return client.request("POST", path, json=body).json()


def get(client, path):
    return client.request("GET", path).json()


def make_run(client, state="RUNNING", flow="trtforge-build", **more):
    """A flow run that the server has, and nobody runs."""
    flow_id = post(client, "/flows/", name=flow)["id"]
    parameters = {"overrides": ["flow=export"], "config_dirs": []}
    body = {"flow_id": flow_id, "parameters": parameters, "state": {"type": state}, "name": f"run-{uuid4().hex}"}
    return post(client, "/flow_runs/", **{**body, **more})


def make_task_run(client, run, state):
    body = {"flow_run_id": run["id"], "task_key": "step", "dynamic_key": uuid4().hex, "state": {"type": state}}
    return post(client, "/task_runs/", **body)


def beat(client, run, when):
    """A heartbeat of a run, which the server knows when this returns: it keeps events a few seconds."""
    about = {"prefect.resource.id": f"prefect.flow-run.{run['id']}"}
    event = {"id": str(uuid4()), "occurred": when.isoformat(), "event": HEARTBEAT, "resource": about}
    client.request("POST", "/events", json=[event])
    wanted = {"id": {"id": [event["id"]]}, "occurred": {"until": when.isoformat()}}
    deadline = time.monotonic() + 30
    while not post(client, "/events/filter", filter=wanted)["events"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def state_of(client, run):
    return get(client, f"/flow_runs/{run['id']}")["state"]


def test_of_a_completed_run_nothing_is_left_to_resume(here):
    run = make_run(here, "COMPLETED")
    assert resume(run["name"]).lines() == [f"{run['name']} ({run['id']}) is Completed: nothing to resume"]
    assert state_of(here, run)["type"] == "COMPLETED"


def test_a_run_of_somebody_elses_flow_is_left_alone(here):
    run = make_run(here, "CRASHED", flow="their-flow")
    with pytest.raises(ConfigError, match="is a run of the flow their-flow, which is not trtforge's"):
        resume(run["id"])
    assert state_of(here, run)["type"] == "CRASHED"


def test_an_unknown_one_is_answered_by_the_unfinished_of_a_name_like_it(here):
    run = make_run(here, "CRASHED", name="okapi-near-miss")
    make_run(here, "COMPLETED", name="okapi-near-mist")
    with pytest.raises(ConfigError, match="no flow run 'okapi-near-mis'") as raised:
        resume("okapi-near-mis")
    assert raised.value.next_step == f"unfinished: okapi-near-miss ({run['id']}, Crashed)"


def test_the_beginning_of_an_id_will_do_where_one_run_has_it(here):
    ids = [make_run(here, "COMPLETED")["id"] for _ in range(17)]  # of sixteen digits one begins two of them
    assert resume(ids[0][:-1]).id == ids[0]
    begins = next(each[0] for each in ids if sum(other[0] == each[0] for other in ids) > 1)
    with pytest.raises(ConfigError, match=f"flow runs begin with '{begins}'"):
        resume(begins)


def test_a_run_that_gave_a_sign_of_life_is_refused_and_one_that_is_silent_for_three_heartbeats_is_dead(here):
    run, now = make_run(here), datetime.now(timezone.utc)
    beat(here, run, now + timedelta(seconds=60))
    with pytest.raises(ConfigError, match="sign of life 89 s ago") as raised:
        resume(run["id"], now + timedelta(seconds=60 + 89))
    assert f"prefect flow-run cancel {run['id']}" in raised.value.next_step
    assert "try again in 1 s" in raised.value.next_step
    assert state_of(here, run)["type"] == "RUNNING"
    step, over = make_task_run(here, run, "RUNNING"), make_task_run(here, run, "COMPLETED")
    found = resume(run["id"], now + timedelta(seconds=60 + 91))
    assert (found.next, found.was, found.overrides) == ("here", "Running", ["flow=export"])
    ended = state_of(here, run)
    assert (ended["type"], ended["message"]) == ("CRASHED", "no sign of life for 91 s: its process died")
    assert get(here, f"/task_runs/{step['id']}")["state_name"] == "Crashed"
    assert get(here, f"/task_runs/{over['id']}")["state_name"] == "Completed"


@pytest.mark.parametrize("state", ["RUNNING", "PENDING", "CANCELLING"])
def test_a_run_without_a_heartbeat_yet_lives_as_long_as_one_with(here, state):
    run, now = make_run(here, state), datetime.now(timezone.utc)
    with pytest.raises(ConfigError, match=r"sign of life 8\d s ago"):
        resume(run["id"], now + timedelta(seconds=89))
    assert resume(run["id"], now + timedelta(seconds=91)).next == "here"


@pytest.mark.parametrize("state", ["CRASHED", "FAILED", "CANCELLED"])
def test_a_run_of_a_deployment_goes_back_to_its_queue_and_stays_there(here, state):
    flow_id = post(here, "/flows/", name="trtforge-build")["id"]
    deployment = post(here, "/deployments/", name=f"of-{state}", flow_id=flow_id)
    run = make_run(here, state, deployment_id=deployment["id"])
    for was in (state.title(), "Scheduled"):
        found = resume(run["id"])
        assert (found.next, found.was) == ("queued", was)
    assert state_of(here, run)["type"] == "SCHEDULED"
    assert f"prefect flow-run inspect {run['id']}" in found.lines()[-1]


def test_a_dead_run_gives_back_its_slot_of_the_deployments_limit(here):
    flow_id = post(here, "/flows/", name="trtforge-rebuild")["id"]
    deployment = post(here, "/deployments/", name="one-at-once", flow_id=flow_id, concurrency_limit=1)
    run = make_run(here, "SCHEDULED", flow="trtforge-rebuild", deployment_id=deployment["id"])
    for state in ("PENDING", "RUNNING"):
        post(here, f"/flow_runs/{run['id']}/set_state", state={"type": state})
    taken = f"/v2/concurrency_limits/{deployment['global_concurrency_limit']['id']}"
    assert get(here, taken)["active_slots"] == 1
    assert resume(run["id"], datetime.now(timezone.utc) + timedelta(seconds=91)).next == "queued"
    assert get(here, taken)["active_slots"] == 0


def test_a_part_of_a_run_is_resumed_with_the_whole(here):
    whole = make_run(here, "CRASHED", flow="trtforge-rebuild")
    step = make_task_run(here, whole, "RUNNING")
    part = make_run(here, "RUNNING", parent_task_run_id=step["id"])
    with pytest.raises(ConfigError, match=f"is part of the run {whole['id']}"):
        resume(part["id"])
    assert resume(whole["id"]).next == "here"
    assert state_of(here, part)["type"] == "CRASHED"
    assert get(here, f"/task_runs/{step['id']}")["state_name"] == "Crashed"


def test_a_flow_that_the_command_line_has_no_runs_of_is_refused(here):
    run = make_run(here, "CRASHED", flow="trtforge-gc")
    with pytest.raises(ConfigError, match="trtforge-gc has no deployment") as raised:
        resume(run["id"])
    assert raised.value.next_step == "trtforge gc …"


def test_a_killed_build_goes_on_here_in_the_same_flow_run(tmp_path, server, child_of):
    forge = Forge(tmp_path, {"PREFECT_API_URL": server})
    build = forge.start("build", f"store.root={forge.store}", "flow=fp32", "targets=[l4]")
    child = child_of(build, "build")
    os.kill(child, signal.SIGSTOP)
    while not (runs := runs_of(server, forge.store)) or runs[0]["name"] != "digits-fp32":  # it has begun
        assert build.poll() is None
        time.sleep(0.1)
    build.kill()
    build.communicate()
    with suppress(ProcessLookupError):  # stopped before it could ask to end with the build
        os.kill(child, signal.SIGKILL)
    (run,) = runs
    refused = forge("resume", run["id"])
    assert (refused.code, refused.out) == (2, "")
    assert "it gave a sign of life" in refused.err
    ask(server, f"flow_runs/{run['id']}/set_state", state={"type": "CRASHED"}, force=True)

    resumed = forge("resume", "--json", run["id"])
    assert resumed.code == 0, resumed.err
    assert resumed.document["resumed"] == {
        "id": run["id"], "name": "digits-fp32", "flow": "trtforge-build", "was": "Crashed", "next": "here",
    }  # fmt: skip
    assert resumed.states()["surgery"] == "cached"
    (again,) = runs_of(server, forge.store)
    assert (again["id"], again["state_name"], again["run_count"]) == (run["id"], "Completed", 2)
    states = {"cached: 2 steps": "Cached", "build[l4]": "Completed", "publish[l4]": "Completed"}
    wait_for_task_states(server, run, states, more=True)

    assert forge("resume", run["id"]).out.strip().endswith("is Completed: nothing to resume")
    ask(server, f"flow_runs/{run['id']}/set_state", state={"type": "CRASHED"}, force=True)
    assert forge("resume", run["id"]).code == 0  # somebody else may have built the rest meanwhile
    (last,) = runs_of(server, forge.store)
    assert last["state_name"] == "Cached"


def test_a_catalog_goes_on_in_the_same_flow_run(tmp_path, server):
    catalog = write_catalog(tmp_path, net_a=DIGITS, net_b=DIGITS)
    forge = Forge(tmp_path, {"PREFECT_API_URL": server})
    given = ("--config-dir", str(catalog), f"store.root={forge.store}", "flow=export")
    late = ("steps.surgery.time_limit_s=0.01", "steps.surgery.config.compare_max_bytes=0")
    assert forge("rebuild", *given, *late).code == 1
    run = runs_of(server, forge.store)[0]
    # The same parameters: it fails again, as the same run, in which each model has a run of its own.
    resumed = forge("resume", "--json", run["id"])
    assert resumed.code == 1, resumed.err
    assert [each["state"] for each in resumed.document["models"]] == ["failed", "failed"]
    found = runs_of(server, forge.store)
    again = next(each for each in found if each["id"] == run["id"])
    assert (again["state_name"], again["run_count"]) == ("Failed", 2)
    assert sum(each["name"].endswith("-export") for each in found) == 4


def test_without_a_server_it_is_one_line(tmp_path):
    ran = Forge(tmp_path)("resume", "digits-fp32")
    assert ran.code == 2
    assert ran.err.count("error: ") == 1
    assert "PREFECT_API_URL" in ran.err
