"""Crashes, Ctrl-C, kill -9 and two builds at once: nothing half, nothing twice, nothing lost."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest


def check_whole(forge):
    """Every object is what its name says, and nothing is left in the scratch directory."""
    for path in (forge.store / "objects").rglob("*"):
        if path.is_file():
            assert path.parent.name + path.name == hashlib.sha256(path.read_bytes()).hexdigest()
    assert not list((forge.store / "tmp").glob("*"))


def test_a_builder_that_crashes_is_a_failed_step_and_the_rest_goes_on(built, child_of):
    arguments = ("flow=fp32", "targets=[a10,l4]")
    build = built.start("build", "--json", "runner=local", *arguments)
    os.kill(child_of(build, "build"), signal.SIGSEGV)
    out, err = build.communicate(timeout=120)
    assert build.returncode == 1
    assert "SIGSEGV" in err
    assert err.count("error: ") == 1
    states = [line for line in out.splitlines() if '"state"' in line]
    assert sum("failed" in state for state in states) == 1
    assert sum("skipped" in state for state in states) == 2  # its validate and publish
    again = built.build(*arguments)
    assert again.code == 0
    assert sorted(again.states().values()).count("built") == 3
    check_whole(built)


def test_a_builder_that_is_killed_for_memory_says_so(built, child_of):
    build = built.start("build", "runner=local", "flow=fp32", "targets=[l4]")
    os.kill(child_of(build, "build"), signal.SIGKILL)
    assert "out of memory?" in build.communicate(timeout=120)[1]


def test_a_step_over_its_time_limit_is_stopped_and_says_what_to_raise(forge):
    ran = forge.build("flow=export", "steps.surgery.time_limit_s=0.05")
    assert ran.code == 1
    assert "steps.surgery.time_limit_s=0.1" in ran.err
    assert forge.build("flow=export").states() == {"export": "cached", "surgery": "built"}  # it is no part of the key


@pytest.mark.serial
@pytest.mark.parametrize(
    "moment", [0.2, 0.3, 0.4, 0.5, "signature", "export", "calibrate", "build", "validate", "publish"]
)
def test_ctrl_c_ends_within_two_seconds_and_the_next_build_goes_on(forge, interrupt, child_of, moment):
    build = forge.start("build", "runner=local")
    if isinstance(moment, str):
        child_of(build, moment)
    else:
        time.sleep(moment)
    code, took = interrupt(build)
    assert code == 130
    assert took < 2.0
    kept = forge.records()
    ran = forge.build()
    assert ran.code == 0
    assert kept <= forge.records()
    cached = {step["key"] for step in ran.document["steps"] if step["state"] == "cached"}
    assert kept & {step["key"] for step in ran.document["steps"]} == cached
    check_whole(forge)


@pytest.mark.parametrize("turned_into", ["AttributeError", "RuntimeError", "OSError", "ConfigError"])
def test_ctrl_c_is_an_interruption_whatever_a_library_makes_of_it(tmp_path, turned_into):
    code = f"""
import os, signal, sys, time
import conf.compose
from conf.errors import ConfigError
from pipelines.cli import main

def compose(*_):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
    finally:  # as OmegaConf does where it is interrupted while it sets a flag
        raise {turned_into}("half made", *["look"][:{turned_into} is ConfigError])

conf.compose.compose = compose
sys.argv = ["trtforge", "build", "runner=local"]
main()
"""
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 130, ran.stderr
    assert ran.stderr.startswith("error: interrupted\nnext: ")


def test_a_build_that_is_killed_leaves_no_lock_no_child_and_nothing_half(forge, child_of):
    build = forge.start("build", "runner=local", "flow=export")
    child = child_of(build, "surgery")
    build.kill()
    build.communicate()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
        assert time.monotonic() < deadline, "the child outlives its parent"
        time.sleep(0.05)
    assert list((forge.store / "tmp").glob("*"))
    ran = forge.build("flow=export")
    assert ran.code == 0
    assert ran.states() == {"export": "cached", "surgery": "built"}
    check_whole(forge)


def test_two_terminals_that_build_the_same_build_it_once(forge):
    arguments = ("build", "--json", "runner=local", "flow=fp32", "targets=[a10,l4]")
    both = [forge.start(*arguments) for _ in range(2)]
    outs = [build.communicate(timeout=240)[0] for build in both]
    assert [build.returncode for build in both] == [0, 0]
    documents = [json.loads(out) for out in outs]
    built = [step["key"] for document in documents for step in document["steps"] if step["state"] == "built"]
    assert len(built) == len(set(built)) == 2 + 2 * 3
    assert documents[0]["plans"] == documents[1]["plans"]


def test_a_model_that_changes_while_it_is_read_is_not_kept_under_its_old_content(forge, child_of):
    source = Path(__file__).parents[2] / "conf/data/digits/digits.onnx"
    model = forge.home / "net.onnx"
    model.write_bytes(source.read_bytes())
    assert forge.build("flow=export", f"model.path={model}").code == 0  # the signature is known from now on
    key = forge.status("flow=export", f"model.path={model}").step("export")["key"]
    (forge.store / f"records/{key}.json").unlink()
    build = forge.start("build", "runner=local", "flow=export", f"model.path={model}")
    child = child_of(build, "export")
    os.kill(child, signal.SIGSTOP)
    model.write_bytes(source.read_bytes() + b"\0")
    os.kill(child, signal.SIGCONT)
    err = build.communicate(timeout=120)[1]
    assert build.returncode == 1
    assert "changed while it was being read" in err or "not an ONNX file" in err
    assert not (forge.store / f"records/{key}.json").exists()
