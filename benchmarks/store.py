"""What looking costs: `make bench-store`. Prints ratios, since only these travel from machine to machine.

Five questions, each answered in one run on this machine:

- a build with nothing to do against `dvc repro` with nothing to do, on a DAG of the same stages, edges and bytes;
- where the time of that build goes;
- `status` of a catalog of models (`benchmarks/catalog.py`), cold, and warm for an eighth of it up to all of it;
- the lookup of one record in a small and in a large store, and what a fresh `records.sqlite` costs in the large one;
- hashing against `sha256sum`.

dvc is only measured, never imported: `--dvc PATH` says where its command is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from artifacts import digest
from artifacts.index import About, Index
from artifacts.memo import Memo
from artifacts.record import Record
from artifacts.store import Store
from benchmarks import catalog

TRTFORGE = Path(sys.executable).with_name("trtforge")
DIGITS = Path(__file__).parents[1] / "conf/data/digits"
FAST = 0.25
ENOUGH = 0.4


def main() -> None:
    """Runs what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dvc", type=Path, help="The dvc command; without it dvc is left out.")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--models", type=int, default=1000)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--only", nargs="*", default=["nothing", "phases", "catalog", "lookup", "hashing"])
    parser.add_argument("--directory", type=Path, help="Where to work; a temporary directory otherwise.")
    asked = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody installs trtforge to compile it at each start
    os.environ.pop("TRTFORGE_STORE", None)
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, load {os.getloadavg()[0]:.1f}")
    with workplace(asked.directory) as home:
        if "nothing" in asked.only or "phases" in asked.only:
            nothing_to_do(home / "nothing", asked.dvc, asked.runs, "phases" in asked.only)
        if "catalog" in asked.only:
            whole_catalog(home / "catalog", asked.models)
        if "lookup" in asked.only:
            lookups(home / "lookup", asked.records)
        if "hashing" in asked.only:
            hashing(home / "hashing", asked.runs)


@contextmanager
def workplace(given: Path | None) -> Iterator[Path]:
    """A directory that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir=given, prefix="bench-store-") as home:
        yield Path(home)


def seconds(work: Callable[[], object]) -> float:
    """How long `work` takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run(*command: object, cwd: Path) -> None:
    """Runs a command that has to succeed."""
    subprocess.run([str(word) for word in command], cwd=cwd, check=True, stdout=subprocess.DEVNULL)


def spread(values: Sequence[float]) -> str:
    """`0.21 (0.19 to 0.24)`: the median and the quartiles."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3f} (quartiles {low:.3f} to {high:.3f})"


# A build with nothing to do


def nothing_to_do(home: Path, dvc: Path | None, runs: int, phases: bool) -> None:
    """The default flow for four targets, and the same DAG for dvc; both up to date."""
    home.mkdir(parents=True)
    arguments = ["runner=local", f"targets=[{','.join(catalog.TARGETS)}]"]
    build = [TRTFORGE, "build", *arguments]
    run(*build, "-q", cwd=home)
    time.sleep(2.5)  # what is younger is not remembered
    run(*build, "-q", cwd=home)
    print(f"\n# a build with nothing to do: {runs} runs of each, alternately")
    if dvc is not None:
        repro = [dvc, "repro", "-q"]
        stages, size_bytes = write_dvc(home / "dvc", home / ".trtforge", dvc)
        run(*repro, cwd=home / "dvc")
        time.sleep(2.5)
        run(*repro, cwd=home / "dvc")
        pairs = [
            (seconds(lambda: run(*build, cwd=home)), seconds(lambda: run(*repro, cwd=home / "dvc")))
            for _ in range(runs)
        ]
        print(f"both: {stages} stages, {size_bytes / 1e6:.1f} MB of outputs")
        print(f"trtforge build   {spread([ours for ours, _ in pairs])} s")
        print(f"dvc repro        {spread([theirs for _, theirs in pairs])} s")
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        print(f"ratio            {spread([a / b for a, b in pairs])}: {verdict(ratio)}")
    if phases:
        where_the_time_goes(home, arguments, runs)


def verdict(ratio: float) -> str:
    """What a ratio to dvc means."""
    return "within the target" if ratio <= FAST else "enough" if ratio <= ENOUGH else "TOO SLOW"


def write_dvc(home: Path, store: Path, dvc: Path) -> tuple[int, int]:
    """A DAG for dvc with the stages, edges and sizes that the records of `store` tell; (stages, bytes)."""
    home.mkdir()
    records = [Record.loads(path.read_text()) for path in sorted((store / "records").glob("*.json"))]
    records.sort(key=lambda record: record.fields["stage"] == "publish")  # it hands on a plan that another made
    files: dict[str, str] = {}  # by digest
    stages: dict[str, Any] = {}
    size_bytes = 0
    for record in records:
        name = f"{record.fields['stage']}_{record.key[:12]}"
        outs = {f"{name}_{output}": blob for output, blob in record.outputs.items()}
        for file, blob in outs.items():
            files.setdefault(blob.digest, file)
            size_bytes += blob.bytes
        commands = [f"head -c {blob.bytes} /dev/urandom > {file}" for file, blob in outs.items()]
        stages[name] = {"cmd": " && ".join(commands), "outs": list(outs)}
    for record, stage in zip(records, stages.values(), strict=True):
        deps = {files.get(each, each) for each in _inputs(record)} - set(stage["outs"])
        stage["deps"] = sorted(deps)
        for source in deps - set(files.values()):
            (home / source).write_bytes(os.urandom(80_000))  # the model's own files
    (home / "dvc.yaml").write_text(json.dumps({"stages": stages}))  # JSON is YAML
    run(dvc, "init", "--no-scm", "-q", cwd=home)
    for setting in ("core.analytics", "core.check_update"):
        run(dvc, "config", setting, "false", cwd=home)
    return len(stages), size_bytes


def _inputs(record: Record) -> list[str]:
    found = record.fields["inputs"].values()
    return [each for value in found for each in (value if isinstance(value, list) else [value])]


_PHASES = """
import json, sys, time
laps, last = {}, time.perf_counter()
def lap(name):
    global last
    now = time.perf_counter(); laps[name] = 1000 * (now - last); last = now
