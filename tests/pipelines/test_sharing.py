"""Builds on many machines with one remote: each key built once, and none the worse for a remote that is down."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from artifacts.remote import Remote
from artifacts.store import Store
from artifacts.verify import verify
from pipelines import child
from pipelines.execute import Outcome
from pipelines.reporting import Reporter
from tests.artifacts.processes import running, said
from tests.faults import small_build
from tests.s3 import BUCKET, S3, answering, aws, free_port


class Heard(Reporter):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.ended: dict[str, str] = {}

    def note(self, text: str) -> None:
        self.notes.append(text)

    def finished(self, outcome: Outcome) -> None:
        self.ended[outcome.node.id] = f"{outcome.state} {outcome.reason or ''}".strip()


@pytest.fixture(autouse=True)
def the_real_child_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """`small_build` runs stages in this process; later tests of this process shall not."""
    from artifacts import memo

    monkeypatch.setattr(child, "run", child.run)
    monkeypatch.setattr(memo, "RACY_NS", memo.RACY_NS)


def test_what_one_machine_built_another_fetches_and_does_not_build(tmp_path: Path, url: str) -> None:
    first, second = Heard(), Heard()
    one = small_build.build(tmp_path / "one", first, remote=url)
    two = small_build.build(tmp_path / "two", second, remote=url)
    assert set(first.ended.values()) == {"built not built yet"}
    assert set(second.ended.values()) == {f"cached from {url}"}
    assert first.notes == second.notes == []
    keys = [{name: outcome.key for name, outcome in session.outcomes.items()} for session in (one, two)]
    assert keys[0] == keys[1]
    published = [path / "published" / small_build.PLACE for path in (tmp_path / "one", tmp_path / "two")]
    assert (published[0] / "model.plan").read_bytes() == (published[1] / "model.plan").read_bytes()
    assert not verify(Store(tmp_path / "two")).findings
    assert Remote(url, 60).names("refs") == [f"refs/published/{small_build.PLACE}"]


def test_a_build_with_nothing_to_do_does_not_ask_the_remote(tmp_path: Path) -> None:
    share = tmp_path / "share"
    small_build.build(tmp_path / "one", remote=str(share))
    share.rename(tmp_path / "unplugged")
    heard = Heard()
    small_build.build(tmp_path / "one", heard, remote=str(share))
    assert (heard.notes, share.exists()) == ([], False)


def test_a_remote_that_is_down_is_done_without_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in aws(free_port()).items():
        monkeypatch.setenv(name, value)
    heard = Heard()
    built = small_build.build(tmp_path / "one", heard, remote=f"s3://{BUCKET}/x")
    assert built.exit == 0
    assert set(heard.ended.values()) == {"built not built yet"}
    assert len(heard.notes) == 1
    assert "going on without it; `trtforge push` sends the rest later" in heard.notes[0]


def test_a_remote_that_may_only_be_read_is_read(tmp_path: Path, s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    url = s3.url
    small_build.build(tmp_path / "one", remote=url)
    with answering(403, b"<Error><Code>AccessDenied</Code></Error>", then=s3, methods=["PUT"]) as port:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        heard = Heard()
        small_build.build(tmp_path / "two", heard, remote=url)
        assert (set(heard.ended.values()), heard.notes) == ({f"cached from {url}"}, [])
        heard = Heard()
        small_build.build(tmp_path / "two", heard, text="another word ", remote=url)
        assert set(heard.ended.values()) == {"built not built yet"}
        assert len(heard.notes) == 1
        assert "what is built stays here" in heard.notes[0]


def test_a_damaged_object_of_the_remote_is_told_built_anew_and_replaced(tmp_path: Path, url: str) -> None:
    small_build.build(tmp_path / "one", remote=url)
    remote = Remote(url, 60)
    for name in remote.names("objects"):
        remote.write(name, (remote.read(name) or b"") + b"!")
    heard = Heard()
    small_build.build(tmp_path / "two", heard, remote=url)
    assert set(heard.ended.values()) == {"built not built yet"}
    assert len(heard.notes) == 3
    assert all("is damaged: " in note for note in heard.notes)
    heard = Heard()
    small_build.build(tmp_path / "three", heard, remote=url)
    assert set(heard.ended.values()) == {f"cached from {url}"}


SHARING = """
    import sys, time
    from pathlib import Path
    from pipelines.reporting import Lines
    from tests.faults import small_build
    root, url, log = Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
    pause, lease = float(sys.argv[4]), float(sys.argv[5])
    quick = small_build.in_this_process
    def noted(work, progress, stop):
        read = [path.parent.name + path.name for paths in work.inputs.values() for path in paths]
        with log.open("a") as file:
            file.write(f"{work.name} {work.config.text}{read}\\n")
        print(work.name, flush=True)
        time.sleep(pause)
        return quick(work, progress, stop)
    small_build.in_this_process = noted
    print("ready", flush=True)
    sys.stdin.readline()
    for word in ("one ", "two "):
        assert small_build.build(root, Lines(), text=word, remote=url, lease_s=lease).exit == 0
    print("done", flush=True)
