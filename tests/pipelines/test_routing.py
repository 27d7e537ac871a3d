"""Who builds what this machine cannot, found out before anything runs. The remote is real, the workers are made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from artifacts.remote import Remote
from conf.compose import compose
from conf.errors import ConfigError
from pipelines import announced, routing, targets
from pipelines.announced import Announcement
from pipelines.errors import CannotBuildError, Exit, exit_of
from stages.gpus import Gpu

H100 = Gpu("NVIDIA H100 80GB HBM3", "GPU-77777777-2222-3333-4444-555555555555", "9.0", 80 << 30)
SERVER = "http://prefect.invalid/api"


@pytest.fixture
def remote(tmp_path):
    return Remote(str(tmp_path / "remote"), 60.0)


@pytest.fixture
def plan(remote, monkeypatch):
    """What planning says of `targets=[h100] backend=tensorrt`, where these workers have announced themselves."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")

    def planned(*workers: Announcement, alive=None, overrides=("backend=tensorrt", "targets=[h100]"), shared=True):
        for worker in workers:
            announced.announce(remote, worker)
        names = {worker.worker for worker in workers} if alive is None else alive
        monkeypatch.setattr(routing, "_alive", lambda: (names, SERVER))
        place = [f"store.remote={remote.url}"] if shared else []
        with temporary_settings({PREFECT_API_URL: SERVER}):  # as of a variable, which Prefect has read long ago
            return targets.resolve(compose(["flow=fp32", *overrides, *place]))

    return planned


@pytest.fixture
def h100():
    own = announced.own("host sm_90", "sm_90", H100)
    versions = {"tensorrt": "11.4.0.106"}
    return replace(own, host="host", versions=versions, platform="linux_aarch64", cpu="Grace", cores=72)


def test_a_target_is_as_its_worker_has_it(plan, h100):
    (target,) = plan(h100)
    assert target.worker == h100
    assert target.facts == {
        "backend": "tensorrt",
        "backend_version": "11.4.0.106",
        "compute_capability": "9.0",
        "gpu": H100.name,
        "platform": "linux_aarch64",
        "gpu_here": True,
        "machine": {"cpu": "Grace", "cores": 72, "gpu": H100.name},
    }
    assert target.release == "trt-11.4.0.106"


def test_what_can_be_built_here_stays_here_beside_it(plan, h100):
    local, sent = plan(h100, overrides=("targets=[l4,h100]", "targets.h100.backend=tensorrt"))
    assert local.worker is None and sent.worker == h100


def refused(plan, *workers, **options):
    with pytest.raises(CannotBuildError) as caught:
        plan(*workers, **options)
    assert exit_of(caught.value) is Exit.NOBODY_CAN_BUILD
    return caught.value


def test_without_a_worker_it_is_refused_with_the_command_that_starts_one(plan, remote):
    error = refused(plan)
    assert "target h100 cannot be built here: tensorrt is not installed" in error.what
    assert error.what.endswith("its queue sm_90: no worker that lives has announced itself in the remote")
    command = f"PREFECT_API_URL={SERVER} TRTFORGE_REMOTE={remote.url} trtforge worker"
    assert error.next_step == f"on a machine with {H100.name} and tensorrt: {command}"


def test_one_that_the_server_has_not_heard_of_lately_is_none(plan, h100):
    assert "no worker that lives" in refused(plan, h100, alive=set()).what


def test_one_that_has_ended_is_none(plan, h100, remote):
    announced.announce(remote, h100)
    announced.withdraw(remote, h100.worker)
    assert announced.known(remote) == ([], {h100.worker})
    assert "no worker that lives" in refused(plan, alive={h100.worker}).what


def test_one_that_was_started_again_counts(plan, h100, remote):
    announced.withdraw(remote, h100.worker)
    assert plan(h100)[0].worker == h100


def test_one_of_another_queue_is_none(plan, h100):
    assert "no worker that lives" in refused(plan, replace(h100, worker="host sm_89", queue="sm_89")).what


def test_one_that_shares_no_remote_and_could_take_the_run_is_refused(plan, h100):
    told = refused(plan, h100, alive={h100.worker, "other sm_90 rtx-1.7.1.116", "other sm_89"}).what
    assert "its worker 'other sm_90 rtx-1.7.1.116' shares no remote with us, and may take the run" in told


def test_without_a_shared_remote_it_is_refused_with_what_to_set(plan, h100):
    error = refused(plan, h100, shared=False)
    assert "store.remote, which is not given" in error.what and "TRTFORGE_REMOTE" in error.next_step


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"versions": {"tensorrt_rtx": "1.7.1.116"}}, "host has no tensorrt"),
        ({"versions": {"tensorrt": "9.3.0"}}, "host cannot: "),
        ({"gpu": replace(H100, name="NVIDIA H200")}, "host has NVIDIA H200, and the target is NVIDIA H100 80GB HBM3"),
        ({"gpu": None}, "host cannot: "),
        ({"tools": {}}, "onnx missing, not "),
    ],
)
def test_one_that_does_not_fit_is_refused_with_the_reason(plan, h100, change, told):
    assert told in refused(plan, replace(h100, **change)).what


def test_workers_of_one_queue_that_differ_are_refused_as_either_may_take_the_run(plan, h100):
    other = replace(h100, worker="other sm_90", host="other", versions={"tensorrt": "10.16.1.11"})
    told = refused(plan, h100, other).what
    assert "its workers differ" in told and "10.16.1.11 on " in told and "11.4.0.106 on " in told


def test_a_remote_that_cannot_be_reached_is_refused_as_no_worker_is_found_through_it(plan, h100):
    nobody = ("backend=tensorrt", "targets=[h100]", "store.remote=ftp://127.0.0.1:1/place")
    told = refused(plan, h100, overrides=nobody, shared=False).what
    assert "workers are found through the remote: the remote ftp://127.0.0.1:1/place cannot be used" in told


def test_what_another_release_has_announced_otherwise_is_passed_over(remote, h100):
    remote.write("workers/other.json", b'{"worker": "x", "speaks": "another language"}')
    remote.write("workers/broken.json", b"{")
    announced.announce(remote, h100)
    assert announced.known(remote) == ([h100], set())


@pytest.mark.parametrize("runner", ["local", "prefect"])
def test_a_queue_that_is_asked_for_needs_a_server_and_a_runner_that_uses_it(runner, monkeypatch, tmp_path):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api" if runner == "local" else "")
    with pytest.raises(ConfigError, match="routing=queue"):
        targets.resolve(compose(["routing=queue", f"runner={runner}"]))


def test_here_asks_nobody(plan, h100):
    error = refused(plan, h100, overrides=("backend=tensorrt", "targets=[h100]", "routing=here"))
    assert error.what.startswith("no one here can build h100: tensorrt is not installed")


def test_a_queue_can_be_asked_for_although_this_machine_could(plan):
    worker = announced.own("vm sm_89", "sm_89", None)
    (target,) = plan(worker, overrides=("routing=queue", "targets=[l4]"))
    assert target.worker == worker and target.facts["gpu_here"] is False
