"""Real models in float16 and bfloat16: how far they are from float32, what stayed in float32, and whether they build.

    python -m benchmarks.precisions               all models; exit code 1 where one is wrong or does not load
    python -m benchmarks.precisions digits magika only these

`make bench-precisions` runs it in an environment that has torch and the wheels with the models. Each model goes through
surgery and `cast`, which is given 16 samples to find overflow with, and is judged on others: SQNR of its worst output
against float32, every node computed as it is written. ONNX Runtime computes many float16 operators in float32 on a CPU.
ONNX's reference evaluator does not, but takes minutes for larger convolutions, and onnx 1.23's fails on the other small
models (GatherElements of more than 64 rows, a Squeeze of an axis that is not there), so that it runs the digits only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from benchmarks.models import SUBJECTS, ProfileFact, package_folder, pages
from stages import cast, exact_runs, onnx_file, surgery
from stages.stage import Job, StageError

SAMPLES, JUDGED = 16, 8
"""So many feeds of batch 1 to find overflow with, and so many feeds to judge on."""

WRONG_DB = 10.0
"""Below this the facts of this project call a converted model wrong."""

CAPABILITY = "8.9"

Feed = dict[str, Any]


@dataclass(frozen=True)
class Candidate:
    """A model to cast.

    Attributes:
        title: What the table calls it.
        model: Makes it.
        feeds: Feeds for it, without end or at least `SAMPLES` + `JUDGED`.
        profile: The shapes of its inputs that plans are built for.
        needs: The packages that it is made of.
        reference: Whether the reference evaluator can run it in some seconds.
        counted: Whether axis 0 of its inputs counts samples, so that they can be calibration data.
    """

    title: str
    model: Callable[[], onnx.ModelProto]
    feeds: Callable[[], Iterator[Feed]]
    profile: ProfileFact
    needs: tuple[str, ...] = ()
    reference: bool = False
    counted: bool = True


def _wheel(*parts: str) -> Callable[[], onnx.ModelProto]:
    return lambda: onnx.load(str(package_folder(parts[0]).joinpath(*parts[1:])))


def _photos() -> Iterator[Feed]:
    for page in pages(0.0, 1.0):
        yield {"images": page["x"]}


def _files() -> Iterator[Feed]:
    """First and last 1,024 bytes of the files of Python's library, padded with 256 as the classifier was trained."""
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        content = np.frombuffer(path.read_bytes(), np.uint8).astype(np.int32)
        row = np.full(2048, 256, np.int32)
        row[: min(1024, content.size)] = content[:1024]
        row[2048 - min(1024, content.size) :] = content[-1024:]
        yield {"bytes": row[None]}


def _sounds() -> Iterator[Feed]:
    """36 ms of vowels and noise at 16 kHz, (1, 576), in [-1, 1]."""
    random, time = np.random.default_rng(6), np.arange(576) / 16000
    while True:
        pitch = random.uniform(90, 260)
        voice = sum(np.sin(2 * np.pi * pitch * k * time + random.uniform(0, 6)) / k for k in range(1, 12))
        sound = random.uniform(0, 0.3) * voice + random.normal(0, random.uniform(0.001, 0.05), 576)
        state = random.normal(0, 0.3, (2, 1, 128))
        yield {
            "input": np.clip(sound, -1, 1)[None].astype(np.float32),
            "state": state.astype(np.float32),
            "sr": np.array(16000, np.int64),
        }


def _subject(name: str) -> Candidate:
    """One of those that calibration is measured on."""
    subject = SUBJECTS[name]
    needs = (*subject.needs, *(("torch",) if subject.exported else ()))
    return Candidate(subject.title, subject.model, subject.calibration, subject.profile, needs, name == "digits")


def _fixed(**shapes: list[int]) -> ProfileFact:
    return {"default": {name: dict.fromkeys(("min", "opt", "max"), shape) for name, shape in shapes.items()}}


_SOUND = _fixed(input=[1, 576], state=[2, 1, 128])
CANDIDATES = {
    "digits": _subject("digits"),
    "resnet50": _subject("resnet50"),
    "minilm": _subject("minilm"),
    "det": _subject("det"),
    "rec": _subject("rec"),
    "magika": Candidate(
        "file-type classifier",
        _wheel("magika", "models", "standard_v3_3", "model.onnx"),
        _files,
        _fixed(bytes=[1, 2048]),
        ("magika",),
    ),
    "nudenet": Candidate(
        "object detector", _wheel("nudenet", "320n.onnx"), _photos, _fixed(images=[1, 3, 320, 320]), ("nudenet",)
    ),
    "silero": Candidate(
        "voice activity (If)",
        _wheel("silero_vad", "data", "silero_vad.onnx"),
        _sounds,
        _SOUND,
        ("silero_vad",),
        counted=False,
    ),
    "silero_ifless": Candidate(
        "voice activity",
        _wheel("silero_vad", "data", "silero_vad_op18_ifless.onnx"),
        _sounds,
        _SOUND,
        ("silero_vad",),
        counted=False,
    ),
}


@dataclass
class Score:
    """How one model did in one precision.

    Attributes:
        decibels: SQNR of the worst output on ONNX Runtime; None where it has no kernels for the precision.
        reference: The same on the reference evaluator; None where it was not asked.
        metrics: Those of `cast`.
        plan: Size of the plan for `CAPABILITY` in MB, or why there is none.
    """

    decibels: float | None
    reference: float | None
    metrics: dict[str, Any]
    plan: str