"""


def test_machines_that_build_the_same_at_the_same_time_build_each_key_once(tmp_path: Path, url: str) -> None:
    log = tmp_path / "log"
    with ExitStack() as stack:
        machines = [stack.enter_context(running(SHARING, tmp_path / str(n), url, log, 0.3, 30)) for n in range(4)]
        for machine in machines:
            assert said(machine) == "ready"
        for machine in machines:
            go(machine)
        ended = [machine.communicate(timeout=120) for machine in machines]
    assert [out.splitlines()[-1] for out, _ in ended] == ["done"] * 4, ended
    built = log.read_text().splitlines()
    assert len(built) == len(set(built)) == 2 * 3
    assert any("waiting for first in process" in err for _, err in ended)
    digests = {tuple(sorted(Store(tmp_path / str(n)).recorded())) for n in range(4)}
    assert len(digests) == 1


def test_when_the_machine_that_builds_dies_another_takes_over(tmp_path: Path, url: str) -> None:
    log = tmp_path / "log"
    with (
        running(SHARING, tmp_path / "one", url, log, 60, 3) as lost,
        running(SHARING, tmp_path / "two", url, log, 0, 3) as other,
    ):
        assert said(lost) == said(other) == "ready"
        go(lost)
        assert said(lost) == "first"
        go(other)
        time.sleep(2)
        assert log.read_text() == "first one []\n"
        lost.send_signal(signal.SIGKILL)
        out, err = other.communicate(timeout=60)
    assert out.splitlines()[-1] == "done", err
    assert f"first: waiting for first in process {lost.pid} on " in err


def test_a_machine_that_was_away_too_long_does_not_replace_the_newer_result(tmp_path: Path, url: str) -> None:
    log = tmp_path / "log"
    with (
        running(SHARING, tmp_path / "one", url, log, 1, 1) as away,
        running(SHARING, tmp_path / "two", url, log, 0, 1) as other,
    ):
        assert said(away) == said(other) == "ready"
        go(away)
        assert said(away) == "first"
        away.send_signal(signal.SIGSTOP)
        go(other)
        out, err = other.communicate(timeout=60)
        assert out.splitlines()[-1] == "done", err
        records = {name: Remote(url, 60).read(name) for name in Remote(url, 60).names("records")}
        away.send_signal(signal.SIGCONT)
        out, err = away.communicate(timeout=60)
    assert out.splitlines()[-1] == "done", err
    assert "was taken over (token 2, not 1)" in err
    assert {name: Remote(url, 60).read(name) for name in Remote(url, 60).names("records")} == records


def go(process: subprocess.Popen[str]) -> None:
    """Lets it begin."""
    assert process.stdin
    process.stdin.write("go\n")
    process.stdin.flush()
