"""Many processes at one store: each key is built once, who waits says for whom, and the dead hold nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

import pytest

from artifacts.store import Store
from artifacts.verify import verify
from tests.artifacts.processes import running, said
from tests.pipelines.conftest import Forge

MANY = 32

OVERLAPPING = """
    import os, random, sys, time
    from pathlib import Path
    from tests.faults import small_build
    many, root, log = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
    quick = small_build.in_this_process
    def noted(work, progress, stop):
        with log.open("a") as file:
            file.write(f"{work.name} {work.config.text} {sorted(map(str, work.inputs.values()))}\\n")
        time.sleep(0.05)
        return quick(work, progress, stop)
    small_build.in_this_process = noted
    words = [f"word {n} " for n in range(4)]
    for number in range(many):
        if os.fork() == 0:
            break
    else:
        print(*(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range(many)))
        sys.exit()
    random.Random(number).shuffle(words)
    for word in words:
        assert small_build.build(root, text=word).exit == 0
"""


def test_32_processes_that_ask_for_overlapping_builds_build_each_key_once(tmp_path: Path) -> None:
    log, root = tmp_path / "log", tmp_path / "store"
    with running(OVERLAPPING, MANY, root, log) as process:
        out, err = process.communicate(timeout=120)
    assert ([*map(int, out.split())], err) == ([0] * MANY, "")
    built = log.read_text().splitlines()
    assert len(built) == len(set(built)) == len(list((root / "records").iterdir())) == 4 * 3
    assert not verify(Store(root)).findings
    assert not list((root / "tmp").iterdir())
    assert not list((root / "claims").iterdir())


SLOW = """
    import sys, time
    from pathlib import Path
    from pipelines.reporting import Lines
    from tests.faults import small_build
    quick = small_build.in_this_process
    def slow(work, progress, stop):
        print(work.name, flush=True)
        if sys.argv[2] == "slow":
            sys.stdin.readline()
        return quick(work, progress, stop)
    small_build.in_this_process = slow
    assert small_build.build(Path(sys.argv[1]), Lines()).exit == 0
"""


def test_who_waits_says_for_whom_once_and_goes_on_when_the_holder_is_killed(tmp_path: Path) -> None:
    with running(SLOW, tmp_path, "slow") as holder:
        assert said(holder) == "first"
        killed_and_gone_on(holder, tmp_path)


def killed_and_gone_on(holder: subprocess.Popen[str], store: Path) -> None:
    with running(SLOW, store, "quick") as waiter:
        assert waiter.stderr
        assert waiter.stderr.readline() == "first: started\n"
        assert f"first: waiting for first in process {holder.pid} on " in waiter.stderr.readline()
        time.sleep(0.3)  # it polls, and says nothing more
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        killed = time.monotonic()
        assert said(waiter) == "first"
        assert time.monotonic() - killed < 1.0
        _out, err = waiter.communicate(timeout=60)
        assert waiter.returncode == 0, err
        assert err.splitlines()[0].startswith("first: built in ")
        assert "waiting" not in err


def test_the_live_bar_says_whom_a_step_waits_for(tmp_path: Path) -> None:
    code = """
        import io, sys, time
        from pathlib import Path
        from rich import console
        from pipelines import reporting
        from pipelines.execute import WAITING
        sink = io.StringIO()
        plain = console.Console
        console.Console = lambda **options: plain(file=sink, force_terminal=True, width=120)
        live = reporting.Live()
        live.started("build[l4]")
        live.progressed("build[l4]", f"{WAITING}build[l4] in process 7 on host", None)
        time.sleep(0.3)
        live.close()
        assert "waiting for build[l4] in process 7 on host" in sink.getvalue(), sink.getvalue()
        print("seen")
    """
    with running(code) as process:
        assert said(process) == "seen"


@pytest.mark.serial
def test_four_real_builds_at_once_build_each_key_once(tmp_path: Path) -> None:
    forge = Forge(tmp_path)
    flows = ["fp32", "fp32", "fp16", "fp16"]
    builds = [forge.start("build", "--json", "runner=local", f"flow={flow}", "targets=[l4]") for flow in flows]
    ended = [build.communicate(timeout=240) for build in builds]
    assert [build.returncode for build in builds] == [0] * 4, ended
    documents = [json.loads(out) for out, _ in ended]
    built = [step["key"] for document in documents for step in document["steps"] if step["state"] == "built"]
    wanted = {step["key"] for document in documents for step in document["steps"]}
    assert len(built) == len(set(built))
    assert set(built) == wanted
    assert any("waiting for " in err for _, err in ended)
    assert not verify(Store(forge.store)).findings
