"""Builds as Prefect flow runs, against a real server on loopback and without one."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from tests.pipelines.conftest import Forge

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


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    """The API's address of a real Prefect server."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    home = tmp_path_factory.mktemp("prefect")
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "1",
    }
    process = subprocess.Popen(
        [str(Path(sys.executable).with_name("prefect")), "server", "start", "--port", str(port), "--no-ui"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    api = f"http://127.0.0.1:{port}/api"
    deadline = time.monotonic() + 120
    while True:
        try:
            urllib.request.urlopen(f"{api}/health", timeout=1)
            break
        except OSError:
            assert time.monotonic() < deadline and process.poll() is None, "the server does not start"
            time.sleep(0.2)
    yield api
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(30)


def ask(api, path, **body):
    request = urllib.request.Request(
        f"{api}/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def runs_of(api, store):
    """The flow runs whose overrides name `store`, oldest first."""
    found = ask(api, "flow_runs/filter", sort="START_TIME_ASC")
    return [run for run in found if any(str(store) in text for text in run["parameters"]["overrides"])]


def task_states(api, run):
    """`build[l4]` -> name of its last state; the server hears of a state a moment after it is reached."""
    wanted = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    deadline = time.monotonic() + 20
    while True:
        tasks = {task["name"]: task["state_name"] for task in ask(api, "task_runs/filter", **wanted)}
        if time.monotonic() > deadline or not {"Running", "Pending"} & set(tasks.values()):
            return tasks
        time.sleep(0.2)


def test_a_build_is_one_flow_run_with_a_task_run_per_step_that_tells_built_from_cached(tmp_path, server):
    forge = Forge(tmp_path, {"PREFECT_API_URL": server})
    arguments = ("build", "--json", f"store.root={forge.store}")
    assert forge(*arguments, "targets=[l4]").code == 0
    both = forge(*arguments, "targets=[l4,a10]")
    assert both.code == 0, both.err
    assert forge(*arguments, "targets=[l4,a10]").code == 0  # nothing to do: no flow run

    first, second = runs_of(server, forge.store)
    assert {first["state_name"], second["state_name"]} == {"Completed"}
    shared = ["export", "surgery", "calibrate", "ranges", "quantize"]
    own = ["build", "validate", "publish"]
    assert task_states(server, first) == dict.fromkeys([*shared, *(f"{name}[l4]" for name in own)], "Completed")
    assert task_states(server, second) == {
        **dict.fromkeys([*shared, *(f"{name}[l4]" for name in own)], "Cached"),
        **dict.fromkeys([f"{name}[a10]" for name in own], "Completed"),
    }


def test_a_failed_step_fails_its_task_run_and_the_flow_run(tmp_path, server):
    forge = Forge(tmp_path, {"PREFECT_API_URL": server})
    ran = forge("build", f"store.root={forge.store}", "flow=fp32", "targets=[l4]", "steps.build.time_limit_s=0.05")
    assert ran.code == 1
    assert ran.err.count("error: ") == 1
    (run,) = runs_of(server, forge.store)
    assert run["state_name"] == "Failed"
    states = task_states(server, run)
    assert states["surgery"] == "Completed"
    assert states["build[l4]"] == "Failed"
    assert "validate[l4]" not in states


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
    assert task_states(server, first) == {"export": "Completed", "surgery": "Completed"}
    assert task_states(server, second) == {"export": "Cached", "surgery": "Cached"}
    assert task_states(server, third) == {"export": "Cached", "surgery": "Failed"}


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
