"""`trtforge status -m`: every run of a sweep in its place, whoever of several processes has looked."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from threading import Event

import pytest

from pipelines import catalog
from tests.pipelines.conftest import COMMAND

TARGETS = "targets=[a10,l4,rtx5090],[a10]"


def test_each_run_has_a_line_and_there_is_a_total(built):
    ran = built("status", "-m", "flow=int8,fp16", TARGETS)
    assert ran.code == 0, ran.err
    lines = ran.out.splitlines()
    assert lines[0] == "flow=int8 targets=[a10,l4,rtx5090]: all 14 steps cached"
    assert lines[1] == "flow=int8 targets=[a10]: all 8 steps cached"
    assert lines[2].startswith("flow=fp16 targets=[a10,l4,rtx5090]: 2 of ")
    assert "; cast: not built yet" in lines[2]
    assert lines[-1] == "4 runs: 2 cached, 2 with something to do"


def test_its_documents_are_those_of_single_runs(built):
    ran = built("status", "--json", "-m", "flow=int8,export", "targets=[a10],[l4]")
    assert ran.code == 0, ran.err
    single = [
        built.status(f"flow={flow}", f"targets=[{target}]").document
        for flow in ("int8", "export")
        for target in ("a10", "l4")
    ]
    assert ran.document == single


def test_a_run_that_is_wrong_is_told_and_the_others_go_on(built):
    ran = built("status", "--json", "-m", "flow=int9,int8", "targets=[a10]")
    assert ran.code == 2
    assert [document["ok"] for document in ran.document] == [False, True]
    assert "did you mean int8?" in ran.err


@pytest.mark.parametrize("verb", ["status", "build"])
def test_a_run_whose_path_the_system_refuses_is_told_and_the_others_go_on(built, verb):
    ran = built(
        verb,
        "--json",
        "-m",
        f"model.path={'a' * 300}.onnx,${{package:conf}}/data/digits/digits.onnx",
        "flow=export",
        "runner=local",
    )
    assert [document["ok"] for document in ran.document] == [False, True]
    assert (ran.code, "File name too long" in ran.err) == (2, True)


def test_a_bug_in_a_process_of_the_sweep_is_not_swallowed(capfd):
    def broken():
        raise ZeroDivisionError("a bug")
        yield

    pid, pipe = catalog._fork(broken)
    assert pipe.read() == ""
    assert os.waitpid(pid, 0)[1] != 0
    assert "ZeroDivisionError: a bug" in capfd.readouterr().err


def test_the_order_is_that_of_the_sweep_with_several_processes(built, monkeypatch):
    monkeypatch.chdir(built.home)
    monkeypatch.delenv("TRTFORGE_STORE", raising=False)
    monkeypatch.setattr(catalog, "FORKS_PAY", 7)
    monkeypatch.setattr(catalog, "cores", lambda: 3)
    fork, forked = catalog._fork, []
    monkeypatch.setattr(catalog, "_fork", lambda answer: forked.append(fork(answer)) or forked[-1])
    runs = [[f"gates.plan_bytes={number}", "flow=export", "targets=[a10]"] for number in range(7)]
    lines = [standing.line() for standing in catalog.standings(runs, (), False, Event())]
    assert lines == [f"gates.plan_bytes={number}: all 2 steps cached" for number in range(7)]
    assert len(forked) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_is_left_behind(built, number):
    runs = "gates.plan_bytes=range(1,400)"
    with subprocess.Popen(
        [str(COMMAND), "status", "-m", runs], cwd=built.home, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as process:  # fmt: skip
        process.stdout.readline()
        process.send_signal(number)
        deadline = time.monotonic() + 20
        process.wait(20)
        while _alive(process.pid) and time.monotonic() < deadline:
            time.sleep(0.05)
        left = _alive(process.pid)
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not left


def test_asking_a_remote_about_many_is_refused(forge):
    ran = forge("status", "-m", "--remote", "flow=fp16,int8")
    assert ran.code == 2
    assert "--remote" in ran.err


def _alive(session: int) -> list[int]:
    """The processes of a session that still run."""
    found = subprocess.run(["ps", "-o", "pid=,stat=", "-s", str(session)], capture_output=True, text=True, check=False)
    rows = [line.split() for line in found.stdout.splitlines()]
    return [int(pid) for pid, state in rows if not state.startswith("Z")]


def test_titles_hold_what_differs():
    assert catalog._titles([["a=1", "b=1"], ["a=2", "b=1"]]) == ["a=1", "a=2"]
    assert catalog._titles([["a=1"]]) == ["a=1"]
