"""Builds as Prefect flow runs, against a real server on loopback and without one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from contextlib import closing
from pathlib import Path

import pytest

from artifacts.store import Store
from pipelines.prefect_settings import PROXIES
from tests.pipelines.conftest import Forge, prefect_server
from tests.pipelines.test_rebuild import DIGITS, states, write_catalog

pytestmark = [pytest.mark.prefect, pytest.mark.xdist_group("prefect")]

SPY = """
import os, socket
_connect, _resolve = socket.socket.connect, socket.getaddrinfo

def note(host):
    if str(host) not in ("127.0.0.1", "localhost", "::1", "0.0.0.0", "None"):
        with open(os.environ["SPY_LOG"], "a") as log:
            log.write(f"{host}\\n")

def connect(self, address):
    if isinstance(address, tuple):
        note(address[0])
    return _connect(self, address)

def getaddrinfo(host, *rest, **options):
    note(host.decode() if isinstance(host, bytes) else host)
    return _resolve(host, *rest, **options)

socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
"""


WITHOUT_PREFECT = """
import sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "prefect":
            raise ModuleNotFoundError("Prefect is imported, which takes longer than all else that a server costs")

sys.meta_path.insert(0, Refuse())
"""


def ask(api, path, **body):
    request = urllib.request.Request(
        f"{api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def runs_of(api, store):
    """The flow runs whose overrides name `store`, oldest first."""
    found = ask(api, "flow_runs/filter", sort="START_TIME_ASC")
    return [run for run in found if any(str(store) in text for text in run["parameters"].get("overrides", []))]


def wait_for_task_states(api, run, expected, more=False):
    """Waits until the task runs of a run have these states, by name; the server hears of each a moment after it ended.

    Args:
        more: Whether there may be others.
    """
    wanted = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    deadline = time.monotonic() + 20
    while True:
        # Pairs: a step that was killed and runs again has two task runs of one name.
        found = {(task["name"], task["state_name"]) for task in ask(api, "task_runs/filter", **wanted)}
        if found == expected.items() or (more and found >= expected.items()):
            return
        assert time.monotonic() < deadline, found
        time.sleep(0.2)


def artifacts_of(api, run):
    """The Markdown of each artifact of a flow run, by its key."""
    found = ask(api, "artifacts/filter", flow_runs={"id": {"any_": [run["id"]]}})
    return {artifact["key"]: artifact["data"] for artifact in found}


def test_a_build_is_one_flow_run_with_a_task_run_for_each_step_that_runs_and_one_for_what_is_cached(tmp_path, server):
    forge = Forge(tmp_path, {"PREFECT_API_URL": server})
    arguments = ("build", "--json", "flow=fp32", f"store.root={forge.store}")
    assert forge(*arguments, "targets=[l4]").code == 0
    both = forge(*arguments, "targets=[l4,a10]")
    assert both.code == 0, both.err
    assert forge(*arguments, "targets=[l4,a10]").code == 0  # nothing to do: no flow run

    first, second = runs_of(server, forge.store)
    assert {first["state_name"], second["state_name"]} == {"Completed"}
    shared = ["export", "surgery"]
    own = ["build", "validate", "publish"]
    built = dict.fromkeys([*shared, *(f"{name}[l4]" for name in own)], "Completed")
    wait_for_task_states(server, first, built)
    added = dict.fromkeys([f"{name}[a10]" for name in own], "Completed")
    wait_for_task_states(server, second, {"cached: 5 steps": "Cached", **added})
    # The tables of each plan's report go with its run.
    assert set(artifacts_of(server, first)) == {"plan-digits-l4-fp32"}
    tables = artifacts_of(server, second)
    assert set(tables) == {"plan-digits-l4-fp32", "plan-digits-a10-fp32"}
    digest = next(plan["digest"] for plan in both.document["plans"] if plan["target"] == "a10")
    assert f"- sha256: {digest}" in tables["plan-digits-a10-fp32"]
    assert "| logits | the ONNX it was built from |" in tables["plan-digits-a10-fp32"]


def test_a_build_is_recorded_without_prefects_import(tmp_path, server):
    refuse = tmp_path / "refuse"
    refuse.mkdir()
    (refuse / "sitecustomize.py").write_text(WITHOUT_PREFECT)
    direct = dict.fromkeys(PROXIES, "")
    forge = Forge(tmp_path, {"PREFECT_API_URL": server, "PYTHONPATH": str(refuse), **direct})
    assert "Prefect is imported" in forge("deploy").err
    ran = forge("build", f"store.root={forge.store}", "flow=export")
    assert (ran.code, "not recorded" in ran.err) == (0, False), ran.err
    (run,) = runs_of(server, forge.store)
    assert run["state_name"] == "Completed"
    wait_for_task_states(server, run, {"export": "Completed", "surgery": "Completed"})
    tasks = {task["name"]: task for task in ask(server, "task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})}
    # The graph of its page is drawn by these.
    after = [{"input_type": "task_run", "id": tasks["export"]["id"]}]
    assert tasks["surgery"]["task_inputs"] == {"wait_for": after}
    lines = ask(server, "logs/filter", logs={"flow_run_id": {"any_": [run["id"]]}})
    said = {line["message"].partition(":")[0]: line["task_run_id"] for line in lines}
    assert said == {
        "trtforge runs digits-export": None,
        "export": tasks["export"]["id"],
        "surgery": tasks["surgery"]["id"],
        "all plans are up to date": None,
    }


def test_a_server_with_a_password_and_tokens_is_told_of_a_build_by_prefects_own_client(tmp_path):
    guarded = {"PREFECT_SERVER_API_AUTH_STRING": "admin:pass", "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true"}
    with prefect_server(tmp_path / "server", guarded, "--no-ui") as address:
        forge = Forge(tmp_path, {"PREFECT_API_URL": f"{address}/api"})
        refused = forge("build", "flow=export")
        assert (refused.code, refused.err.count("error: ")) == (1, 1)
        assert "401" in refused.err
        allowed = Forge(tmp_path, {"PREFECT_API_URL": f"{address}/api", "PREFECT_API_AUTH_STRING": "admin:pass"})
        ran = allowed("build", "flow=export", "steps.surgery.config.compare_max_bytes=0")
        assert (ran.code, "not recorded" in ran.err) == (0, False), ran.err
    with closing(sqlite3.connect(tmp_path / "server/prefect.db")) as database:
        assert database.execute("SELECT name, state_name FROM flow_run").fetchall() == [("digits-export", "Completed")]


def test_a_step_that_somebody_else_has_built_meanwhile_is_cached(tmp_path, server, default_store):
    forge = Forge(tmp_path, {"PREFECT_API_URL": server})
    given = ("flow=export", f"store.root={forge.store}")
    export = forge.status(*given).step("export")
    with Store(forge.store).lock(export["key"], "somebody else", lambda holder: None):
        build = forge.start("build", *given)
        while "waiting for somebody else" not in (line := build.stderr.readline()):
            assert line, "it has not waited"
        for kind in ("objects", "records"):
            shutil.copytree(default_store / kind, forge.store / kind, dirs_exist_ok=True)
    _, err = build.communicate(timeout=60)
    assert build.returncode == 0, err
    (run,) = runs_of(server, forge.store)
    wait_for_task_states(server, run, {"export": "Cached", "surgery": "Cached"})


def test_a_failed_step_fails_its_task_run_and_the_flow_run(tmp_path, server):
    forge = Forge(tmp_path, {"PREFECT_API_URL": server})
    ran = forge("build", f"store.root={forge.store}", "flow=fp32", "targets=[l4]", "steps.build.time_limit_s=0.05")
    assert ran.code == 1
    assert ran.err.count("error: ") == 1
    (run,) = runs_of(server, forge.store)
    assert run["state_name"] == "Failed"
    wait_for_task_states(server, run, {"export": "Completed", "surgery": "Completed", "build[l4]": "Failed"})


@pytest.mark.serial
def test_ctrl_c_ends_a_flow_run_within_two_seconds(tmp_path, server, child_of, interrupt):
    forge = Forge(tmp_path, {"PREFECT_API_URL": server})
    build = forge.start("build", f"store.root={forge.store}", "flow=fp32", "targets=[l4]")
    child_of(build, "build")
    code, seconds = interrupt(build)
    assert code == 130
    assert seconds < 2.0
    assert forge("build", f"store.root={forge.store}", "flow=fp32", "targets=[l4]").code == 0


def test_without_a_server_it_works_and_talks_to_no_other_machine(tmp_path):
    spy = tmp_path / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(SPY)
    log = tmp_path / "hosts"
    forge = Forge(tmp_path, {"PYTHONPATH": str(spy), "SPY_LOG": str(log)})
    ran = forge("build", "--json", "flow=fp32", "targets=[l4]")
    assert ran.code == 0, ran.err
    assert set(ran.states().values()) == {"built"}
    assert not log.exists(), log.read_text()
    if "is not recorded" not in ran.err:  # said on a machine where the temporary server takes half a minute
        assert recorded(forge, "flow_run") == {"digits-fp32": "Completed"}
        assert recorded(forge, "task_run") == dict.fromkeys(ran.states(), "Completed")


def test_nothing_ends_before_the_temporary_server_has_written_what_it_heard(tmp_path):
    late = "PREFECT_SERVER_SERVICES_TASK_RUN_RECORDER"
    forge = Forge(tmp_path, {f"{late}_BATCH_SIZE": "1000", f"{late}_FLUSH_INTERVAL": "4"})
    ran = forge("build", "--json", "flow=fp32", "targets=[l4]")
    assert ran.code == 0, ran.err
    assert "not recorded" not in ran.err
    assert recorded(forge, "task_run") == dict.fromkeys(ran.states(), "Completed")


def recorded(forge, table):
    """The states of what the temporary server has kept, by name."""
    with closing(sqlite3.connect(forge.home / "prefect/prefect.db")) as database:
        return dict(database.execute(f"SELECT name, state_name FROM {table}"))  # noqa: S608


def test_a_build_does_not_wait_for_the_temporary_server_nor_fail_for_want_of_it(tmp_path):
    forge = Forge(tmp_path, {"PREFECT_SERVER_DATABASE_CONNECTION_URL": "sqlite+aiosqlite:////nowhere/prefect.db"})
    ran = forge("build", "--json", "flow=export")
    assert ran.code == 0, ran.err
    assert set(ran.states().values()) == {"built"}
    (told,) = [line for line in ran.err.splitlines() if "is not recorded" in line]
    assert told.startswith(
        "the run is not recorded in Prefect: the temporary Prefect server does not start: exit code "
    )
    assert "unable to open database file" in told
    assert "Traceback" not in ran.err


def test_a_server_that_does_not_answer_is_one_line(tmp_path):
    forge = Forge(tmp_path, {"PREFECT_API_URL": "http://127.0.0.1:9/api"})
    ran = forge("build", "flow=export")
    assert ran.code == 1
    assert ran.err.count("error: ") == 1
    assert "127.0.0.1:9" in ran.err
    assert "runner=local" in ran.err
    assert "Traceback" not in ran.err


def test_the_flow_plans_its_own_session_when_a_deployment_calls_it(tmp_path, server):
    code = """