import click, pipelines.cli; lap("imports: command line, stages")
import pipelines.session, pipelines.document, pipelines.reporting; lap("imports: store, planning, printing")
from pipelines.configs import Configs
configs = Configs([]); configs.compose(sys.argv[1:]); lap("config, as it was kept")
from pipelines.session import open_session
session = open_session(sys.argv[1:], [], lambda *a: None, configs=configs); lap("planning, hashing, lookups")
session.settle(); lap("refs and published directories")
pipelines.document.print_table(session); lap("printing")
assert "hydra" not in sys.modules and "rich" not in sys.modules
from conf.compose import compose; lap("not spent: importing Hydra and OmegaConf")
compose(sys.argv[1:]); lap("not spent: composing")
print(json.dumps(laps), file=sys.stderr)
"""


def where_the_time_goes(home: Path, arguments: Sequence[str], runs: int) -> None:
    """Prints the phases of a build with nothing to do, medians in ms."""
    command = [sys.executable, "-c", _PHASES, *arguments]
    told = [subprocess.run(command, cwd=home, check=True, capture_output=True, text=True).stderr for _ in range(runs)]
    laps = [json.loads(text) for text in told]
    bare = [seconds(lambda: run(sys.executable, "-c", "pass", cwd=home)) for _ in range(runs)]
    print(f"\n# where its time goes, ms, medians of {runs}")
    print(f"{1000 * statistics.median(bare):7.1f}  Python itself")
    for name in laps[0]:
        print(f"{statistics.median(each[name] for each in laps):7.1f}  {name}")


# A catalog


def whole_catalog(home: Path, count: int) -> None:
    """`status` of all models, and of parts."""
    home.mkdir(parents=True)
    directory = catalog.write_models(home, DIGITS, count)
    common = ["--config-dir", directory, *catalog.overrides()]
    run(TRTFORGE, "build", "-q", f"model={catalog.name_of(0)}", *common, cwd=home)
    back = Path.cwd()
    os.chdir(home)
    try:
        made = seconds(lambda: catalog.derive(home, directory, count))
    finally:
        os.chdir(back)
    time.sleep(2.5)
    print(
        f"\n# status of a catalog: {count} models x {len(catalog.TARGETS)} targets, all cached, {digest.cores()} cores"
    )
    print(f"one was built, the others are derived: {made:.0f} s (benchmarks/catalog.py)")
    cold, steps, _ = _status(home, common, count)
    print(f"the first time, when every config is composed  {cold:6.1f} s")
    _status(home, common, count)  # and the second checks every record
    points = []
    for share in (count // 8, count // 4, count // 2, count):
        taken = [_status(home, common, share) for _ in range(5)]
        taken_s, memory_bytes = statistics.median(each[0] for each in taken), max(each[2] for each in taken)
        points.append((steps * share // count, taken_s))
        print(
            f"{share:6} models {points[-1][0]:7} steps  {taken_s:6.2f} s  {memory_bytes / 1e6:6.0f} MB, all processes"
        )
    slope, start = statistics.linear_regression([p[0] for p in points], [p[1] for p in points])
    print(f"slope {1e6 * slope:.0f} us a step, start {start:.2f} s; largest distance from that line "
          f"{max(abs(start + slope * x - y) / y for x, y in points):.0%}")  # fmt: skip


def _status(home: Path, common: Sequence[object], count: int) -> tuple[float, int, int]:
    """(seconds, steps, peak bytes of all processes) of one `status -m` of `count` models, all of them cached."""
    command = [str(word) for word in (TRTFORGE, "status", "-m", f"model=glob([{','.join(_globs(count))}])", *common)]
    started = time.perf_counter()
    with subprocess.Popen(command, cwd=home, stdout=subprocess.PIPE, text=True) as process:
        peak = 0
        assert process.stdout is not None
        lines = []
        for number, line in enumerate(process.stdout):
            lines.append(line)
            if number % 50 == 0:
                peak = max(peak, _resident(process.pid))
    taken = time.perf_counter() - started
    assert process.returncode == 0
    cached = [line for line in lines if line.rstrip().endswith("steps cached") and ": all " in line]
    assert len(cached) == count, lines[-1]
    return taken, sum(int(line.rpartition(": all ")[2].split()[0]) for line in cached), peak


def _globs(count: int) -> Iterator[str]:
    """Patterns that match the first `count` models: `net_00*`, `net_010*`, `net_0120`."""
    first = 0
    for width in (1000, 100, 10, 1):
        while first + width <= count:
            yield catalog.name_of(first)[: len(catalog.name_of(0)) - len(str(width)) + 1] + ("*" if width > 1 else "")
            first += width


def _resident(pid: int) -> int:
    """Peak resident bytes of a process and its children."""
    own = [pid, *(int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
    total = 0
    for each in own:
        try:
            lines = Path(f"/proc/{each}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    return total


# One lookup


def lookups(home: Path, many: int) -> None:
    """One lookup in a store of 100 records and in one of `many`; and the index of the many, from nothing."""
    print("\n# one record")
    stores = {count: _store(home / str(count), count) for count in (100, many)}
    time.sleep(2.5)
    costs: dict[tuple[int, str], float] = {}
    for how in ("cold", "warm"):
        for count, (store, keys) in stores.items():
            asked = random.Random(count).sample(keys, 100)  # noqa: S311 - not a secret
            if how == "cold":
                _forget(store, asked)
                store = Store(store.root)
            else:
                for key in asked:
                    store.lookup(key)
            each = [seconds(lambda store=store, key=key: store.lookup(key)) for key in asked]  # type: ignore[misc]
            costs[count, how] = statistics.median(each)
            print(f"{how}: {1e6 * costs[count, how]:7.0f} us a lookup among {count} records")
        print(f"{how}: ratio {costs[many, how] / costs[100, how]:.2f}")
    store = stores[many][0]
    question = {"stage": "build", "config": {"n": -1}, "facts": {}}
    about = About("build", None, "net", "int8")
    print(f"a fresh records.sqlite: {seconds(lambda: Index(store).nearest(question, about)):.1f} s for {many} records")
    print(f"the same, once it is there: {seconds(lambda: Index(store).nearest(question, about)):.3f} s")
    store.put(Record({"stage": "build", "version": 1, "config": {"n": -2}, "facts": {}}, {}))
    print(f"the same, after one more record: {seconds(lambda: Index(store).nearest(question, about)):.3f} s")


def _store(root: Path, count: int) -> tuple[Store, list[str]]:
    """A store of `count` records, written as files without the syncs, which nobody here waits for."""
    store, keys = Store(root), []
    (root / "records").mkdir(parents=True)
    made = {"step": "build", "target": None, "model": "net", "flow": "int8", "finished": "2026-01-01T00:00:00+00:00"}
    for number in range(count):
        record = Record({"stage": "build", "version": 1, "config": {"n": number}, "facts": {}}, {}, provenance=made)
        keys.append(record.key)
        store.record_path(keys[-1]).write_text(record.dumps())
    return store, keys


def _forget(store: Store, keys: Sequence[str]) -> None:
    """Puts the records' pages out of the page cache, as far as the kernel agrees."""
    for key in keys:
        with store.record_path(key).open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# Hashing


