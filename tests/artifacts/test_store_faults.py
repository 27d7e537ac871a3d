"""What happens to a store on a full disk, under kill -9, and with many at it at once."""

from __future__ import annotations

from pathlib import Path

import pytest

from artifacts import digest
from artifacts.errors import StoreError
from artifacts.record import Record
from artifacts.store import Hit, Miss, Store
from tests.artifacts.processes import output, running, said
from tests.artifacts.test_store import add

KEY = digest.of_bytes(b"key")


def test_a_file_where_the_store_should_be_is_an_error_with_a_next_step(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(tmp_path / "file" / "store")
    assert store.lookup(KEY) == Miss()
    record = Record({"stage": "x"}, {})
    for write in (
        lambda: store.put(record),
        lambda: store.set_ref("a", KEY),
        lambda: add(store),
        lambda: store.lock(KEY, "me", print).__enter__(),
    ):
        with pytest.raises(StoreError, match="cannot be written: Not a directory") as caught:
            write()
        assert "store.root=" in caught.value.next_step


WRITE = """
import sys
from pathlib import Path
from artifacts.errors import StoreError
from artifacts.record import Record
from artifacts.store import Store
store, record = Store(Path(sys.argv[1])), Record({"stage": "x"}, {})
for write in (
    lambda: store.lock(record.key, "me", print).__enter__(),
    lambda: store.put(record),
    lambda: store.set_ref("a", record.key),
):
    try:
        write()
    except StoreError as error:
        print(error.what.partition("cannot be written: ")[2], "|", error.next_step)
"""
LIMIT = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))"
FILL = """
import contextlib, subprocess, sys
if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", sys.argv[1]]).returncode:
    sys.exit("no tmpfs can be mounted here")
with contextlib.suppress(OSError), open(sys.argv[1] + "/full", "wb", buffering=0) as file:
    while True:
        file.write(bytes(4096))
"""


def test_writes_that_fail_are_errors_and_leave_nothing(tmp_path: Path) -> None:
    said = output(LIMIT + WRITE, tmp_path / "store").splitlines()
    assert [line.partition("directory you")[0] for line in said] == ["File too large | choose a "] * 3
    left = [path for path in (tmp_path / "store").rglob("*") if path.is_file() and path.parent.name != "locks"]
    assert left == []


def test_a_full_disk_says_to_make_room(tmp_path: Path) -> None:
    as_root = "import os, sys; os.execvp('unshare', ['unshare', '-rm', sys.executable, '-c', *sys.argv[1:]])"
    with running(as_root, FILL + WRITE, tmp_path) as process:
        stdout, stderr = process.communicate(timeout=60)
    if process.returncode and ("no tmpfs" in stderr or "unshare" in stderr):
        pytest.skip(f"no small disk can be mounted here: {stderr.strip().splitlines()[-1]}")
    assert process.returncode == 0, stderr
    said = [line.partition(", or put")[0] for line in stdout.splitlines()]
    assert said == ["No space left on device | make room"] * 3


def test_text_that_is_not_ascii_is_kept_in_any_locale(tmp_path: Path) -> None:
    code = """
        import os, sys
        if "again" not in sys.argv:
            plain = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
            os.execve(sys.executable, [sys.executable, "-c", sys.orig_argv[2], sys.argv[1], "again"], plain)
        from pathlib import Path
        from artifacts.record import Record
        from artifacts.store import Hit, Store
        store, record = Store(Path(sys.argv[1])), Record({"stage": "gr\\xf6\\xdfe"}, {})
        store.put(record)
        assert store.lookup(record.key) == Hit(record)
    """
    output(code, tmp_path)
    record = Record({"stage": "größe"}, {})
    assert Store(tmp_path).lookup(record.key) == Hit(record)


def test_a_process_killed_with_9_leaves_only_whole_objects(tmp_path: Path) -> None:
    code = """
        import os, sys
        from pathlib import Path
        from artifacts.record import Record
        from artifacts.store import Store
        store = Store(Path(sys.argv[1]))
        for number in range(10**6):
            with store.scratch() as directory:
                (directory / "output").write_bytes(os.urandom(300_000))
                blob = store.add(directory / "output")
                store.put(Record({"stage": str(number)}, {"output": blob}))
                store.set_ref("last", Record({"stage": str(number)}, {}).key)
            print(number, flush=True)
    """
    for kept in (0, 1, 3):
        with running(code, tmp_path) as process:
            while int(said(process)) < kept:
                pass
            process.kill()
            process.wait()
        store = Store(tmp_path)
        for path in (tmp_path / "objects").rglob("*"):
            assert path.is_dir() or digest.of_file(path) == path.parent.name + path.name
        records = [path.stem for path in (tmp_path / "records").iterdir()]
        assert len(records) > kept
        assert all(isinstance(store.lookup(key), Hit) for key in records)
        assert store.ref("last") in records
    with store.scratch() as own:
        assert [path for path in (tmp_path / "tmp").iterdir() if path.is_dir()] == [own]


def test_two_processes_that_ask_for_one_key_build_it_once(tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        from artifacts.record import Record
        from artifacts.store import Hit, Store
        store, record = Store(Path(sys.argv[1])), Record({"stage": "build"}, {})
        with store.lock(record.key, "me", lambda holder: None):
            if isinstance(store.lookup(record.key), Hit):
                print("cached")
            else:
                time.sleep(0.3)
                store.put(record)
                print("built")
    """
    with running(code, tmp_path) as one, running(code, tmp_path) as other:
        assert sorted([said(one), said(other)]) == ["built", "cached"]
