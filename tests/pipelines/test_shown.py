"""What a flow run shows of itself beside its task runs, on a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from tests.pipelines.conftest import Forge
from tests.pipelines.test_flows import artifacts_of, ask, runs_of, wait_for_task_states
from tests.pipelines.test_rebuild import DIGITS, write_catalog

pytestmark = [pytest.mark.prefect, pytest.mark.xdist_group("prefect")]

SLOW = """
import time
import numpy as np

def load_data():
    for index in range(8):
        time.sleep(0.2)
        yield {"images": np.full((1, 1, 8, 8), index / 8, np.float32)}
"""

SOON = """
import sys
from pipelines import progress, shown
progress.LONG_SECONDS, shown.LOOK_SECONDS = 0.5, 0.1
"""
"""What runs half a second is long."""

BARS = (
    SOON
    + """
import os, time
from uuid import uuid4
from pipelines import flow_run
from pipelines.execute import Outcome
from pipelines.graph import Node
from pipelines.progress import Progress
from pipelines.reporting import Reporter
from pipelines.server_api import Plain
from stages import STAGES

api = Plain(os.environ["PREFECT_API_URL"])
run = flow_run.opened(api, "trtforge-build", "bars", [], {"overrides": []})

def node(name):
    return Node(name, STAGES["export"], STAGES["export"].config())

def artifacts():
    return api("POST", "/artifacts/filter", {"flow_runs": {"id": {"any_": [run.id]}}})

def bars():
    return sorted((each["data"], each["description"]) for each in artifacts())

def goes_on():
    steps = Progress(Reporter())
    with shown.Bars(run, steps, lambda name: None, print):
        for name in ("goes on", "fails", "silent"):
            steps.started(name)
        steps.progressed("silent", "parse", None)
        for name in ("goes on", "fails"):
            steps.progressed(name, "calibrating", 0.25)
        time.sleep(0.3)
        print(bars())  # nothing is long yet
        time.sleep(0.7)
        print(bars())
        steps.progressed("goes on", "calibrating", 0.5)
        steps.finished(Outcome(node("fails"), "failed", error="no"))
        time.sleep(0.5)
        print(bars())
    print(bars())

def refused():
    steps = Progress(Reporter())
    with shown.Bars(run, steps, lambda name: None, print):
        steps.started("goes on")
        for percent in range(20):
            steps.progressed("goes on", "calibrating", percent / 100)
            time.sleep(0.1)
            if percent == 10:
                (bar,) = artifacts()
                api("DELETE", f"/artifacts/{bar['id']}")
    run.id = str(uuid4())
    shown.describe(run, "nobody", ["a"], print)

