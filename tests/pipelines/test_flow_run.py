"""Flow runs as a real server knows them, that are opened and told of over its REST interface."""

from __future__ import annotations

import time
from concurrent.futures import Future
from datetime import datetime, timedelta, timezone
from uuid import uuid4

import pytest

from pipelines import flow_run, following
from pipelines.errors import InterruptedBuildError
from pipelines.execute import Outcome
from pipelines.flow_run import HEARTBEAT, State
from pipelines.following import Followed
from pipelines.progress import Progress
from pipelines.reporting import Reporter
from pipelines.server_api import Plain, RefusedError
from tests.pipelines.planning import plan
from tests.pipelines.test_flows import ask, wait_for_task_states

pytestmark = [pytest.mark.prefect, pytest.mark.xdist_group("prefect")]

FLOW = "trtforge-build"
GIVEN = {"overrides": ["flow=export"], "config_dirs": []}


@pytest.fixture
def api(server):
    """The server's."""
    return Plain(server)


def there(api, run):
    return api("GET", f"/flow_runs/{run.id}")


def task_run_of(server, name):
    (found,) = ask(server, "task_runs/filter", task_runs={"name": {"any_": [name]}})
    return found


def test_a_run_is_what_was_said_of_it(api, server):
    run = flow_run.opened(api, FLOW, "digits-export", ["model:digits"], GIVEN)
    found = there(api, run)
    assert (found["state_name"], found["run_count"], found["tags"]) == ("Running", 1, ["model:digits"])
    assert found["parameters"] == GIVEN
    run.rename("digits", ["night"])
    run.close(State("COMPLETED", "all plans are up to date"))
    found = there(api, run)
    assert (found["name"], found["tags"]) == ("digits", ["model:digits", "night"])
    assert (found["state_type"], found["state"]["message"]) == ("COMPLETED", "all plans are up to date")


def test_a_task_run_has_the_times_at_which_its_step_began_and_ended(api, server):
    run = flow_run.opened(api, FLOW, "digits-export", [], GIVEN)
    name, began = f"surgery {uuid4()}", datetime.now(timezone.utc) - timedelta(seconds=20)
    step = run.begin(name, began)
    run.end(step, State("COMPLETED", "built in 12.5 s: key"), began + timedelta(seconds=12.5))
    run.close(State("COMPLETED"))
    wait_for_task_states(server, there(api, run), {name: "Completed"})
    found = task_run_of(server, name)
    assert datetime.fromisoformat(found["start_time"].replace("Z", "+00:00")) == began
    assert (found["total_run_time"], found["state"]["message"]) == (12.5, "built in 12.5 s: key")
    states = ask(server, "task_runs/filter", task_runs={"id": {"any_": [found["id"]]}})
    assert states[0]["run_count"] == states[0]["flow_run_run_count"] == 1


def test_the_log_of_a_run_says_how_each_step_ended_and_names_it_once(api, server):
    run = flow_run.opened(api, FLOW, "digits-export", [], GIVEN)
    for name, state in (
        ("export", State("COMPLETED", "built in 0.5 s: key")),
        ("surgery", State("FAILED", "surgery: stopped after its time limit of 0.01 s")),
        ("validate", State("CANCELLED")),
    ):
        run.end(run.begin(name), state)
    run.close(State("FAILED", "not up to date: surgery"))
    lines = ask(server, "logs/filter", logs={"flow_run_id": {"any_": [run.id]}}, sort="TIMESTAMP_ASC")
    assert [(line["level"], line["message"]) for line in lines] == [
        (20, "trtforge runs digits-export"),
        (20, "export: built in 0.5 s: key"),
        (40, "surgery: stopped after its time limit of 0.01 s"),
        (20, "validate: cancelled"),
        (40, "not up to date: surgery"),
    ]


