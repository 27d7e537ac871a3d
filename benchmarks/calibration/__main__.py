"""`python -m benchmarks.calibration`: measures, prints tables, and exits with 1 where a promise does not hold."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from shutil import rmtree
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.calibration import processes
from benchmarks.calibration.judgement import Made, Run, claims

MODELS = ("digits", "minilm", "resnet50", "rec")
LIBRARIES = {"onnxruntime": ("minmax", "entropy", "percentile"), "modelopt": ("max", "entropy")}
TOOLS = ("ours", *(f"{library} {method}" for library, methods in LIBRARIES.items() for method in methods))
SAMPLES = (32, 128, 512)
SCORED = 512
"""The number of samples after which models are scored: running them takes most of the time."""

DEFAULT = "auto"
"""Our default algorithm, the one that is scored."""

CAPABILITIES = ("8.0", "8.6", "8.9", "12.0")
MB = 2**20


def main() -> int:
    """Runs what is asked for."""
    asked = _asked()
    with TemporaryDirectory() if asked.work is None else nullcontext(asked.work) as work:
        runs = list(_measured(asked, Path(work)))
        float32 = {model: _float32(model, Path(work) / model) for model in asked.models}
        plans = {} if asked.no_plans else {run.model: dict(_plans(run, Path(work))) for run in runs if _is_default(run)}
    _print_tables(runs, float32)
    found = claims(runs, float32, plans)
    for claim in found:
        print(f"{'holds' if claim.holds else 'FAILS'}  {claim.what}: {claim.figure} (allowed: {claim.allowed})")
    return 0 if all(claim.holds for claim in found) else 1


def _asked() -> argparse.Namespace:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    arguments.add_argument("--tools", nargs="+", choices=TOOLS, default=TOOLS, metavar="TOOL", help=", ".join(TOOLS))
    arguments.add_argument("--samples", nargs="+", type=int, default=SAMPLES)
    arguments.add_argument("--work", type=Path, help="keep models, data and figures here, and take what is there")
    arguments.add_argument("--no-plans", action="store_true", help="build no plans")
    return arguments.parse_args()


def _measured(asked: argparse.Namespace, work: Path) -> Iterator[Run]:
    for model in asked.models:
        folder = work / model
        if not (folder / "labels.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            _required(processes.run("models", model, str(folder)))
        for samples in asked.samples:
            for tool in asked.tools:
                run = _run(model, samples, tool, folder)
                print(_line(run), flush=True)
                yield run


def _required(found: dict[str, Any]) -> dict[str, Any]:
    if "failed" in found:
        sys.exit(f"error: {found['failed']}")
    return found


def _place(folder: Path, tool: str, samples: int) -> Path:
    return folder / f"{tool.replace(' ', '-')}-{samples}"


def _run(model: str, samples: int, tool: str, folder: Path) -> Run:
    """Runs one tool in a process of its own and scores what it made; or takes what an earlier run kept."""
    out = _place(folder, tool, samples)
    kept = out / "figures.json"
    if not kept.is_file():
        rmtree(out, ignore_errors=True)
        out.mkdir()
        found = processes.run("tools", tool, str(folder), str(samples), str(out))
        shown = [made for name, made in found.get("made", {}).items() if name == DEFAULT or tool != "ours"]
        for made in shown if samples == SCORED else ():
            scored = processes.run("scores", model, str(folder), made["path"])
            made.update({"failed": scored["failed"]} if "failed" in scored else scored)
        kept.write_text(json.dumps(found))
    found = json.loads(kept.read_text())
    if "failed" in found:
        return Run(model, samples, tool, failed=found["failed"], peak=found["peak"])
    made = {
        name: Made(each["peak"], each["cpu_s"], each.get("sqnr_db"), each.get("metrics", {}), each["kept"])
        for name, each in found["made"].items()
    }
    return Run(model, samples, tool, made)


def _float32(model: str, folder: Path) -> dict[str, Sequence[float]]:
    found: dict[str, Sequence[float]] = _required(processes.run("scores", model, str(folder), "float32"))["metrics"]
    return found


def _is_default(run: Run) -> bool:
    return run.tool == "ours" and run.samples == SCORED and DEFAULT in run.made


def _plans(run: Run, work: Path) -> Iterator[tuple[str, Any]]:
    """What the plan of our default reads, for each capability."""
    out = _place(work / run.model, run.tool, run.samples)
    made = json.loads((out / "figures.json").read_text())["made"][DEFAULT]
    in_float = made["weighted"] - made["quantized"]
    for capability in CAPABILITIES:
        place = out / f"plan-{capability}"
        place.mkdir(exist_ok=True)
        model = str(out / DEFAULT / "model.onnx")
        found = processes.run("plans", run.model, model, capability, str(place))
        yield capability, found if "failed" in found else {"reads": found, "in_float": in_float}


def _line(run: Run) -> str:
    start = f"{run.model:9} {run.samples:4} {run.tool:23}"
    if run.failed:
        return f"{start} {run.failed}"
    parts = []
    for name, made in run.made.items():
        told = [f"{made.cpu_s:.1f} s"]
        if made.sqnr_db is not None:
            told.append(f"{made.sqnr_db:.2f} dB")
        told += [f"{metric} {fmean(values):.4f}" for metric, values in made.metrics.items()]
        parts.append(f"{name if made.kept in (name, '') else f'{name} = {made.kept}'}: {', '.join(told)}")
    return f"{start} {run.most / MB:6.0f} MB  {'; '.join(parts)}"


def _print_tables(runs: Sequence[Run], float32: dict[str, dict[str, Sequence[float]]]) -> None:
    """Peak and CPU seconds of every tool by number of samples; of ours those of the default."""
    print()
    numbers = sorted({run.samples for run in runs})
    print(f"{'CPU s / peak MB':34}" + "".join(f"{number:>22}" for number in numbers))
    for model in dict.fromkeys(run.model for run in runs):
        for tool in dict.fromkeys(run.tool for run in runs):
            of_tool = {run.samples: run for run in runs if (run.model, run.tool) == (model, tool)}
            print(f"{model:10} {tool:23}" + "".join(f"{_cell(of_tool.get(number)):>22}" for number in numbers))
    for model, metrics in float32.items():
        print(f"{model} in float32: {', '.join(f'{name} {fmean(each):.4f}' for name, each in metrics.items())}")
    print()


def _cell(run: Run | None) -> str:
    if run is None:
        return "-"
    if run.failed:
        return run.failed[:21]
    made = run.made.get(DEFAULT) or next(iter(run.made.values()))
    return f"{made.cpu_s:.1f} / {run.most / MB:.0f}"


if __name__ == "__main__":
    sys.exit(main())
