"""Remembered digests: a file is read once, a change is always seen, and damage is forgotten."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts import digest
from artifacts.memo import Memo
from tests.artifacts.processes import output, running

SIZE_BYTES = 1 << 20
HOUR_NS = 3600 * 10**9


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour passes: what was written in this test is old enough to be remembered."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + HOUR_NS)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "file").write_bytes(b"a" * SIZE_BYTES)
    return tmp_path / "file"


def is_read(memo: Memo, path: Path) -> bool:
    """Whether `memo` reads the content of `path` to say its digest, which is right either way."""
    before = bytes_read()
    found = memo.digest(path)
    read = bytes_read() - before
    assert found == digest.of_file(path)
    return read >= SIZE_BYTES


def bytes_read() -> int:
    counters = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(counters["rchar"])


def remember(index: Path, file: Path) -> None:
    memo = Memo(index)
    memo.digest(file)
    memo.save()


@pytest.mark.usefixtures("later")
def test_a_file_is_read_once(file: Path, tmp_path: Path) -> None:
    memo = Memo(tmp_path / "index")
    assert [is_read(memo, file) for _ in range(2)] == [True, False]
    memo.save()
    assert not is_read(memo, file)
    assert not is_read(Memo(tmp_path / "index"), file)


def overwrite(file: Path) -> None:
    file.write_bytes(b"b" * SIZE_BYTES)


def overwrite_and_restore_the_time(file: Path) -> None:
    before = file.stat()
    overwrite(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(file: Path) -> None:
    other = file.with_name("other")
    shutil.copy2(file, other)
    overwrite_and_restore_the_time(other)
    other.replace(file)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("change", [overwrite, overwrite_and_restore_the_time, replace])
def test_other_content_of_the_same_size_is_seen(change: Callable[[Path], None], file: Path, tmp_path: Path) -> None:
    memo = Memo(tmp_path / "index")
    memo.digest(file)
    memo.save()
    time.sleep(0.05)  # time stamps move in steps of up to 10 ms
    change(file)
    assert is_read(memo, file)
    assert is_read(Memo(tmp_path / "index"), file)


def test_a_file_that_changed_just_now_is_not_remembered(file: Path, tmp_path: Path) -> None:
    os.utime(file, (0, 0))  # which touches its ctime
    memo = Memo(tmp_path / "index")
    assert [is_read(memo, file) for _ in range(2)] == [True, True]
    memo.save()
    assert is_read(Memo(tmp_path / "index"), file)


@pytest.mark.usefixtures("later")
def test_a_file_from_the_future_is_not_remembered(file: Path, tmp_path: Path) -> None:
    future_ns = time.time_ns() + HOUR_NS
    os.utime(file, ns=(future_ns, future_ns))
    memo = Memo(tmp_path / "index")
    assert [is_read(memo, file) for _ in range(2)] == [True, True]


def other_program(index: Path) -> None:
    index.unlink()
    with sqlite3.connect(index) as database:
        database.execute("CREATE TABLE files (name TEXT)")
    database.close()


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize(
    "damage",
    [
        lambda index: index.write_bytes(b""),
        lambda index: index.write_bytes(os.urandom(20_000)),
        lambda index: index.write_bytes(index.read_bytes()[:-5000]),
        lambda index: index.write_bytes(index.read_bytes()[:50]),
        lambda index: index.write_bytes(index.read_bytes()[:4096] + bytes(8192)),
        lambda index: index.unlink(),
        other_program,
    ],
    ids=["empty", "garbage", "cut", "cut-in-header", "zeros", "gone", "another-program's"],
)
def test_a_damaged_memo_is_forgotten_and_made_anew(damage: Callable[[Path], None], file: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    remember(index, file)
    damage(index)
    memo = Memo(index)
    assert is_read(memo, file)
    memo.save()
    assert not is_read(Memo(index), file)


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("index", ["file/index", "nowhere/index", "."])
def test_a_memo_that_cannot_be_kept_is_done_without(index: str, file: Path, tmp_path: Path) -> None:
    remember(tmp_path / index, file)
    assert is_read(Memo(tmp_path / index), file)


@pytest.mark.usefixtures("later")
def test_a_memo_begun_before_its_directory_was_there_is_kept(file: Path, tmp_path: Path) -> None:
    memo = Memo(tmp_path / "store" / "index")
    memo.digest(file)
    (tmp_path / "store").mkdir()
    memo.save()
    assert not is_read(Memo(tmp_path / "store" / "index"), file)


def test_a_full_disk_does_not_stop_it(file: Path, tmp_path: Path) -> None:
    code = """
        import resource, sys, time
        from pathlib import Path
        from artifacts.memo import Memo
        now = time.time_ns
        time.time_ns = lambda: now() + 3600 * 10**9
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        memo = Memo(Path(sys.argv[1]))
        print(memo.digest(Path(sys.argv[2])))
        memo.save()
    """
    assert output(code, tmp_path / "index", file) == digest.of_file(file)


@pytest.fixture(scope="module")
def remembered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a file and a memo of it."""
    directory = tmp_path_factory.mktemp("remembered")
    (directory / "file").write_bytes(b"content")
    now = time.time_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time_ns", lambda: now() + HOUR_NS)
        remember(directory / "index", directory / "file")
    return directory


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_a_flipped_byte_never_becomes_a_wrong_digest(
    data: st.DataObject, remembered: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content, file = bytearray((remembered / "index").read_bytes()), remembered / "file"
    used = [place for place, byte in enumerate(content) if byte]
    place = data.draw(st.sampled_from(used) | st.integers(0, len(content) - 1))
    content[place] ^= data.draw(st.integers(1, 255))
    index = tmp_path_factory.mktemp("flipped") / "index"
    index.write_bytes(content)
    memo = Memo(index)
    assert memo.digest(file) == digest.of_file(file)
    memo.save()
    assert Memo(index).digest(file) == digest.of_file(file)


@pytest.mark.usefixtures("later")
def test_two_processes_share_a_memo(tmp_path: Path) -> None:
    files = [tmp_path / str(number) for number in range(20)]
    for file in files:
        file.write_bytes(file.name.encode() * SIZE_BYTES)
    code = """
        import sys, time
        from pathlib import Path
        from artifacts.memo import Memo
        now = time.time_ns
        time.time_ns = lambda: now() + 3600 * 10**9
        index, *files = map(Path, sys.argv[1:])
        for file in files:
            memo = Memo(index)
            memo.digest(file)
            memo.save()
    """
    index = tmp_path / "index"
    with running(code, index, *files[:12]) as one, running(code, index, *files[8:]) as other:
        for process in (one, other):
            assert process.communicate(timeout=60) == ("", "")
            assert process.returncode == 0
    memo = Memo(index)
    assert not any(is_read(memo, file) for file in files)


@pytest.mark.usefixtures("later")
def test_a_record_that_was_checked_is_known_until_its_file_changes(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_text("whole")
    memo = Memo(tmp_path / "index")
    text, answers, learn = memo.read_record(path)
    assert (text, answers) == ("whole", None)
    learn("key")
    memo.save()
    assert Memo(tmp_path / "index").read_record(path)[:2] == ("whole", "key")
    time.sleep(0.05)
    path.write_text("other")
    assert Memo(tmp_path / "index").read_record(path)[:2] == ("other", None)


def test_a_record_that_was_written_just_now_is_checked_again(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_text("whole")
    memo = Memo(tmp_path / "index")
    memo.read_record(path)[2]("key")
    assert memo.read_record(path)[1] is None


@pytest.mark.parametrize("column", ["text", "seal", "key"])
def test_a_note_is_whole_or_nothing(column: str, tmp_path: Path) -> None:
    memo = Memo(tmp_path / "index")
    memo.note("key", "text")
    assert memo.noted("key") == "text"
    memo.save()
    assert Memo(tmp_path / "index").noted("key") == "text"
    with sqlite3.connect(tmp_path / "index") as database:
        database.execute(f"UPDATE notes SET {column} = {column} || 'x'")  # noqa: S608
    database.close()
    assert [Memo(tmp_path / "index").noted(key) for key in ("key", "keyx")] == [None, None]


def test_only_the_latest_notes_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("artifacts.memo.NOTES", 3)
    memo = Memo(tmp_path / "index")
    for number in range(5):
        memo.note(str(number), "text")
        memo.save()
    again = Memo(tmp_path / "index")
    assert [again.noted(str(number)) for number in range(5)] == [None, None, "text", "text", "text"]


def test_many_files_are_hashed_at_once_and_answered_in_order(tmp_path: Path) -> None:
    paths = [tmp_path / str(number) for number in range(5)]
    for number, path in enumerate(paths):
        path.write_bytes(bytes([number]) * (SIZE_BYTES + number if number % 2 else 10))
    memo = Memo(tmp_path / "index")
    assert memo.digests(paths) == [digest.of_file(path) for path in paths]
    paths[3].unlink()
    with pytest.raises(FileNotFoundError):
        memo.digests(paths)