{"run": goes_on, "refused": refused}[sys.argv[1]]()
"""
)


def script(code, home, server, *arguments):
    environment = {**os.environ, "PREFECT_API_URL": server, "PREFECT_HOME": str(home / "prefect")}
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=environment, capture_output=True, text=True, check=False, cwd=home,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_a_step_that_runs_long_has_a_bar_while_it_runs_and_none_when_it_fails_or_says_nothing(tmp_path, server):
    early, later, ending, over = script(BARS, tmp_path, server, "run")
    assert early == "[]"
    assert later == "[(25, 'fails: calibrating'), (25, 'goes on: calibrating')]"
    assert ending == "[(50, 'goes on: calibrating')]"
    assert over == "[]"  # it was broken off


def test_what_the_server_does_not_take_is_told_once_and_fails_nothing(tmp_path, server):
    told = script(BARS, tmp_path, server, "refused")
    assert [line.partition(": ")[0] for line in told] == [
        "Prefect was not shown how far its steps are",
        "Prefect was not shown its name and tags",
    ]
    assert "404" in told[0]


def test_a_build_shows_how_far_its_long_steps_are_and_a_full_bar_at_their_end(tmp_path, server):
    (tmp_path / "load.py").write_text(SLOW)
    data = ("callable=load.py", "path=null", "max_samples=8", "batch_size=1")
    code = SOON + "from pipelines.__main__ import main\nmain()"
    given = ["build", "-q", "flow=int8", "targets=[l4]", *(f"model.calibration.{each}" for each in data)]
    environment = {**Forge(tmp_path).variables, "PREFECT_API_URL": server}
    build = subprocess.Popen(
        [sys.executable, "-c", code, *given, f"store.root={tmp_path / 'store'}"], env=environment, cwd=tmp_path
    )
    seen = set()
    while build.poll() is None:
        for run in runs_of(server, tmp_path / "store"):
            seen |= set(progress_of(server, run))
        time.sleep(0.2)
    assert build.returncode == 0
    assert any(0 < percent < 100 and told == "calibrate: calibrating" for percent, told in seen), seen
    (run,) = runs_of(server, tmp_path / "store")
    ended = progress_of(server, run)
    assert {percent for percent, _ in ended} == {100}
    assert any(told.startswith("calibrate: built in ") for _, told in ended)


def progress_of(server, run):
    """Percent and description of the progress artifacts of a flow run's task runs."""
    found = ask(server, "artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}})
    return [(each["data"], each["description"]) for each in found if each["type"] == "progress" and each["task_run_id"]]


def test_a_rebuild_is_named_tagged_and_told_model_by_model_and_target_by_target(tmp_path, server):
    catalog = write_catalog(tmp_path, net_a=DIGITS, net_b="nowhere.onnx")
    forge = Forge(tmp_path, {"PREFECT_API_URL": server})
    given = ("--config-dir", str(catalog), f"store.root={forge.store}", "flow=fp32", "targets=[l4,a10]")
    ran = forge("rebuild", "--json", *given, "steps.validate.time_limit_s=0.01")
    assert ran.code == 1, ran.err
    parent, model = runs_of(server, forge.store)
    (release,) = [tag for tag in model["tags"] if tag.startswith("rtx-")]
    own = {"trtforge", "model:net_a", "flow:fp32", "target:l4", "target:a10", "sm_89", "sm_86", release}
    assert (model["name"], set(model["tags"])) == ("net_a-fp32", own)
    assert (parent["name"], set(parent["tags"])) == ("rebuild of 2 models", own | {"model:net_b"})
    # No task run has tags: each would ask the server for limits.
    wanted = {"id": {"any_": [model["id"]]}}
    wait_for_task_states(server, model, {"build[l4]": "Completed"}, more=True)
    assert {tag for task in ask(server, "task_runs/filter", flow_runs=wanted) for tag in task["tags"]} == set()

    rows = json.loads(artifacts_of(server, parent)["trtforge-rebuild"])
    told = [(row["model"], row["target"], row["version"], row["state"]) for row in rows]
    assert told == [
        ("net_a", "l4", release, "failed"), ("net_a", "a10", release, "failed"), ("net_b", "", "", "wrong")
    ]  # fmt: skip
    tables = artifacts_of(server, model)
    assert set(tables) == {"plan-net-a-l4-fp32", "plan-net-a-a10-fp32"}
    assert f"`trtforge report --config-dir={catalog} " in tables["plan-net-a-l4-fp32"]

    wanted = {"event": {"name": ["prefect.asset.materialization.succeeded"]}}
    name = f"trtforge://net_a/sm_89/{release}/fp32"
    deadline = time.monotonic() + 20
    while not (found := [e for e in ask(server, "events/filter", filter=wanted)["events"] if name in str(e)]):
        assert time.monotonic() < deadline, "no event of the plan"
        time.sleep(0.2)
    assert found[0]["resource"]["prefect.resource.id"] == name
    assert "model.onnx" in {each.get("prefect.resource.name") for each in found[0]["related"]}


def test_a_run_keeps_the_tags_of_its_deployment_and_one_that_cannot_be_planned_is_ours_too(tmp_path, server):
    code = """
import sys
from prefect import tags
from pipelines.flows import build
store = "store.root=" + sys.argv[1]
with tags("night"):
    build(["flow=export", store], return_state=True)
build(["flow=export", "model=nothing", store], return_state=True)
"""
    script(code, tmp_path, server, str(tmp_path / "store"))
    planned, wrong = runs_of(server, tmp_path / "store")
    assert planned["name"] == "digits-export"
    assert set(planned["tags"]) == {"night", "trtforge", "model:digits", "flow:export"}
    assert (wrong["name"], wrong["tags"], wrong["state_name"]) == ("build", ["trtforge"], "Failed")
