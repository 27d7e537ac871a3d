"""Makes file operations of a build go wrong, one after the other, and looks at the store after each.

Runs with the shim loaded: `python -m tests.faults.sweep BUILD SHIM ROOT CONTROL ACTION ONWARDS SHARE SHARES`. BUILD is
`small`, `shared` or `real`; of every SHARES operations it takes number SHARE. Prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from artifacts import digest, locks
from artifacts.errors import StoreError
from artifacts.exchange import Exchange
from artifacts.remote import Remote
from artifacts.store import Hit, Store
from artifacts.verify import verify
from pipelines.errors import Exit
from tests.faults import small_build
from tests.faults.harness import KILL, Faults
from tests.faults.small_build import forked

EXPECTED = b"a word " * 100 + b"more " * 100
BUG = 98
ENDS = (Exit.DONE, Exit.STEP_FAILED, Exit.WRONG_CALL)


def small(root: Path, **config: Any) -> int:
    """A small build, as the command line ends it."""
    try:
        return int(small_build.build(root, **config).exit)
    except StoreError:
        return int(Exit.STEP_FAILED)
    except BaseException:
        traceback.print_exc()
        return BUG


def shared(root: Path) -> int:
    """A small build with a remote, in a directory that meets the same faults."""
    return small(root, remote=str(remote_of(root)))


def remote_of(root: Path) -> Path:
    """Where the shared build's remote is."""
    return root.with_name(f"{root.name} remote")


def real(root: Path) -> int:
    """The command line, in this process: what it imports is imported already."""
    from pipelines import cli

    said = os.open(root.with_name(f"{root.name}.out"), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(said, 1)
    os.dup2(said, 2)
    own = str(root.parent / "own")
    sys.argv = ["trtforge", "build", "-q", "--config-dir", own, "runner=local", "flow=short", f"store.root='{root}'"]
    cli.main()
    return BUG  # it never returns


def published(root: Path) -> str:
    """The digest of the plan that the small build published."""
    key = Store(root).ref(f"published/{small_build.PLACE}")
    directory = root / "published" / small_build.PLACE
    assert key
    assert directory.resolve().name == key
    assert (directory / "model.plan").read_bytes() == EXPECTED
    return digest.of_file(directory / "model.plan")


def fetched(root: Path) -> str:
    """What another machine gets that fetches all that the remote has, and builds the rest."""
    remote, other = Remote(str(remote_of(root)), 60), root.with_name(f"{root.name} other")
    exchange = Exchange(Store(other), remote)
    for key in exchange.recorded():
        exchange.fetch(key, lambda holder: None)  # raises if a record promises what is not there
    assert not verify(Store(other)).findings
    ours = Exchange(Store(root), remote)
    for record in map(ours.store.record, ours.store.recorded()):
        assert record is not None
        ours.send(record)
    assert ours.recorded() == kept(root)
    assert forked(lambda: small(other, remote=str(remote_of(root)))) == Exit.DONE
    assert kept(other) == kept(root)
    return published(root) + published(other)


def exported(root: Path) -> str:
    """The digests of all that the real build answered."""
    store = Store(root)
    records = [record for record in map(store.record, store.recorded()) if record]
    found = {record.key: [blob.digest for blob in record.outputs.values()] for record in records}
    return digest.of_json(found)


BUILDS: dict[str, tuple[Callable[[Path], int], Callable[[Path], str]]] = {
    "small": (small, published),
    "shared": (shared, fetched),
    "real": (real, exported),
}
"""How to build, and what came of it."""

FLOW = """# @package _global_
steps:
  export:
    stage: export
    inputs: {onnx: model.onnx}
"""
"""One step: with the model's signature two child processes, each of which costs half a second."""


def kept(root: Path) -> set[str]:
    return {path.stem for path in (root / "records").glob("*.json")}


def check(root: Path) -> None:
    """No half file, no wrong byte, no lock: whatever is there is whole."""
    assert not verify(Store(root)).findings, verify(Store(root)).findings
    assert all(isinstance(Store(root).lookup(key), Hit) for key in kept(root))
    held = [path for path in (root / "locks").glob("*") if locks.is_held(path)]
    assert not held, held


def one(faults: Faults, kind: str, root: Path, expected: str, fault: tuple[int, int, bool]) -> bool:
    """One fault and all that is checked after it; whether the fault came to pass."""
    build, result = BUILDS[kind]
    records = len(kept(root.with_name("first")))
    faults.arm(*fault)
    code = forked(lambda: build(root))
    faults.disarm()
    struck = faults.struck
    try:
        assert code in ((-9, *ENDS) if fault[1] == KILL and struck else ENDS), f"exit code {code}"
        check(root)
        assert code != Exit.DONE or len(kept(root)) == records
        before = kept(root)
        assert forked(lambda: build(root)) == Exit.DONE
        check(root)
        assert before <= kept(root)
        assert len(kept(root)) == records, kept(root)
        assert result(root) == expected
        with Store(root).scratch() as own:  # whoever writes next sweeps; a build with nothing to do writes nothing
            assert [path for path in (root / "tmp").iterdir() if path.is_dir()] == [own]
    except AssertionError as error:
        said = root.with_name(f"{root.name}.out")
        more = said.read_text() if said.exists() else ""
        raise AssertionError(f"operation {fault[0]}, {struck}: {error} {more}") from error
    return bool(struck)


def main() -> None:
    kind, shim, place, control, action, onwards, share, shares = sys.argv[1:]
    faults, root = Faults(Path(shim), Path(place), Path(control)), Path(place)
    if kind == "real":
        from conf.compose import compose
        from pipelines import cli, document, reporting, schedule, session  # noqa: F401 - for all forks at once

        (root / "own/flow").mkdir(parents=True)
        (root / "own/flow/short.yaml").write_text(FLOW)
        compose(["flow=short"], [root / "own"])
    assert forked(lambda: BUILDS[kind][0](root / "first")) == 0
    expected = BUILDS[kind][1](root / "first")
    at, bad = 0, []
    while True:
        at += 1
        if at % int(shares) != int(share):
            continue
        try:
            if not one(faults, kind, root / f"störe {at}", expected, (at, int(action), onwards == "onwards")):
                break
        except AssertionError as error:
            bad.append(str(error))
            print(error, file=sys.stderr, flush=True)
        for name in ("", " remote", " other"):
            shutil.rmtree(root / f"störe {at}{name}", ignore_errors=True)
    print(json.dumps({"operations": at - 1, "bad": bad}))


if __name__ == "__main__":
    main()