import sys
from pipelines.flows import build
store = "store.root=" + sys.argv[1]
late = ["steps.surgery.time_limit_s=0.01", "steps.surgery.config.compare_max_bytes=0"]
for more in ([], [], late):
    print(build(["flow=export", store, *more], return_state=True).name)
"""
    environment = {**os.environ, "PREFECT_API_URL": server, "PREFECT_HOME": str(tmp_path / "prefect")}
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.stdout.split() == ["Completed", "Completed", "Failed"], ran.stderr
    first, second, third = runs_of(server, tmp_path / "store")
    wait_for_task_states(server, first, {"export": "Completed", "surgery": "Completed"})
    wait_for_task_states(server, second, {"cached: 2 steps": "Cached"})
    wait_for_task_states(server, third, {"cached: 1 step": "Cached", "surgery": "Failed"})


def test_an_upgrade_is_told_to_prefect_once_for_each_architecture(built, server):
    from tests.pipelines import releases, simple_index

    nobody = simple_index.variables("http://127.0.0.1:9/simple")
    forge = releases.leave(Forge(built.home, {"PREFECT_API_URL": server, **nobody}), releases.OLDER)
    first, again = (forge("watch", "--emit", "--json") for _ in range(2))
    assert (first.code, again.code) == (0, 0), first.err + again.err
    assert first.document["emitted"] == first.document["changes"] == again.document["changes"]
    assert again.document["emitted"] == []

    name = "trtforge.tensorrt.version.changed"
    deadline = time.monotonic() + 20
    while len(events := ask(server, "events/filter", filter={"event": {"name": [name]}})["events"]) < 3:
        assert time.monotonic() < deadline, events
        time.sleep(0.2)
    told = {event["resource"]["prefect.resource.id"]: event["payload"] for event in events}
    assert told == {f"trtforge.tensorrt.{each['architecture']}": each for each in first.document["changes"]}
    assert len(events) == len(told) == 3


def test_a_catalog_is_one_flow_run_with_a_subflow_run_for_each_model_that_has_something_to_do(tmp_path, server):
    catalog = write_catalog(tmp_path, net_a=DIGITS, net_b=DIGITS, net_c="nowhere.onnx", net_d=DIGITS)
    forge = Forge(tmp_path, {"PREFECT_API_URL": server})
    given = ("--config-dir", str(catalog), f"store.root={forge.store}", "flow=export")
    assert forge("build", *given, "model=net_a", "runner=local").code == 0
    late = ("steps.surgery.time_limit_s=0.01", "steps.surgery.config.compare_max_bytes=0")
    ran = forge("rebuild", "--json", *given, *late, "--models", "net_c,net_a")
    assert ran.code == 2
    assert states(ran) == {"net_c": "wrong", "net_a": "failed"}
    parent, model = runs_of(server, forge.store)
    assert (parent["state_name"], model["state_name"], model["name"]) == ("Failed", "Failed", "net_a-export")
    assert model["parent_task_run_id"]
    wait_for_task_states(server, model, {"cached: 1 step": "Cached", "surgery": "Failed"})
    rows = json.loads(artifacts_of(server, parent)["trtforge-rebuild"])
    assert [(row["model"], row["state"]) for row in rows] == [("net_c", "wrong"), ("net_a", "failed")]


def test_deployments_call_what_the_verbs_call(tmp_path, server):
    catalog = write_catalog(tmp_path, net_a=DIGITS, net_b="nowhere.onnx", net_c=DIGITS)
    code = """