def sqnr(expected: Iterable[Any], got: Iterable[Any]) -> float:
    """Signal to noise of the worst output in dB, over all feeds together."""
    worst = np.inf
    for one, other in zip(expected, got, strict=True):
        signal, noise = float(np.square(one).sum()), float(np.square(one - other).sum())
        worst = min(worst, 10 * np.log10(signal / max(noise, 1e-30))) if np.isfinite(noise) else -np.inf
    return float(worst)


def _joined(runs: list[list[Any]]) -> list[Any]:
    return [
        np.concatenate([np.asarray(each, np.float64).reshape(-1) for each in output])
        for output in zip(*runs, strict=True)
    ]


def _on_onnxruntime(path: Path, feeds: list[Feed]) -> list[Any]:
    session = exact_runs.open_exact(onnx_file.read(path))
    names = [output.name for output in session.get_outputs()]
    return _joined([list(exact_runs.run(session, names, feed, index).values()) for index, feed in enumerate(feeds)])


def _on_reference(path: Path, feeds: list[Feed]) -> list[Any]:
    evaluator = ReferenceEvaluator(onnx.load(str(path)))
    with np.errstate(all="ignore"):
        return _joined([list(evaluator.run(None, feed)) for feed in feeds])


def prepared(candidate: Candidate, folder: Path) -> tuple[Path, list[Path], list[Feed]]:
    """The model after surgery, files to find overflow with, and feeds to judge on."""
    given, facts = folder / "given.onnx", {"profiles": candidate.profile, "pass_packages": {}}
    onnx.save(candidate.model(), str(given))
    surgery.STAGE.run(Job(surgery.SurgeryConfig(), {"onnx": [given]}, facts, folder))
    feeds = list(islice(candidate.feeds(), SAMPLES + JUDGED))
    files = []
    for index, feed in enumerate(feeds[:SAMPLES]):
        files.append(folder / f"{index:02}.npz")
        np.savez(files[-1], **feed)
    return folder / "model.onnx", files, feeds[SAMPLES:]


def measured(candidate: Candidate, precision: str, clean: Path, files: list[Path], feeds: list[Feed]) -> Score:
    """One model in one precision."""
    out = clean.parent / precision
    out.mkdir()
    inputs = {"onnx": [clean], **({"calibration": files} if candidate.counted else {})}
    metrics = cast.STAGE.run(Job(cast.CastConfig(precision), inputs, {"calibration": {}}, out))
    low, decibels, reference = out / "model.onnx", None, None
    expected = _on_onnxruntime(clean, feeds)
    if precision == "fp16":
        decibels = sqnr(expected, _on_onnxruntime(low, feeds))
    if candidate.reference:
        few = feeds[:2]
        reference = sqnr(_on_onnxruntime(clean, few), _on_reference(low, few))
    return Score(decibels, reference, dict(metrics), built(low, candidate.profile))


_BUILD = """
import json, sys
from pathlib import Path
from stages import STAGES
from stages.stage import Job, StageError
build, (path, facts) = STAGES["build"], sys.argv[1:]
try:
    print(build.run(Job(build.config(), {"onnx": [Path(path)]}, json.loads(facts), Path(path).parent))["plan_bytes"])
except StageError as error:
    print(error.what)
"""


def built(path: Path, profile: ProfileFact) -> str:
    """What the plan takes in MB; or why TensorRT-RTX makes none. In a process of its own, which it may end."""
    from stages import backends

    facts = {
        "backend": "tensorrt_rtx",
        "backend_version": backends.installed_version("tensorrt_rtx"),
        "compute_capability": CAPABILITY,
        "gpu": None,
        "platform": "linux_x86_64",
        "profiles": profile,
        "gpu_here": False,
    }
    child = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _BUILD, str(path), json.dumps(facts)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    told = (child.stdout.strip().splitlines() or [f"ended with {child.returncode}"])[-1]
    return f"{int(told) / 1e6:.1f}" if told.isdigit() else told[:60]


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def table(names: Iterable[str]) -> list[str]:
    """Prints a line for each model and precision, and returns those that are wrong."""
    wrong = []
    print(
        f"{'model':22} {'':5} {'dB':>6} {'dB ref':>6} {'low':>5} {'fp32':>5} {'overflow':>8} {'plan MB':>8}  fp32 plan"
    )
    for name in names:
        candidate = CANDIDATES[name]
        absent = [package for package in candidate.needs if find_spec(package) is None]
        if absent:
            print(f"{candidate.title:22} not measured: {absent[0]} is not installed")
            continue
        with TemporaryDirectory() as scratch:
            clean, files, feeds = prepared(candidate, Path(scratch))
            before = built(clean, candidate.profile)
            for precision in ("fp16", "bf16"):
                try:
                    score = measured(candidate, precision, clean, files, feeds)
                except StageError as error:
                    wrong.append(f"{candidate.title} in {precision}: {error.what}")
                    continue
                found = [value for value in (score.decibels, score.reference) if value is not None]
                if any(value < WRONG_DB for value in found):
                    wrong.append(f"{candidate.title} in {precision}: {min(found):.1f} dB")
                if score.plan[0].isalpha() and before[0].isdigit():
                    wrong.append(f"{candidate.title} in {precision}: {score.plan}")
                metrics = score.metrics
                print(
                    f"{candidate.title:22} {precision:5} {_shown(score.decibels):>6} {_shown(score.reference):>6} "
                    f"{metrics['low']:5} {metrics['kept']:5} {len(metrics['overflow']):8} {score.plan:>8}  {before}",
                    flush=True,
                )
    return wrong


def main() -> int:
    """Prints the table; 1 where a model is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*CANDIDATES, []], help="which models; none: all")
    wrong = table(parser.parse_args().names or CANDIDATES)
    for line in wrong:
        print(f"wrong: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
