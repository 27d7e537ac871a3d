"""Which of the real models build for which target, how long that takes and how big the plans are: `make matrix`.

    python -m benchmarks.matrix --work DIR              all of them, and writes docs/matrix.md
    python -m benchmarks.matrix --work DIR rec det      only these, and prints what there is

Everything goes through the command line, as a user would type it, with TensorRT-RTX on a CPU: for each capability the
first of its targets, since they share the plan. `DIR` keeps models, data and a store, so that a second run is cached.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from benchmarks.models import SUBJECTS, write_configs
from stages import installed

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "matrix.md"
FLOWS = ("fp32", "fp16", "bf16", "int8", "fp8")
SAMPLES = 32
"""To calibrate with: what a plan computes in and how big it is does not depend on their number."""

TOOLS = ("tensorrt_rtx", "onnx", "onnxruntime", "torch")
NO_MACHINE, REFUSED = 4, (2, 4)
"""Exit codes of a call whose target nobody can build for, and of those that were refused before anything ran."""


@dataclass(frozen=True)
class Row:
    """A model in one precision.

    Attributes:
        model: Its name in `SUBJECTS`.
        flow: What it is built with.
        overrides: What is asked for besides.
    """

    model: str
    flow: str
    overrides: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """As the page calls it."""
        return ", ".join([self.flow, *(f"`{override}`" for override in self.overrides)])


@dataclass(frozen=True)
class Cell:
    """What came of one row for one target.

    Attributes:
        plan_bytes: How big the plan is.
        cpu_s: Processor seconds that the step took; other work on the machine hardly changes them.
        asked: Convolutions and matrix products that the model has quantized.
        kept: Those that read codes in the plan; None where its graph cannot be read.
        reason: Why there is no plan; None where there is one.
    """

    plan_bytes: int = 0
    cpu_s: float = 0.0
    asked: int = 0
    kept: int | None = 0
    reason: str | None = None


ROWS = (
    *(Row(model, flow) for model in SUBJECTS for flow in FLOWS),
    # What the plan computes in float, left in float.
    *(Row("det", flow, ("steps.quantize.config.skip_ops=[ConvTranspose]",)) for flow in ("int8", "fp8")),
)

Command = Callable[[Sequence[str]], tuple[int, Mapping[str, Any]]]
"""Runs trtforge with these arguments, and gives its exit code and document."""


def targets() -> dict[str, list[str]]:
    """The targets that trtforge ships by compute capability, the lowest first; without `local`, which is any."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "conf" / "targets").glob("*.yaml")):
        if path.stem != "local":
            found.setdefault(str(OmegaConf.load(path).compute_capability), []).append(path.stem)
    return dict(sorted(found.items(), key=lambda item: ("," in item[0], float(item[0].split(",")[0]))))


def trtforge(work: Path) -> Command:
    """The command line with the config directory and the store in `work`."""

    def run(arguments: Sequence[str]) -> tuple[int, Mapping[str, Any]]:
        given = ["--config-dir", str(work / "config"), f"store.root={work / 'store'}", "runner=local", "--json"]
        command = [sys.executable, "-W", "ignore", "-m", "pipelines", *arguments, *given]
        ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if not ran.stdout.strip():
            sys.exit(f"error: {' '.join(command)}: exit code {ran.returncode}\n{ran.stderr}")
        return ran.returncode, json.loads(ran.stdout)

    return run


def unbuildable(names: Sequence[str], command: Command) -> dict[str, Cell]:
    """Those of the targets `names` that nothing is built for, whatever the model."""
    answers = {name: command(["status", *_given(ROWS[0], [name])]) for name in names}
    return {name: Cell(reason=answer["error"]) for name, (code, answer) in answers.items() if code == NO_MACHINE}


def measured(row: Row, names: Sequence[str], command: Command) -> dict[str, Cell]:
    """What comes of `row` for the targets `names`; one that is refused does not keep the others from being built."""
    if not names:
        return {}
    code, document = command(["build", *_given(row, names), "~steps.validate", "~steps.publish"])
    if code not in REFUSED:
        return {name: _cell(document["steps"], name, command) for name in names}
    if len(names) == 1:
        return {names[0]: Cell(reason=document["error"])}
    guilty = [name for name in names if re.search(rf"\b{name}\b", document["error"])] or list(names)
    others = measured(row, [name for name in names if name not in guilty], command)
    return others | {name: cell for one in guilty for name, cell in measured(row, [one], command).items()}


def _given(row: Row, names: Sequence[str]) -> list[str]:
    return [f"model={row.model}", f"flow={row.flow}", f"targets=[{','.join(names)}]", *row.overrides]