def hashing(home: Path, runs: int) -> None:
    """One file of 1 GiB against `sha256sum`, and several files at once."""
    home.mkdir(parents=True)
    large = home / "large"
    with large.open("wb") as file:
        for _ in range(1024):
            file.write(os.urandom(1 << 20))
    pairs = [
        (seconds(lambda: run("sha256sum", large, cwd=home)), seconds(lambda: digest.of_file(large)))
        for _ in range(max(3, runs // 3))
    ]
    print("\n# hashing 1 GiB, on one core, alternately with sha256sum; what both read is in memory")
    print(f"sha256sum {1.073 / statistics.median(p[0] for p in pairs):.2f} GB/s, "
          f"trtforge {1.073 / statistics.median(p[1] for p in pairs):.2f} GB/s")  # fmt: skip
    print(f"speed against sha256sum: {spread([theirs / ours for theirs, ours in pairs])}")
    parts = [home / f"part{number}" for number in range(4)]
    for part in parts:
        shutil.copyfile(large, part)
        os.truncate(part, 256 << 20)
    one = min(seconds(lambda: [digest.of_file(part) for part in parts]) for _ in range(3))
    several = min(seconds(lambda: Memo(home / "none" / "memo").digests(parts)) for _ in range(3))
    print(f"four files of 256 MiB at once: {one / several:.2f} times as fast as one after the other, "
          f"{digest.cores()} cores")  # fmt: skip
    assert Memo(home / "none" / "memo").digests(parts)[0] == hashlib.sha256(parts[0].read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
