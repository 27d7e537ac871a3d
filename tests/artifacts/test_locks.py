"""Locks between threads and processes, and scratch directories that outlive nobody."""

from __future__ import annotations

import fcntl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest

from artifacts.locks import exclusive, first_free, is_held, scratch, shared
from tests.artifacts.processes import output, running, said

HOLD = """
    import sys, time
    from pathlib import Path
    from artifacts.locks import exclusive
    with exclusive(Path(sys.argv[1]), "a build in another process", lambda holder: None):
        print("held", flush=True)
        sys.stdin.readline()
"""
SCRATCH = """
    import sys
    from pathlib import Path
    from artifacts.locks import scratch
    with scratch(Path(sys.argv[1])) as directory:
        (directory / "file").write_text("work")
        print(directory, flush=True)
        sys.stdin.readline()
"""
COUNT = """
    import sys
    from pathlib import Path
    from artifacts.locks import exclusive
    lock, counter = map(Path, sys.argv[1:])
    for _ in range(50):
        with exclusive(lock, "", lambda holder: None):
            counter.write_text(str(int(counter.read_text()) + 1))
"""


class StopWaitingError(Exception):
    pass


def give_up(holder: str) -> None:
    raise StopWaitingError(holder)


@contextmanager
def held_elsewhere(lock: Path) -> Iterator[None]:
    with running(HOLD, lock) as process:
        assert said(process) == "held"
        yield


def test_who_waits_hears_who_holds_it_and_may_give_up(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with (
        held_elsewhere(lock),
        pytest.raises(StopWaitingError, match=r"^a build in another process$"),
        exclusive(lock, "me", give_up),
    ):
        raise AssertionError("two hold it")


def test_a_thread_excludes_another_of_its_process(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    order: list[str] = []

    def other() -> None:
        with exclusive(lock, "other", lambda holder: order.append(holder)):
            order.append("in")

    with exclusive(lock, "me", give_up):
        thread = threading.Thread(target=other)
        thread.start()
        time.sleep(0.2)
        order.append("out")
    thread.join()
    assert order[0] == "me"
    assert order.index("out") < order.index("in")


def test_no_count_is_lost_between_processes(tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    arguments = (COUNT, tmp_path / "lock", counter)
    with running(*arguments) as one, running(*arguments) as two, running(*arguments) as three:
        for process in (one, two, three):
            assert process.communicate(timeout=60) == ("", "")
    assert counter.read_text() == "150"


def test_a_holder_killed_with_9_frees_it_at_once(tmp_path: Path) -> None:
    with running(HOLD, tmp_path / "lock") as process:
        assert said(process) == "held"
        process.kill()
        process.wait()
        with exclusive(tmp_path / "lock", "me", give_up):
            pass


def test_an_error_inside_frees_it_and_leaves_the_file_empty(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), exclusive(tmp_path / "lock", "me", give_up):
        raise ZeroDivisionError
    assert (tmp_path / "lock").read_text() == ""
    with exclusive(tmp_path / "lock", "me", give_up):
        assert (tmp_path / "lock").read_text() == "me"
    assert (tmp_path / "lock").read_text() == ""


def test_a_lock_that_cannot_be_made_is_an_os_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"), exclusive(tmp_path / "file" / "lock", "me", give_up):
        pass


def test_of_several_the_first_that_is_free_is_held_and_the_others_stay_free(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in "abc"]
    with held_elsewhere(paths[0]), first_free(paths, "me", give_up) as held:
        assert held == paths[1]
        assert [is_held(path) for path in paths] == [True, True, False]
        with (
            first_free(paths, "other", give_up),
            pytest.raises(StopWaitingError, match="in another process"),
            first_free(paths, "third", give_up),
        ):
            raise AssertionError("four hold three")
    assert not is_held(paths[1])


def test_scratch_vanishes_with_all_that_is_in_it(tmp_path: Path) -> None:
    with scratch(tmp_path / "tmp") as directory:
        (directory / "deep" / "er").mkdir(parents=True)
        (directory / "deep" / "er" / "file").write_text("work")
        (directory / "deep" / "er" / "file").chmod(0o444)
    with pytest.raises(ZeroDivisionError), scratch(tmp_path / "tmp"):
        raise ZeroDivisionError
    assert list((tmp_path / "tmp").iterdir()) == []


def test_scratch_that_was_moved_away_is_not_missed(tmp_path: Path) -> None:
    with scratch(tmp_path / "tmp") as directory:
        directory.rename(tmp_path / "kept")
    assert (tmp_path / "kept").is_dir()
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_next_sweeps_the_scratch_of_a_killed_process_and_of_no_live_one(tmp_path: Path) -> None:
    with running(SCRATCH, tmp_path) as dead, running(SCRATCH, tmp_path) as live:
        left, used = Path(said(dead)), Path(said(live))
        dead.kill()
        dead.wait()
        assert (left / "file").exists()
        with scratch(tmp_path) as own, scratch(tmp_path) as another:
            assert {path for path in tmp_path.iterdir() if path.is_dir()} == {used, own, another}
            assert (used / "file").read_text() == "work"
        assert live.communicate("go on\n", timeout=60) == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_a_sweeper_that_comes_late_leaves_what_was_made_anew(tmp_path: Path) -> None:
    """It found a guard, and was held up before it could lock it."""
    guard, directory = tmp_path / "1-00.lock", tmp_path / "1-00"
    guard.touch()
    found, go_on = threading.Event(), threading.Event()

    def pause(frame: FrameType, event: str, argument: object) -> None:
        if frame.f_code.co_name == "_try_lock" and not found.is_set():
            found.set()
            go_on.wait()

    def sweep_late() -> None:
        sys.settrace(pause)
        with scratch(tmp_path):
            pass

    sweeper = threading.Thread(target=sweep_late)
    sweeper.start()
    found.wait()
    guard.unlink()
    with guard.open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        directory.mkdir()
        go_on.set()
        sweeper.join()
        assert sorted(tmp_path.iterdir()) == [directory, guard]


def test_no_live_scratch_is_swept_while_many_begin_and_end(tmp_path: Path) -> None:
    code = """
        import sys, threading
        from pathlib import Path
        from artifacts.locks import scratch
        def work():
            for number in range(150):
                with scratch(Path(sys.argv[1])) as directory:
                    (directory / "file").write_text(str(number))
                    assert (directory / "file").read_text() == str(number)
                    assert directory.with_name(directory.name + ".lock").exists()
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads: thread.start()
        for thread in threads: thread.join()
    """
    with running(code, tmp_path) as one, running(code, tmp_path) as two:
        for process in (one, two):
            assert process.communicate(timeout=120) == ("", "")
    assert output("import sys, os; print(os.listdir(sys.argv[1]))", tmp_path) == "[]"


def test_many_share_what_one_alone_must_wait_for(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    with shared(lock, give_up), shared(lock, give_up):
        assert is_held(lock)
        with pytest.raises(StopWaitingError), exclusive(lock, "gc", give_up):
            pass
    assert not is_held(lock)
    with exclusive(lock, "gc", give_up), pytest.raises(StopWaitingError, match=r"^gc$"), shared(lock, give_up):
        pass


def test_scratch_that_cannot_be_removed_is_left_to_the_next_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, scratch(tmp_path) as left:
        patch.setattr("shutil.rmtree", lambda *args, **options: None)  # a disk that lets go of nothing
        (left / "file").write_text("work")
    assert left.with_name(f"{left.name}.lock").exists()
    with scratch(tmp_path):
        assert not left.exists()
