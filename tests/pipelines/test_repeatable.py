"""A process in which things lie where they lay before: by what its own memory says, and by the bytes of a plan."""

from __future__ import annotations

import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path
from threading import Event

import pytest

from pipelines import child, repeatable
from stages import STAGES
from stages.build_config import BuildConfig
from stages.stage import Job
from tests.stages.stage_runs import facts

DIGITS = Path(__file__).parents[2] / "conf/data/digits/digits.onnx"
IMAGES = {"default": {"images": {"min": [1, 1, 8, 8], "opt": [8, 1, 8, 8], "max": [32, 1, 8, 8]}}}

ADDRESSES = """
import ctypes
from pipelines.repeatable import in_own_thread
malloc = ctypes.CDLL(None).malloc
malloc.restype = ctypes.c_void_p
print(*in_own_thread(lambda: [malloc(size) for size in (40, 5000, 300_000)]))
"""
NO_PERSONALITY = """
import ctypes, os, struct, sys
# Load the system call's number; 135 is personality (92 on ARM): EPERM; everything else: allowed.
number = {"x86_64": 135, "aarch64": 92}[os.uname().machine]
rules = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x00050000 | 1), (0x06, 0, 0, 0x7FFF0000)]
code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *rule) for rule in rules))
program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(rules), ctypes.addressof(code)))
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, program) == 0, os.strerror(ctypes.get_errno())
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Runs a program as a container does whose seccomp profile forbids to change the personality."""


def addresses(length: int) -> str:
    """Where three pieces of memory lie in a process with so long an argument, and so large an environment."""
    environment = repeatable.environment({**os.environ, "BALLAST": "x" * 50 * length})
    command = repeatable.command([sys.executable, "-c", ADDRESSES, "x" * length])
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    assert not ran.stderr
    return ran.stdout


def test_memory_lies_at_the_same_addresses_whatever_the_paths_and_the_environment() -> None:
    addresses(1)  # may compile what the others find compiled, and then has other pieces to spare
    assert len({addresses(length) for length in (1, 17, 90)}) == 1


def test_where_the_kernel_forbids_it_the_program_runs_and_its_log_says_so() -> None:
    command = repeatable.command([sys.executable, "-c", "print('done')"])
    ran = subprocess.run([sys.executable, "-c", NO_PERSONALITY, *command], capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stdout) == (0, "done\n")
    [line] = ran.stderr.splitlines()
    assert line.startswith("[WARNING] address-space randomization stays on (Operation not permitted)")


def test_the_user_s_own_tunables_stay() -> None:
    environment = repeatable.environment({"GLIBC_TUNABLES": "glibc.malloc.check=1", "HOME": "/home"})
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.check=1:glibc.malloc.tcache_count=65535"
    assert environment["HOME"] == "/home"


def test_what_is_raised_in_the_thread_is_raised_to_the_caller() -> None:
    with pytest.raises(SystemExit) as raised:
        repeatable.in_own_thread(lambda: sys.exit(3))
    assert raised.value.code == 3


def test_two_builds_of_one_plan_in_directories_of_other_names_have_the_same_bytes(tmp_path: Path) -> None:
    surgery, digests = STAGES["surgery"], set()
    surgery.run(Job(surgery.config(), {"onnx": [DIGITS]}, {"profiles": IMAGES}, tmp_path))
    for name in ("a", "a directory with a longer name"):
        (tmp_path / name).mkdir()
        given, inputs = facts(profiles=IMAGES), {"onnx": [tmp_path / "model.onnx"]}
        work = child.Work("build[l4]", STAGES["build"], BuildConfig(), inputs, given, tmp_path / name)
        result = child.run(work, lambda phase, fraction: None, Event())
        assert "randomization stays on" not in result.log.read_text()
        digests.add(sha256((result.out / "model.plan").read_bytes()).hexdigest())
    assert len(digests) == 1


def test_the_stages_that_make_plans_run_so() -> None:
    assert {name for name, stage in STAGES.items() if stage.by_address} == {"build", "refit"}
