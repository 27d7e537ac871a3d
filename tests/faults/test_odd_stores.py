"""Stores in odd places and odd times: read-only, on another disk, of another version, under a clock that jumps."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from artifacts import gc
from artifacts.store import Hit, Store
from artifacts.verify import verify
from tests.faults.harness import Faults
from tests.faults.small_build import build, forked, session
from tests.pipelines.conftest import Forge


def default_build(home: Path) -> Forge:
    forge = Forge(home)
    assert forge.build("flow=export").code == 0
    return forge


def test_a_read_only_store_answers_builds_and_status_and_verify(
    tmp_path: Path, faults_below: Callable[[Path], Faults]
) -> None:
    forge = default_build(tmp_path)
    faults = faults_below(forge.store)
    faults.arm(1, errno.EROFS, onwards=True)
    readonly = Forge(tmp_path, faults.environment)
    for ran in (readonly.build("flow=export"), readonly.status("flow=export")):
        assert ran.code == 0, ran.err
        assert set(ran.states().values()) == {"cached"}
    assert readonly("verify", "--json", "-q").document["ok"] is True
    assert readonly("gc", "--dry-run", "-q").code == 0
    assert readonly("ls").code == 0


def test_a_read_only_store_refuses_what_it_has_not_with_a_next_step(
    tmp_path: Path, faults_below: Callable[[Path], Faults]
) -> None:
    forge = default_build(tmp_path)
    faults = faults_below(forge.store)
    faults.arm(1, errno.EROFS, onwards=True)
    ran = Forge(tmp_path, faults.environment)("build", "runner=local", "flow=fp32", "targets=[l4]")
    assert ran.code == 1
    assert "cannot be written: Read-only file system" in ran.err
    assert "next: choose a directory you may write" in ran.err
    assert "Traceback" not in ran.err
    assert Forge(tmp_path, faults.environment)("gc", "--older-than", "0s").code == 1


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="there is no second file system here")  # noqa: S108
def test_a_store_on_another_file_system_than_the_temporary_directory(quick_path: Path, tmp_path: Path) -> None:
    assert quick_path.stat().st_dev != tmp_path.stat().st_dev
    forge = Forge(tmp_path, {"TMPDIR": str(tmp_path), "TRTFORGE_STORE": str(quick_path / "störe of mine")})
    ran = forge.build("flow=fp32", "targets=[l4]")
    assert ran.code == 0, ran.err
    assert not verify(Store(quick_path / "störe of mine")).findings


def test_two_versions_on_one_store_leave_each_others_records_alone(tmp_path: Path) -> None:
    assert forked(lambda: int(build(tmp_path).exit)) == 0
    found = session(tmp_path)
    key = found.outcomes["first"].key
    assert key
    path = found.store.record_path(key)
    newer = json.dumps({**json.loads(path.read_text()), "format": 99, "more": "than we know"})
    path.write_text(newer)
    reason = session(tmp_path).outcomes["first"].reason
    assert reason
    assert "record format 99 is newer than 1" in reason
    assert forked(lambda: int(build(tmp_path).exit)) == 0
    assert path.read_text() == newer
    gc.collect(Store(tmp_path), -1, None, "gc", lambda holder: None)
    assert path.read_text() == newer
    assert verify(Store(tmp_path)).newer


@pytest.mark.parametrize("jump_s", [-10 * 365 * 86400, 10 * 365 * 86400])
def test_a_clock_that_jumps_changes_no_answer(jump_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def at(jump: float) -> int:
        now, now_ns = time.time, time.time_ns
        monkeypatch.setattr(time, "time", lambda: now() + jump)
        monkeypatch.setattr(time, "time_ns", lambda: now_ns() + int(jump * 1e9))
        return int(build(tmp_path).exit)

    assert forked(lambda: at(jump_s)) == 0
    records = {path: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}
    assert forked(lambda: at(0)) == 0
    assert forked(lambda: at(-jump_s)) == 0
    assert records == {path: path.stat().st_mtime_ns for path in (tmp_path / "records").iterdir()}


def test_files_from_the_future_are_believed_by_content_alone(tmp_path: Path) -> None:
    assert forked(lambda: int(build(tmp_path).exit)) == 0
    future = time.time() + 10 * 365 * 86400
    for path in tmp_path.rglob("*"):
        os.utime(path, (future, future), follow_symlinks=False)
    assert forked(lambda: int(build(tmp_path).exit)) == 0
    store = Store(tmp_path)
    assert all(isinstance(store.lookup(path.stem), Hit) for path in (tmp_path / "records").iterdir())
    key = session(tmp_path).outcomes["first"].record
    assert key
    wrong = store.path(key.outputs["file"])
    content = wrong.read_bytes()
    wrong.chmod(0o644)
    wrong.write_bytes(content[:-1] + b"!")
    os.utime(wrong, (future, future))
    assert not isinstance(Store(tmp_path).lookup(key.key), Hit)
    assert gc.look(Store(tmp_path), 0).waste == ()  # too young to go, whatever else