import sys
from pipelines import flows
store, catalog = "store.root=" + sys.argv[1], sys.argv[2]
for flow, arguments in (
    (flows.rebuild, (["flow=export", store], None, [catalog])),
    (flows.gc, ([store], None, True)),
    (flows.refit, ("gone.safetensors", ["flow=fp32", store])),
    (flows.watch, ([store],)),
):
    print(flow(*arguments, return_state=True).message.splitlines()[0])
"""
    environment = {**os.environ, "PREFECT_API_URL": server, "PREFECT_HOME": str(tmp_path / "prefect")}
    called = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "store"), str(catalog)],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    rebuilt, collected, refitted, watched = called.stdout.splitlines()
    assert rebuilt == "3 models: 1 built, 1 cached, 1 wrong", called.stderr
    assert collected.startswith("would delete 0 things")
    assert "gone.safetensors" in refitted
    assert watched == "0 published plans, 0 changes, 0 new"
    runs = runs_of(server, tmp_path / "store")
    assert [(run["state_name"], run["name"]) for run in runs] == [
        ("Failed", "rebuild of 3 models"),
        ("Completed", "net_a-export"),  # of the three the one that had something to do
        ("Completed", "gc"),
        ("Failed", "refit"),
        ("Completed", "watch"),
    ]
    assert all("trtforge" in run["tags"] for run in runs)


def test_a_killed_build_leaves_no_server_behind(tmp_path):
    forge = Forge(tmp_path)
    build = forge.start("build", "flow=export")
    deadline = time.monotonic() + 60
    while not (servers := servers_for(forge)):
        assert build.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    build.kill()
    build.communicate()
    deadline = time.monotonic() + 20
    while servers & servers_for(forge):
        assert time.monotonic() < deadline, "the server outlives the build"
        time.sleep(0.1)


def servers_for(forge):
    """The process ids of the Prefect servers whose home is in the build's own directory."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            ours = f"PREFECT_HOME={forge.home}/prefect".encode() in (entry / "environ").read_bytes()
            if ours and b"uvicorn" in (entry / "cmdline").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue  # it has just ended
    return found


