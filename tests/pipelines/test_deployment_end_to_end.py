"""From an empty Prefect server to a plan that a worker built, and what there is to see of it: `make e2e-prefect`."""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from datetime import datetime, timezone
from uuid import uuid4

import pytest

from tests.pipelines.conftest import Forge
from tests.pipelines.test_deploying import get
from tests.pipelines.test_flows import SPY, ask, wait_for_task_states

pytestmark = [pytest.mark.e2e, pytest.mark.prefect, pytest.mark.xdist_group("prefect")]

OVERRIDES = ["flow=fp32", "targets=[l4]"]


@pytest.fixture(scope="module")
def project(server, tmp_path_factory):
    """An empty directory where `trtforge` is spied on for calls to other machines, and the log of these."""
    home = tmp_path_factory.mktemp("project")
    (home / "spy").mkdir()
    (home / "spy/sitecustomize.py").write_text(SPY)
    log = home / "hosts"
    forge = Forge(home, {"PREFECT_API_URL": server, "PYTHONPATH": str(home / "spy"), "SPY_LOG": str(log)})
    return forge, log


def start_run(server, name, **body):
    deployment = get(server, f"deployments/name/{name}")
    return ask(server, f"deployments/{deployment['id']}/create_flow_run", state={"type": "SCHEDULED"}, **body)


def ended(server, run, limit_s=120):
    """The run, once it has ended."""
    deadline = time.monotonic() + limit_s
    while True:
        found = get(server, f"flow_runs/{run['id']}")
        if found["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return found
        assert time.monotonic() < deadline, found["state"]
        time.sleep(0.3)


def tell_of_a_version(server):
    """The event of `trtforge watch --emit`."""
    event = {
        "id": str(uuid4()),
        "occurred": datetime.now(timezone.utc).isoformat(),
        "event": "trtforge.tensorrt.version.changed",
        "resource": {"prefect.resource.id": "trtforge.tensorrt.sm_89", "prefect.resource.name": "sm_89"},
    }
    request = urllib.request.Request(
        f"{server}/events", json.dumps([event]).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    urllib.request.urlopen(request, timeout=10).close()


def started_by_an_event(server, deployment, limit_s=60):
    """The run of `deployment` that no schedule made."""
    deadline = time.monotonic() + limit_s
    while True:
        found = ask(server, "flow_runs/filter", deployments={"id": {"any_": [deployment["id"]]}})
        own = [run for run in found if not run["auto_scheduled"]]
        if own:
            return own[0]
        assert time.monotonic() < deadline, "no run was started"
        time.sleep(0.3)


def records(forge):
    return {path.name: path.stat().st_mtime_ns for path in (forge.store / "records").glob("*.json")}


def test_a_deployed_build_is_built_by_a_worker_once_and_a_changed_version_starts_a_rebuild(project, server):
    forge, log = project
    deployed = forge("deploy", *OVERRIDES)
    assert deployed.code == 0, deployed.err
    assert forge("deploy").out.strip() == "nothing to change"

    first = start_run(server, "trtforge-build/build")
    worked = forge("worker", "--run-once")
    assert worked.code == 0, worked.err
    assert "queue cpu" in worked.err
    run = ended(server, first)
    assert run["state_name"] == "Completed", worked.err
    assert run["work_queue_name"] == "cpu"
    assert run["name"] == "digits-fp32"
    assert {"trtforge", "model:digits", "flow:fp32", "target:l4", "sm_89"} <= set(run["tags"])
    # One command line and one deployment share the store: there is nothing left to do.
    status = forge("status", "--json", *OVERRIDES)
    assert status.code == 0 and set(status.states().values()) == {"cached"}
    assert status.document["plans"][0]["target"] == "l4"
    wait_for_task_states(server, run, dict.fromkeys(status.states(), "Completed"))

    before = records(forge)
    worker = forge.start("worker")
    try:
        second = ended(server, start_run(server, "trtforge-build/build"))
        assert second["state_name"] == "Completed"
        wait_for_task_states(server, second, {f"cached: {len(status.states())} steps": "Cached"})
        assert records(forge) == before  # nothing was built anew

        tell_of_a_version(server)
        rebuild = get(server, "deployments/name/trtforge-rebuild/rebuild-nightly")
        third = ended(server, started_by_an_event(server, rebuild))
        assert third["state_name"] == "Completed" and third["parameters"]["architecture"] == "sm_89"
    finally:
        worker.send_signal(signal.SIGTERM)
        _, err = worker.communicate(timeout=30)
    assert worker.returncode == 0, err
    assert not log.exists(), log.read_text()  # nobody else was told anything