def test_a_run_that_goes_on_is_the_same_run_for_the_second_time(api, server):
    run = flow_run.opened(api, FLOW, "digits-export", [], GIVEN)
    run.close(State("FAILED", "not up to date: surgery"))
    again = flow_run.reopened(api, run.id, FLOW)
    assert there(api, run)["state_name"] == "Running"
    name = f"surgery {uuid4()}"
    again.end(again.begin(name), State("COMPLETED", "", "Cached"))
    again.close(State("COMPLETED"))
    assert (there(api, run)["state_name"], there(api, run)["run_count"], again.run_count) == ("Completed", 2, 2)
    wait_for_task_states(server, there(api, run), {name: "Cached"})


@pytest.mark.parametrize("how", ["COMPLETED", "FAILED", "CANCELLED"])
def test_the_task_run_of_a_subflow_run_ends_as_that_does(api, server, how):
    parent = flow_run.opened(api, "trtforge-rebuild", "rebuild of net", [], GIVEN)
    child = flow_run.opened(api, FLOW, f"net {uuid4()}", [], GIVEN, parent)
    assert task_run_of(server, child.name)["state_type"] == "RUNNING"
    child.close(State(how))
    found = task_run_of(server, child.name)
    assert (found["flow_run_id"], found["state_type"]) == (parent.id, how)
    assert there(api, child)["parent_task_run_id"] == found["id"]


def test_a_run_says_that_it_lives_as_the_automation_for_dead_ones_expects_it(api, server):
    run = flow_run.opened(api, FLOW, "digits-export", [], GIVEN)
    with run.beating():
        wanted = {"event": {"name": [HEARTBEAT]}, "resource": {"id": [f"prefect.flow-run.{run.id}"]}}
        deadline = time.monotonic() + 20
        while not (events := ask(server, "events/filter", filter=wanted)["events"]):
            assert time.monotonic() < deadline, "no heartbeat"
            time.sleep(0.2)
    (flow,) = [each for each in events[0]["related"] if each["prefect.resource.role"] == "flow"]
    assert flow["prefect.resource.name"] == FLOW


def test_a_server_that_will_have_no_such_end_says_why(api):
    run = flow_run.opened(api, FLOW, "digits-export", [], GIVEN)
    api("POST", f"/flow_runs/{run.id}/set_state", {"state": {"type": "CANCELLING"}, "force": True})
    with pytest.raises(RefusedError, match="does not have the run completed: Cannot transition"):
        run.close(State("COMPLETED"))
    assert not run.is_final


def test_steps_end_in_the_run_as_they_do_here_and_none_is_left_running(api, server, default_store):
    session = plan(default_store, ["flow=export", "steps.surgery.config.compare_max_bytes=0"])
    followed = Followed(session, Progress(Reporter()), ["flow=export"], [], [])
    (export, surgery), (done, wrong) = session.nodes, (Future(), Future())
    followed.begin(export, done)
    followed.begin(surgery, wrong)
    done.set_result(Outcome(export, "failed", error="no such file"))
    followed.interrupted = True
    followed.end()  # without the end of surgery
    following.follow(followed, api)
    assert (there(api, followed.flow_run)["state_name"], followed.flow_run.is_final) == ("Cancelled", True)
    wait_for_task_states(server, there(api, followed.flow_run), {"export": "Failed", "surgery": "Cancelled"})


@pytest.mark.parametrize(
    ("error", "state"), [(InterruptedBuildError(), "Cancelled"), (RuntimeError("a bug"), "Failed")]
)
def test_a_step_that_raises_is_cancelled_or_a_bug(api, server, default_store, error, state):
    session = plan(default_store, ["flow=export", "steps.surgery.config.compare_max_bytes=0"])
    followed, future = Followed(session, Progress(Reporter()), ["flow=export"], [], []), Future()
    followed.begin(session.nodes[0], future)
    future.set_exception(error)
    followed.interrupted = True
    followed.end()
    following.follow(followed, api)
    wait_for_task_states(server, there(api, followed.flow_run), {"export": state})