def test_of_two_builds_that_want_one_plan_one_builds_it_and_for_the_other_it_is_cached(tmp_path, server, child_of):
    forge = Forge(tmp_path, {"PREFECT_API_URL": server})
    given = ("build", "--json", f"store.root={forge.store}", "flow=fp32", "targets=[l4]")
    first = forge.start(*given)
    child = child_of(first, "build")
    os.kill(child, signal.SIGSTOP)
    while not (runs := runs_of(server, forge.store)):  # it begins a moment later
        assert first.poll() is None
        time.sleep(0.1)
    second = forge.start(*given)
    while "build[l4]: waiting for" not in (line := second.stderr.readline()):
        assert line, "it has not waited"
    os.kill(child, signal.SIGCONT)
    ended = [json.loads(build.communicate(timeout=120)[0]) for build in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    step = next(index for index, each in enumerate(ended[0]["steps"]) if each["step"] == "build")
    assert [document["steps"][step]["state"] for document in ended] == ["built", "cached"]
    (builder,) = runs
    (waiter,) = [run for run in runs_of(server, forge.store) if run["id"] != builder["id"]]
    wait_for_task_states(server, builder, {"build[l4]": "Completed"}, more=True)
    wait_for_task_states(server, waiter, {"build[l4]": "Cached"}, more=True)


def test_a_step_that_fails_is_not_tried_again_whatever_prefects_settings_say(tmp_path, server):
    again = {"PREFECT_FLOWS_DEFAULT_RETRIES": "2", "PREFECT_TASKS_DEFAULT_RETRIES": "2"}
    forge = Forge(tmp_path, {"PREFECT_API_URL": server, **again})
    late = ("steps.surgery.time_limit_s=0.01", "steps.surgery.config.compare_max_bytes=0")
    assert forge("build", f"store.root={forge.store}", "flow=export", *late).code == 1
    (run,) = runs_of(server, forge.store)
    assert (run["state_name"], run["run_count"]) == ("Failed", 1)
    wait_for_task_states(server, run, {"export": "Completed", "surgery": "Failed"})
    tasks = ask(server, "task_runs/filter", flow_runs={"id": {"any_": [run["id"]]}})
    assert {task["name"]: task["run_count"] for task in tasks} == {"export": 1, "surgery": 1}
