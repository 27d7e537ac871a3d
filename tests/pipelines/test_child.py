"""A stage in a process of its own: whatever it does, the parent gets an answer in words."""

from __future__ import annotations

import os
import re
import time
from dataclasses import asdict, replace
from threading import Event, Timer

import pytest

from pipelines import child
from pipelines.errors import InterruptedBuildError
from stages import STAGES
from stages.refit import RefitConfig
from stages.stage import Memory, StageError

MODULE = """
import sys, types
from dataclasses import dataclass
import stages
from stages.stage import Stage, StageError

@dataclass(frozen=True)
class Config:
    text: str = ""

def run(job):
    {body}

stages.STAGES = {{**stages.STAGES, "made": Stage("made", 1, Config, run, (), {{"out": "out.txt"}})}}
"""


@pytest.fixture
def made(tmp_path, monkeypatch):
    """Makes a stage `made` of a function body, in the parent's list and in the child's."""

    def make(body, limits=None, text=""):
        (tmp_path / "hook").mkdir()
        (tmp_path / "hook/sitecustomize.py").write_text(MODULE.format(body=body))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path / "hook"))
        namespace = {}
        exec(MODULE.format(body=body).replace("stages.STAGES = ", "made = "), namespace)  # noqa: S102
        stage = namespace["made"]["made"]
        (tmp_path / "work").mkdir()
        return child.Work(
            "made[l4]", stage, namespace["Config"](text), {}, {}, tmp_path / "work", limits or child.Limits(30.0)
        )

    return make


def silent(phase, fraction): ...


def test_metrics_outputs_progress_and_log_come_back(made):
    seen = []
    body = (
        "job.progress('half', 0.5); print('hello'); (job.out / 'out.txt').write_text(job.config.text); return {'n': 1}"
    )
    result = child.run(made(body, text="grüße"), lambda *said: seen.append(said), Event())
    assert result.metrics == {"n": 1}
    assert (result.out / "out.txt").read_text() == "grüße"
    assert result.log.read_text() == "hello\n"
    assert seen == [("half", 0.5)]


def test_what_earlier_runs_learnt_reaches_the_child_and_what_it_learns_comes_back(made, tmp_path):
    body = (
        "(job.out / 'out.txt').touch(); known = [path.read_text() for path in job.memory.known]; "
        "job.memory.learnt.write_text(' '.join([*known, 'new'])); return {}"
    )
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    memory = Memory([tmp_path / "one", tmp_path / "two"], tmp_path / "learnt")
    child.run(replace(made(body), memory=memory), silent, Event())
    assert memory.learnt.read_text() == "one two new"


def test_a_child_that_is_confined_to_a_gpu_sees_no_other(made):
    body = "import os; (job.out / 'out.txt').write_text(os.environ['CUDA_VISIBLE_DEVICES']); return {}"
    result = child.run(replace(made(body), gpu="GPU-1"), silent, Event())
    assert (result.out / "out.txt").read_text() == "GPU-1"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raise StageError('it is wrong', 'mend it')", ["made[l4]: it is wrong"]),
        ("raise ValueError('a bug')", ["exit code 1", "ValueError: a bug"]),
        ("import os; os.abort()", ["SIGABRT"]),
        ("import ctypes; ctypes.string_at(0)", ["SIGSEGV"]),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", ["SIGKILL", "memory"]),
        ("import os; os._exit(0)", ["exit code 0"]),
        ("return {}", ["wrote no output out"]),
        ("import sys; sys.exit(3)", ["exit code 3"]),
    ],
)
def test_every_other_end_is_an_error_in_words(made, body, words):
    with pytest.raises(StageError) as failed:
        child.run(made(body), silent, Event())
    for word in words:
        assert word in failed.value.what


def test_a_traceback_is_kept_only_when_it_is_asked_for(made, monkeypatch):
    work = made("raise StageError('it is wrong', 'mend it')")
    with pytest.raises(StageError):
        child.run(work, silent, Event())
    assert child.log_of(work.directory).read_text() == ""


