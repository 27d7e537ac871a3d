"""Makes file operations of packing, unpacking and gc go wrong, one after the other, and looks at the store after each.

Runs with the shim loaded: `python -m tests.faults.packing_sweep SHIM ROOT CONTROL ACTION ONWARDS`. Prints the number of
operations.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from artifacts import gc, packing
from artifacts.errors import StoreError
from artifacts.record import Blob, Record
from artifacts.store import Hit, Store
from artifacts.verify import verify
from pipelines.errors import Exit
from tests.artifacts.test_store import add
from tests.faults.harness import KILL, Faults
from tests.faults.small_build import forked

DAY = 86400.0


def prepared(root: Path) -> dict[Blob, bytes]:
    """A store with the weights of a training and a plan with them, neither of which anything reaches."""
    store, weights = Store(root), os.urandom(100_000)
    contents = {add(store, content): content for content in (weights, b"plan" + weights)}
    base, plan = contents
    store.put(Record({"stage": "split"}, {"weights": base}))
    store.put(Record({"stage": "refit", "inputs": {"weights": base.digest}}, {"plan": plan}))
    return contents


def work(root: Path, contents: Mapping[Blob, bytes]) -> int:
    """Packs the plan, asks for its path, and collects the delta, which is needless then."""
    store = Store(root)
    try:
        packing.pack(store, -1, 30 * DAY, "gc", lambda holder: None)
        _, plan = contents
        store.path(plan)
        gc.collect(store, 30 * DAY, None, "gc", lambda holder: None)
    except StoreError:
        return Exit.STEP_FAILED
    return Exit.DONE


def check(root: Path, contents: Mapping[Blob, bytes]) -> None:
    """Nothing is lost, whole or as a delta."""
    store = Store(root)
    assert not verify(store).findings, verify(store).findings
    assert all(isinstance(store.lookup(key), Hit) for key in store.recorded())
    assert all(store.path(blob).read_bytes() == content for blob, content in contents.items())
    with store.scratch() as own:
        assert [path for path in (root / "tmp").iterdir() if path.is_dir()] == [own]


def main() -> None:
    shim, place, control, action, onwards = sys.argv[1:]
    faults, root = Faults(Path(shim), Path(place), Path(control)), Path(place)
    contents = prepared(root / "first")
    at, struck = 0, "the first"
    while struck:
        at += 1
        copy = Path(shutil.copytree(root / "first", root / f"störe {at}"))
        faults.arm(at, int(action), onwards == "onwards")
        code = forked(lambda copy=copy: work(copy, contents))  # type: ignore[misc]
        faults.disarm()
        struck = faults.struck
        allowed = (-9,) if int(action) == KILL and struck else (Exit.DONE, Exit.STEP_FAILED)
        try:
            assert code in allowed, f"exit code {code}"
            check(copy, contents)
        except AssertionError as error:
            raise AssertionError(f"operation {at}, {struck}: {error}") from error
        shutil.rmtree(copy)
    print(at - 1)


if __name__ == "__main__":
    main()