def _cell(steps: Sequence[Mapping[str, Any]], target: str, command: Command) -> Cell:
    own = [step for step in steps if step["target"] in (None, target)]
    failed = next((step for step in own if step["state"] == "failed"), None)
    if failed is not None:
        return Cell(reason=failed["error"])
    build = next(step for step in own if step["step"] == "build")
    metrics, record = build["metrics"], command(["inspect", build["key"]])[1]
    return Cell(
        plan_bytes=metrics["plan_bytes"],
        cpu_s=record["provenance"]["cpu_s"],
        asked=metrics["quantized_asked"],
        kept=metrics["quantized_kept"],
    )


HEAD = """# What builds

This page is made by `make matrix`: real models, in every precision, for every target that trtforge ships, with
TensorRT-RTX on a machine without a GPU. Nothing was executed. Each cell is a call of `trtforge build`, without the
steps `validate` and `publish`; targets of one compute capability share the plan. A cell says how big the plan is, and
how many processor seconds the step `build` took on one core, the start of its process included. Of a quantized model it
says how many of the convolutions and matrix products that have Q/DQ read INT8 or FP8 in the plan's own graph. A number
in brackets is why there is no plan: the error as it is printed, below.

INT8 and FP8 are calibrated with 32 real samples: digits, English sentences, crops of photographs, rendered text.
"""


def page(cells: Mapping[Row, Mapping[str, Cell]], by_capability: Mapping[str, Sequence[str]], versions: str) -> str:
    """The text of docs/matrix.md.

    Args:
        cells: By row and the first target of each capability.
        by_capability: The targets.
        versions: Of the tools.
    """
    reasons: dict[str, int] = {}
    beyond = {name for names in by_capability.values() for name in names if _is_refused_always(cells, names[0])}
    shown = {capability: names for capability, names in by_capability.items() if names[0] not in beyond}
    parts = [HEAD, f"Made with {versions}.\n"]
    for model in dict.fromkeys(row.model for row in cells):
        rows = {row: found for row, found in cells.items() if row.model == model}
        subject = SUBJECTS[model]
        parts += [f"## {subject.title}\n", f"{subject.origin[0].upper()}{subject.origin[1:]}.\n"]
        parts.append("\n".join(_table(rows, shown, reasons)) + "\n")
    if beyond:
        parts += ["## Targets without plans\n", "\n".join(_without(cells, by_capability, beyond)) + "\n"]
    parts += ["## Why not\n", "\n".join(f"{number}. {reason}" for reason, number in reasons.items()) + "\n"]
    return "\n".join(parts)


def _is_refused_always(cells: Mapping[Row, Mapping[str, Cell]], name: str) -> bool:
    return (
        len({found[name].reason for found in cells.values()}) == 1
        and next(iter(cells.values()))[name].reason is not None
    )


def _table(
    rows: Mapping[Row, Mapping[str, Cell]], shown: Mapping[str, Sequence[str]], reasons: dict[str, int]
) -> Iterator[str]:
    heads = [f"{capability.replace(',', ', ')}: {', '.join(names)}" for capability, names in shown.items()]
    yield f"| {' | '.join(['', *heads])} |"
    yield f"|{' --- |' * (len(heads) + 1)}"
    for row, found in rows.items():
        texts = [_told(found[names[0]], reasons) for names in shown.values()]
        yield f"| {' | '.join([row.title, *texts])} |"


def _told(cell: Cell, reasons: dict[str, int]) -> str:
    if cell.reason is not None:
        return f"[{reasons.setdefault(cell.reason, len(reasons) + 1)}]"
    kept = "?" if cell.kept is None else cell.kept
    products = f", {kept} of {cell.asked}" if cell.asked else ""
    return f"{cell.plan_bytes / 1e6:.1f} MB, {cell.cpu_s:.1f} s{products}"


def _without(
    cells: Mapping[Row, Mapping[str, Cell]], by_capability: Mapping[str, Sequence[str]], beyond: Iterable[str]
) -> Iterator[str]:
    some = next(iter(cells.values()))
    for names in by_capability.values():
        if names[0] in beyond:
            yield f"- {', '.join(names)}: {some[names[0]].reason}"


def main() -> int:
    """Builds what is asked for; writes the page where that is all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", choices=[*SUBJECTS, []], help="which models; none: all")
    parser.add_argument("--work", type=Path, required=True, help="keeps models, data and the store")
    asked = parser.parse_args()
    work, by_capability = asked.work.resolve(), targets()
    rows = [row for row in ROWS if not asked.models or row.model in asked.models]
    write_configs(dict.fromkeys(row.model for row in rows), work / "config", SAMPLES)
    command, firsts = trtforge(work), [names[0] for names in by_capability.values()]
    never, cells = unbuildable(firsts, command), {}
    for row in rows:
        cells[row] = never | measured(row, [name for name in firsts if name not in never], command)
        print(f"{row.model} {row.title}: {sum(not cell.reason for cell in cells[row].values())} plans", flush=True)
    versions = ", ".join(f"{name} {installed.version(name)}" for name in TOOLS)
    text = page(cells, by_capability, versions)
    if len(rows) < len(ROWS):
        print(text)
    else:
        PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