def test_a_time_limit_ends_a_child_that_ignores_sigterm(made):
    work = made(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", limits=child.Limits(1.0)
    )
    started = time.monotonic()
    with pytest.raises(StageError, match=r"time limit of 1 s"):
        child.run(work, silent, Event())
    assert time.monotonic() - started < 5


def test_a_child_that_reports_nothing_any_more_is_stopped(made):
    body = "import time; [(job.progress('busy', None), time.sleep(0.1)) for _ in range(15)]; time.sleep(60)"
    started = time.monotonic()
    with pytest.raises(StageError, match="after 1 s without progress") as failed:
        child.run(made(body, child.Limits(stall_s=1.0)), silent, Event())
    assert 2.4 < time.monotonic() - started < 20
    assert failed.value.next_step == "allow it more: steps.made.stall_limit_s=2"


def test_a_child_that_holds_too_much_memory_is_stopped(made):
    body = "import time; held = bytearray(300 * 2**20); time.sleep(60)"
    with pytest.raises(StageError, match=r"it held \d+ MiB of memory; its limit is 256 MiB") as failed:
        child.run(made(body, child.Limits(memory_bytes=2**28)), silent, Event())
    held, more = (int(re.search(r"(\d+) ?MiB", said)[1]) for said in (failed.value.what, failed.value.next_step))
    assert failed.value.next_step == f"allow it more: steps.made.memory_limit={more}MiB"
    assert 2 * held - 1 <= more <= 2 * held + 2  # twice what it held: the limit says nothing of what it wants


def test_memory_and_processor_time_come_back(made):
    body = "held = bytearray(200 * 2**20); sum(range(10**7)); (job.out / 'out.txt').touch(); return {}"
    ballast = bytearray(400 * 2**20)  # what the parent holds is not the child's
    usage = child.run(made(body), silent, Event()).usage
    assert len(ballast) > usage.peak_bytes > 200 * 2**20
    assert 0.05 < usage.cpu_s < 10


def test_stop_ends_the_child_at_once(made):
    work, stop = (
        made("import time; (job.out / 'pid').write_text(str(__import__('os').getpid())); time.sleep(60)"),
        Event(),
    )
    Timer(1.0, stop.set).start()
    with pytest.raises(InterruptedBuildError):
        child.run(work, silent, stop)
    pid = int((work.directory / "out/pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_grandchild_that_keeps_the_pipe_open_does_not_hold_the_parent_up(made):
    body = "import subprocess, os; subprocess.Popen(['sleep', '30'], close_fds=False); os._exit(7)"
    started = time.monotonic()
    with pytest.raises(StageError, match="exit code 7"):
        child.run(made(body, limits=child.Limits(10.0)), silent, Event())
    assert time.monotonic() - started < 8


def test_what_a_child_says_last_is_read_however_late_the_parent_looks(made, monkeypatch):
    class Late(child.selectors.DefaultSelector):
        """After each look that finds nothing, this thread waits for the interpreter's lock, as beside an import."""

        def select(self, timeout=None):
            found = super().select(timeout)
            if not found:
                time.sleep(1.5)
            return found

    monkeypatch.setattr(child.selectors, "DefaultSelector", Late)
    result = child.run(made("(job.out / 'out.txt').touch(); return {'n': 1}"), silent, Event())
    assert result.metrics == {"n": 1}


def test_configs_within_configs_are_restored():
    config = RefitConfig(build=type(RefitConfig().build)(optimization_level=2))
    assert child.restored(STAGES["refit"].config, asdict(config)) == config


def test_the_working_directory_cannot_put_its_own_packages_first(made, tmp_path, monkeypatch):
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages/__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(tmp_path)
    result = child.run(made("(job.out / 'out.txt').write_text(''); return {}"), silent, Event())
    assert result.metrics == {}


def test_a_full_disk_is_told_although_no_log_of_it_can_be_kept(made):
    body = "import errno; raise OSError(errno.ENOSPC, 'No space left on device', 'model.plan')"
    with pytest.raises(OSError, match="No space left on device"):
        child.run(made(body), silent, Event())
