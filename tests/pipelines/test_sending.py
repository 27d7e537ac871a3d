"""Steps that run on a queue, by a real worker with a store of its own, and what comes back through the remote."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
from onnx import helper

from tests.pipelines.conftest import Forge
from tests.pipelines.test_flows import ask, wait_for_task_states
from tests.pipelines.test_with_tensorrt import BINDINGS
from tests.stages.stage_runs import model, save
from tests.stages.stand_in_libraries import make_machine

pytestmark = [pytest.mark.prefect, pytest.mark.xdist_group("prefect")]

TO_QUEUE = ("flow=fp32", "targets=[a10]", "routing=queue")


@pytest.fixture(scope="module")
def shared(server, tmp_path_factory):
    """Variables of two machines that share a server and a remote; the server has its deployments."""
    home = tmp_path_factory.mktemp("shared")
    remote = {"TRTFORGE_REMOTE": str(home / "remote")}
    variables = {"PREFECT_API_URL": server, "PREFECT_WORKER_QUERY_SECONDS": "1", **remote}
    assert Forge(home, variables)("deploy", "--file", "own.yaml").code == 0
    return variables


def start_worker(home, variables, *options):
    """A worker that the server has heard of."""
    home.mkdir(parents=True, exist_ok=True)
    process = Forge(home, variables).start("worker", "--cpu-runs", "0", *options, stderr=(home / "log").open("w"))
    deadline = time.monotonic() + 60
    while "started!" not in (home / "log").read_text():
        assert process.poll() is None and time.monotonic() < deadline, (home / "log").read_text()
        time.sleep(0.1)
    return process


def end(process):
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


@pytest.fixture(scope="module")
def worker(shared, tmp_path_factory):
    """A worker of the queue sm_86 with TensorRT-RTX, which needs no GPU; its directory."""
    home = tmp_path_factory.mktemp("worker")
    process = start_worker(home, shared, "--queue", "sm_86")
    yield Forge(home, shared)
    end(process)


def copying(path):
    """Saves a model that a stand-in for TensorRT can execute."""
    save(model([helper.make_node("Identity", ["x"], ["y"])], {"x": ["n", 4]}, {"y": ["n", 4]}), path)


def sent_runs(server):
    """The runs that were sent to queues, the latest first."""
    found = ask(server, "flow_runs/filter", sort="START_TIME_DESC")
    return [run for run in found if set(run["parameters"]) == {"job"}]


def left(variables):
    return sorted(path.name for path in (Path(variables["TRTFORGE_REMOTE"]) / "jobs").glob("*"))


def test_a_targets_steps_are_one_run_on_its_queue_and_the_rest_is_built_here(worker, shared, server, tmp_path):
    forge = Forge(tmp_path, shared)
    ran = forge("build", "--json", *TO_QUEUE)
    assert ran.code == 0, ran.err
    assert set(ran.states().values()) == {"built"}
    (plan,) = ran.document["plans"]
    assert plan["validated"] and Path(plan["path"]).is_file()

    run = sent_runs(server)[0]
    assert (run["name"], run["work_queue_name"], run["state_name"]) == ("digits-fp32 for a10", "sm_86", "Completed")
    wait_for_task_states(server, run, {"build[a10]": "Completed", "validate[a10]": "Completed"}, more=True)
    # The worker has built what is the target's, and fetched what that needs; what publishes stayed here.
    there = {json.loads(path.read_text())["fields"]["stage"] for path in (worker.store / "records").glob("*.json")}
    assert there == {"export", "surgery", "build", "validate"}
    assert left(shared) == []
    again = forge("build", "--json", *TO_QUEUE)
    assert set(again.states().values()) == {"cached"} and sent_runs(server)[0]["id"] == run["id"]


def test_what_a_worker_has_built_is_what_this_machine_would_have(worker, shared, tmp_path):
    ran = Forge(tmp_path / "queue", shared)
    alone = Forge(tmp_path / "here")
    for forge in (ran, alone):
        forge.home.mkdir()
    keys = [forge("build", "--json", *TO_QUEUE[:2], *rest).step("build", "a10")["key"]
            for forge, rest in ((ran, ["routing=queue"]), (alone, ["runner=local"]))]  # fmt: skip
    assert keys[0] == keys[1]


def test_a_step_that_fails_there_fails_here_with_its_words_and_is_not_sent_again(worker, shared, server, tmp_path):
    odd = helper.make_node("Odd", ["x"], ["y"], name="odd0", domain="acme")
    proto = model([odd], {"x": ["n", 4]}, {"y": ["n", 4]})
    proto.opset_import.add(domain="acme", version=1)
    save(proto, tmp_path / "odd.onnx")
    own = ("model=onnx", "model.path=odd.onnx", "model.dims.n=[1,2,8]")
    before = len(sent_runs(server))
    ran = Forge(tmp_path, shared)("build", *TO_QUEUE, *own)
    assert ran.code == 1
    assert "error: build[a10]: TensorRT cannot take this model" in ran.err and "odd0" in ran.err
    assert len(sent_runs(server)) == before + 1
    assert left(shared) == []


def child_of_worker(worker, stage, limit_s=60):
    """The process that executes a stage in a run of the worker, and that of the run."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        for job in (worker.store / "tmp").glob("*/job.json"):
            try:
                if json.loads(job.read_text())["stage"] == stage:
                    return json.loads(job.read_text())["parent"]
            except (OSError, ValueError):
                continue
        time.sleep(0.01)
    raise AssertionError(f"the worker never ran {stage}")


