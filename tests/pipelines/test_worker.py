"""The queues that a machine serves, and the processes that do."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conf.errors import ConfigError
from pipelines import worker
from pipelines.errors import EngineError
from pipelines.worker import Place, Workers, places
from stages.gpus import Gpu, Gpus
from tests.pipelines.conftest import Forge

L4 = Gpu("NVIDIA L4", "GPU-11111111-2222-3333-4444-555555555555", "8.9", 24 << 30)
OTHER_L4 = Gpu("NVIDIA L4", "GPU-66666666-2222-3333-4444-555555555555", "8.9", 24 << 30)
H100 = Gpu("NVIDIA H100 80GB HBM3", "GPU-77777777-2222-3333-4444-555555555555", "9.0", 80 << 30)


def test_each_gpu_takes_one_run_at_a_time_of_its_architectures_queue_and_the_cpu_queue_is_served_beside():
    found = places(Gpus((L4, OTHER_L4, H100)), cpu_runs=3)
    assert [(place.queue, place.runs) for place in found] == [("sm_89", 1), ("sm_89", 1), ("sm_90", 1), ("cpu", 3)]


def test_a_run_sees_the_gpu_of_its_worker_alone_and_that_of_the_cpu_queue_none():
    seen = [place.environment["CUDA_VISIBLE_DEVICES"] for place in places(Gpus((L4, OTHER_L4)))]
    assert seen == [L4.uuid, OTHER_L4.uuid, ""]


def test_without_a_gpu_the_cpu_queue_alone_is_served_and_the_reason_is_told():
    here = Gpus((), "no NVIDIA driver is loaded")
    workers = Workers(places(here), {"rtx": "1.7.1.116"})
    assert [place.queue for place in workers.places] == ["cpu"]
    told = worker.report(workers, here)
    assert "rtx 1.7.1.116" in told[0]
    assert told[-2:] == [
        "no GPU: no NVIDIA driver is loaded",
        "steps that others send are not taken: TRTFORGE_REMOTE names no remote",
    ]


def test_queues_of_gpus_that_are_elsewhere_are_served_where_one_asks_for_them():
    found = places(Gpus((L4,)), cpu_runs=0, queues=["sm_75", "sm_120", "sm_75"])
    assert [(place.queue, place.gpu) for place in found] == [("sm_89", L4), ("sm_75", None), ("sm_120", None)]
    with pytest.raises(ConfigError, match="--queue sm_99: there is no such queue"):
        places(Gpus(()), queues=["sm_99"])


def test_a_gpu_that_no_queue_is_for_is_refused():
    with pytest.raises(ConfigError, match="sm_70"):
        places(Gpus((Gpu("Tesla V100", "GPU-1", "7.0", 1),)))


def test_the_name_tells_host_queue_gpu_and_versions_in_characters_that_prefect_takes():
    gpu = Gpu("A/B <C> & 5%", L4.uuid, "8.9", 1)
    name = Place("sm_89", gpu).name({"rtx": "1.7.1.116", "trt": "11.4.0.106"})
    assert name == f"{socket.gethostname()} sm_89 A-B -C- - 5- {L4.uuid} rtx-1.7.1.116 trt-11.4.0.106"


def test_two_gpus_of_one_kind_have_workers_of_two_names():
    assert len({place.name({}) for place in places(Gpus((L4, OTHER_L4)))}) == 3


def test_without_a_server_it_is_one_line(tmp_path):
    ran = Forge(tmp_path)("worker")
    assert ran.code == 2
    assert ran.err.count("error: ") == 1
    assert "PREFECT_API_URL" in ran.err


def test_one_that_ends_by_itself_ends_the_others_and_is_an_error(monkeypatch):
    # Any program will do for a worker: one that ends at once, one that would go on for ever.
    script = 'case "$*" in *sm_89*) exit 3;; *) exec sleep 600;; esac'
    monkeypatch.setattr(Workers, "_command", lambda self, place: ["/bin/sh", "-c", script, "x", place.queue])
    workers = Workers(places(Gpus((L4, H100))), {})
    started = time.monotonic()
    with pytest.raises(EngineError, match="sm_89 ended with 3"):
        workers.run()
    assert time.monotonic() - started < 5
    assert [process.poll() is not None for process in workers._processes] == [True] * 3


SLEEPERS = """
from pipelines.worker import Workers, places
from stages.gpus import Gpus
Workers._command = lambda self, place: ["sleep", "600"]
Workers(places(Gpus(())), {}).run()
"""


@pytest.fixture
def sleeping():
    """`Workers.run` with a process that sleeps for a worker, and the id of that process."""
    process = subprocess.Popen([sys.executable, "-c", SLEEPERS], cwd=Path(__file__).parents[2])
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 30
    while not (found := children.read_text().split()) or b"600" not in Path(f"/proc/{found[0]}/cmdline").read_bytes():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    yield process, int(found[0])
    process.kill()
    process.wait()


def gone(pid, limit_s=5.0):
    deadline = time.monotonic() + limit_s
    while Path(f"/proc/{pid}").exists() and b"600" in Path(f"/proc/{pid}/cmdline").read_bytes():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_end_it_ends_its_workers_and_is_done(sleeping, number):
    process, worker_pid = sleeping
    os.kill(process.pid, number)
    assert process.wait(10) == 0
    assert gone(worker_pid)


def test_killed_it_takes_its_workers_with_it(sleeping):
    process, worker_pid = sleeping
    process.kill()
    assert gone(worker_pid)
