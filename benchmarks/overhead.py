"""What trtforge costs beside a plain loop over targets, and what its own process holds: `make bench-overhead`.

    python -m benchmarks.overhead --work DIR

Plans of DenseNet-121, some seven seconds of TensorRT each, are built by `benchmarks/plain_loop.py` and by `trtforge
build` with an empty store, in turns, and the medians of the rounds' ratios are printed. Then a model of gigabytes is
built, and the most memory that the process `trtforge` itself held is printed: neither its children nor Prefect's server
count. Exits with 1 where one of these does not hold, with `runner=local` on all cores:

- for 1 target and for 3: at most 1.05 times the loop's time, and 2 s;
- for 3 targets on 2 cores or more: faster than the loop;
- less than 400 MB in the process, with Prefect as well.

On one core each build has its own process to start, and nothing beside it; that is printed, and promised nothing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from tests.pipelines import heavy

ROOT = Path(__file__).parents[1]
TARGETS = {"a100": "SM80", "l4": "SM89", "rtx5090": "SM120"}
RATIO, SECONDS, PEAK_BYTES = 1.05, 2.0, 400_000_000
LEAST_SECONDS = 10.0
"""What the loop has to take for the comparison to mean anything."""

_FLOW = """# @package _global_
steps:
  build: {stage: build, inputs: {onnx: model.onnx}}
"""


@dataclass(frozen=True)
class Took:
    """What one command took.

    Attributes:
        seconds: Wall time.
        cpu_s: Processor seconds, its children's too.
        peak_bytes: The most memory that its own process held.
    """

    seconds: float
    cpu_s: float
    peak_bytes: int


def taken(command: Sequence[str | Path], cores: set[int], log: Path) -> Took:
    """Runs `command` on these cores."""
    # The benchmark's environment may forbid bytecode; where trtforge is installed it is there.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    peak, before = 0, os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    started = time.perf_counter()
    with log.open("wb") as sink:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=sink, stderr=sink)
    os.sched_setaffinity(0, before)
    while (ended := os.wait4(process.pid, os.WNOHANG))[0] == 0:
        peak = max(peak, _peak_bytes(process.pid))
        time.sleep(0.01)
    _, status, usage = ended
    seconds = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"error: {' '.join(map(str, command))}\n{log.read_text()}")
    return Took(seconds, usage.ru_utime + usage.ru_stime, peak)


def _peak_bytes(pid: int) -> int:
    # `ru_maxrss` of `wait4` is the largest of the process and its children.
    status = Path(f"/proc/{pid}/status").read_text()
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)


@dataclass(frozen=True)
class Bench:
    """Where things lie, and how often each is run.

    Attributes:
        work: Made anew.
        rounds: How many.
    """

    work: Path
    rounds: int

    def loop(self, cores: set[int], targets: Sequence[str]) -> Took:
        """The plain loop."""
        script, capabilities = ROOT / "benchmarks/plain_loop.py", [TARGETS[name] for name in targets]
        command = [sys.executable, script, _densenet(), self._fresh("loop"), *capabilities]
        return taken(command, cores, self.work / "log")

    def forge(self, cores: set[int], runner: str, targets: Sequence[str], model: Path | None = None) -> Took:
        """`trtforge build` with an empty store."""
        (self.work / "config/flow").mkdir(parents=True, exist_ok=True)
        (self.work / "config/flow/plan.yaml").write_text(_FLOW)
        given = ["model=onnx", f"model.path={model or _densenet()}", "flow=plan", f"targets=[{','.join(targets)}]"]
        place = ["--config-dir", self.work / "config", f"store.root={self._fresh('store')}", f"runner={runner}"]
        return taken([sys.executable, "-m", "pipelines", "build", *given, *place], cores, self.work / "log")

    def ratio(self, what: str, loop: Callable[[], Took], forge: Callable[[], Took]) -> tuple[float, float]:
        """Runs both in turns and prints what they took; the medians of `forge` by `loop`, and of what it took more."""
        pairs = [(loop(), forge()) for _ in range(self.rounds)]
        ratios = [ours.seconds / plain.seconds for plain, ours in pairs]
        more = [ours.seconds - plain.seconds for plain, ours in pairs]
        cpu = statistics.median(ours.cpu_s / plain.cpu_s for plain, ours in pairs)
        plain_s = statistics.median(plain.seconds for plain, _ in pairs)
        print(
            f"{what}: {statistics.median(ratios):.2f} of the loop's {plain_s:.1f} s ({min(ratios):.2f} to "
            f"{max(ratios):.2f}), {statistics.median(more):+.1f} s; {cpu:.2f} of its processor seconds",
            flush=True,
        )
        if plain_s < LEAST_SECONDS:
            print(f"  the loop takes less than {LEAST_SECONDS:g} s here")
        allowed = statistics.median(ours.seconds - RATIO * plain.seconds for plain, ours in pairs)
        return statistics.median(ratios), allowed

    def _fresh(self, name: str) -> Path:
        shutil.rmtree(self.work / name, ignore_errors=True)
        (self.work / name).mkdir(parents=True)
        return self.work / name


def _densenet() -> Path:
    spec = find_spec("onnx")
    assert spec is not None
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0]) / "backend/test/data/light/light_densenet121.onnx"


def main() -> int:
    """Measures, prints; 1 where something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a directory for models and stores, made anew")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", type=int, default=16, help="of the large model, 64 MiB each")
    asked = parser.parse_args()
    bench, every = Bench(asked.work.resolve(), asked.rounds), os.sched_getaffinity(0)
    one, broken = {min(every)}, []
    print(f"{len(every)} cores, load {os.getloadavg()[0]:.1f}, medians of {asked.rounds} rounds")
    names, first = tuple(TARGETS), tuple(TARGETS)[:1]
    bench.loop(every, first), bench.forge(every, "local", first)  # bytecode, and files in the page cache

    def compared(cores: set[int], runner: str, targets: Sequence[str]) -> tuple[float, float]:
        what = f"{len(targets)} on {len(cores)} cores, runner={runner}"
        return bench.ratio(what, partial(bench.loop, cores, targets), partial(bench.forge, cores, runner, targets))

    for targets in (first, names):
        ratio, over = compared(every, "local", targets)
        broken += [f"1.05 times the loop and 2 s for {len(targets)}"] * (over > SECONDS)
        broken += ["faster than the loop"] * (targets is names and len(every) > 1 and ratio >= 1)
    compared(every, "prefect", names)
    compared(one, "local", names)
    bench.ratio(
        "runner=local, all cores by one",
        partial(bench.forge, one, "local", names),
        partial(bench.forge, every, "local", names),
    )

    model = heavy.save(asked.work.resolve() / "heavy", asked.weights)
    for runner in ("local", "prefect"):
        peak = bench.forge(every, runner, ["l4"], model).peak_bytes
        print(f"runner={runner}: {peak / 1e6:.0f} MB in trtforge's own process, {asked.weights * 64} MiB of weights")
        broken += [f"less than 400 MB with runner={runner}"] * (peak >= PEAK_BYTES)
    print(f"does not hold: {'; '.join(broken)}" if broken else "all of it holds")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