def test_a_run_whose_process_is_killed_is_sent_again(worker, shared, server, tmp_path):
    forge = Forge(tmp_path, shared)
    before = len(sent_runs(server))
    build = forge.start("build", *TO_QUEUE, "model.dims.batch=[1,3,8]")
    os.kill(child_of_worker(worker, "build"), signal.SIGKILL)
    _, err = build.communicate(timeout=120)
    assert build.returncode == 0, err
    assert "it is sent again" in err
    states = [run["state_name"] for run in sent_runs(server)[: len(sent_runs(server)) - before]]
    assert sorted(states) == ["Completed", "Crashed"]
    assert left(shared) == []


def test_ctrl_c_cancels_the_run_there_too(worker, shared, server, tmp_path, interrupt):
    forge = Forge(tmp_path, shared)
    build = forge.start("build", *TO_QUEUE, "model.dims.batch=[1,5,8]")
    child_of_worker(worker, "build")
    code, seconds = interrupt(build)
    assert code == 130 and seconds < 5
    deadline = time.monotonic() + 60
    while sent_runs(server)[0]["state_name"] not in ("Cancelled", "Cancelling"):
        assert time.monotonic() < deadline, sent_runs(server)[0]["state"]
        time.sleep(0.2)


def test_a_job_that_does_not_fit_the_worker_any_more_is_refused_before_it_builds(worker, shared, server, tmp_path):
    """The announcement says another release than the runs find."""
    place = next((Path(shared["TRTFORGE_REMOTE"]) / "workers").glob("*.json"))
    said = json.loads(place.read_text())
    place.write_text(json.dumps({**said, "versions": {"tensorrt_rtx": "1.7.0.98"}}))
    try:
        ran = Forge(tmp_path, shared)("build", *TO_QUEUE, "model.dims.batch=[1,6,8]")
    finally:
        place.write_text(json.dumps(said))
    assert ran.code == 1
    assert (
        "this worker does not fit target a10: backend_version is 1.7.1.116 here, and 1.7.0.98 is asked for" in ran.err
    )


@pytest.mark.skipif(not BINDINGS.is_dir(), reason="the bindings are not here: make bindings")
def test_tensorrt_builds_on_the_machine_with_the_gpu_for_one_that_has_neither(worker, shared, server, tmp_path):
    """The worker's machine is made up: TensorRT's real bindings, on libraries with one L4 that copies its input."""
    (tmp_path / "machine").mkdir()
    copying(tmp_path / "copy.onnx")
    overrides = ("flow=fp32", "model=onnx", "model.path=copy.onnx", "model.dims.n=[1,2,8]", "backend=tensorrt")
    forge = Forge(tmp_path, shared)
    refused = forge("build", *overrides, "targets=[a10]")
    assert refused.code == 4 and "has no tensorrt" in refused.err and not forge.records()

    machine = start_worker(tmp_path / "gpu", shared | make_machine(tmp_path / "machine", BINDINGS / "11.4.0.106"))
    try:
        ran = forge("build", "--json", *overrides, "targets=[l4]")
    finally:
        end(machine)
    assert ran.code == 0, ran.err
    (plan,) = ran.document["plans"]
    assert (plan["backend"], plan["backend_version"], plan["validated"]) == ("tensorrt", "11.4.0.106", True)
    assert ran.step("validate", "l4")["metrics"]["engine_executed"]
    # Its worker has ended: nobody is taken for alive who has said that he goes.
    assert forge("build", *overrides, "targets=[l4]").code == 4
