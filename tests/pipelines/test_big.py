"""A model of 2.25 GiB from its ONNX file to a plan, and the memory that each step takes: `make big`, some minutes."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from stages.runtimes import WITHOUT_VALIDATION
from tests.pipelines import heavy
from tests.pipelines.conftest import Forge, Ran

pytestmark = pytest.mark.big

WEIGHTS = 36
SIZE = WEIGHTS * 4 * heavy.SIDE**2
SMALL = 300_000_000
"""What the steps that only look at a model, or copy it, may take."""


@dataclass
class Peak:
    """The most memory that a process had.

    Attributes:
        resident: All of it, mapped files too, in bytes.
        own: Without mapped files, which the kernel takes back when it needs to.
    """

    resident: int = 0
    own: int = 0


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("big")
    heavy.save(home / "net", WEIGHTS)
    yield home
    shutil.rmtree(home)


@pytest.fixture
def forge(home):
    """With an empty store: what all of these tests leave would be 14 GB."""
    forge = Forge(home)
    yield forge
    shutil.rmtree(forge.store)


def watched(forge: Forge, *overrides: str) -> tuple[Ran, dict[str, Peak]]:
    """A build, and the peak of each stage's process."""
    peaks: dict[str, Peak] = {}
    done = threading.Event()
    watcher = threading.Thread(target=_watch, args=(forge.store, peaks, done.is_set))
    watcher.start()
    try:
        ran = forge.build("model=onnx", "model.path=net/heavy.onnx", *overrides)
    finally:
        done.set()
        watcher.join()
    assert ran.code == 0, ran.err
    return ran, peaks


def _watch(store: Path, peaks: dict[str, Peak], is_done: Callable[[], bool]) -> None:
    while not is_done():
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
                job = Path(words[-2].decode()) if len(words) > 2 else Path()
                if job.name != "job.json" or not job.is_relative_to(store):
                    continue
                stage = json.loads(job.read_text())["stage"]
                status = dict(line.split(":", 1) for line in (entry / "status").read_text().splitlines())
                peak = peaks.setdefault(stage, Peak())
                peak.resident = max(peak.resident, int(status["VmHWM"].split()[0]) << 10)
                peak.own = max(peak.own, int(status["RssAnon"].split()[0]) << 10)
            except (OSError, ValueError, KeyError):
                continue  # it has just ended
        time.sleep(0.02)


def test_it_becomes_a_validated_plan_and_no_step_holds_more_than_about_twice_its_size(forge):
    ran, peaks = watched(forge, "flow=fp32", "targets=[l4]")
    print({stage: (peak.resident >> 20, peak.own >> 20) for stage, peak in peaks.items()})
    assert ran.document["plans"][0]["validated"] is True
    assert ran.document["plans"][0]["bytes"] > SIZE
    assert ran.step("export")["metrics"]["initializer_bytes"] == SIZE
    for stage in ("signature", "export", "surgery"):
        assert peaks[stage].resident < SMALL, stage
    assert peaks["validate"].own < SMALL  # it maps the weights
    assert peaks["build"].own < 2.2 * SIZE  # TensorRT's own copy, and the plan


def test_it_is_cast_without_holding_more_than_about_its_size(forge):
    _, peaks = watched(forge, "flow=fp16", "targets=[l4]", *WITHOUT_VALIDATION.split())
    assert peaks["cast"].own < 1.2 * SIZE


def test_its_opset_is_converted_and_its_weights_stay_as_they_are(forge):
    plain, _ = watched(forge, "flow=export")
    ran, peaks = watched(forge, "flow=export", "steps.export.config.opset=22")
    assert ran.step("export")["metrics"]["opset"] == 22
    assert ran.step("export")["outputs"]["onnx.data"] == plain.step("export")["outputs"]["onnx.data"]
    assert peaks["export"].resident < SMALL


def test_surgery_costs_two_seconds_beyond_a_copy_of_its_file(forge):
    ran, _ = watched(forge, "flow=export")
    outputs = ran.step("export")["outputs"]
    onnx = [forge.home / outputs[name]["path"] for name in ("onnx", "onnx.data")]
    copied, operated = [], []
    for attempt in range(2):
        out = forge.home / f"out{attempt}"
        out.mkdir()
        copied.append(_timed(lambda out=out: shutil.copyfile(onnx[1], out / "copy")))
        (out / "copy").unlink()
        operated.append(_timed(lambda out=out: _operate(onnx, out)))
        shutil.rmtree(out)
    print(f"copy {min(copied):.2f} s, surgery {min(operated):.2f} s")
    assert min(operated) < min(copied) + 2


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _operate(onnx: list[Path], out: Path) -> None:
    from stages import STAGES
    from stages.stage import Job

    stage = STAGES["surgery"]
    stage.run(Job(stage.config(), {"onnx": onnx}, {"profiles": {}}, out))
    assert (out / "model.onnx.data").stat().st_size == SIZE
