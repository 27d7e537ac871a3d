"""Writes docs/config.md from the dataclasses, docs/knobs.md and docs/targets.md from the tables of knobs and GPUs.

`python docs/generate.py`; `--check` only compares.
"""

from __future__ import annotations

import inspect
import json
import re
import sys
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING as MANDATORY

from conf import schema
from conf.compose import compose, options
from stages import STAGES, backends, knobs
from stages.data.options import Dataset, Images
from stages.gates import Gates
from stages.gpus import PRECISIONS, capabilities, capability, why_no_precision
from stages.knobs import Effect, Knob

CONFIG, KNOBS, TARGETS, API = (
    Path(__file__).with_name(name) for name in ("config.md", "knobs.md", "targets.md", "tensorrt_api.json")
)

HEAD = """# Every key of a config

This page is made from the dataclasses by `make docs`; what stands here is what is checked while a config is composed.
Keys are overridden on the command line as they are written here: `steps.build.config.optimization_level=5`.

## Choices

| group | choices |
| --- | --- |
"""

SECTIONS: tuple[tuple[str, type[Any]], ...] = (
    ("model", schema.Model),
    ("model.inputs.NAME", schema.TensorSpec),
    ("model.profiles.PROFILE.INPUT", schema.Profile),
    ("model.calibration", schema.Calibration),
    ("model.holdout", schema.Holdout),
    ("model.calibration.images", Images),
    ("model.calibration.dataset", Dataset),
    ("targets.NAME", schema.Target),
    ("backend", schema.Backend),
    ("store", schema.StoreConfig),
    ("refit", schema.Refit),
    ("gates", Gates),
    ("steps.STEP", schema.Step),
)


KNOBS_HEAD = """# Every setting of a build, by version

This page is made by `make docs` from the table in `stages/knobs.py` and the API of each version, which is
`docs/tensorrt_api.json`. A setting is `steps.STEP.config.SETTING` of a step of stage `build`, and
`steps.STEP.config.build.SETTING` of stage `refit`; what each means stands in [config.md](config.md). What is null stays
as the backend has it.

```
trtforge build model=resnet flow=fp16 targets=[l4] steps.build.config.memory_pools.workspace=2GiB \\
    steps.build.config.max_aux_streams=0 'steps.build.config.io_formats={x: [hwc8]}'
```

Each setting is read back after it is set, and one that the backend changes fails the step. One that the target's
backend or version lacks (`-`) is refused before anything runs, with the versions that have it. One that a backend takes
without effect or ignores is named in the step's log and in its metric `without_effect`; it is not handed on, and not
part of that backend's keys, so that changing it builds nothing anew. What TensorRT-RTX does was measured with
1.7.1.116: the bytes of a plan built with the setting against those of one built without.

`pin_tactics` keeps the timings behind a plan with it, so that it is built again with the same tactics, and
`error_on_miss`, which is in no key, fails a build that would have to time one: see [store.md](store.md#timing-caches).

"""

CELLS = {Effect.TAKEN: "yes", Effect.WITHOUT: "no effect", Effect.IGNORED: "ignored", Effect.LACKING: "-"}


def knobs_page() -> str:
    """The text of docs/knobs.md."""
    versions = json.loads(API.read_text())["versions"]
    head = ["setting", "TensorRT calls it", *map(_short, versions)]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [f"| {' | '.join(_knob_row(knob, versions))} |" for knob in knobs.KNOBS]
    notes: dict[str, list[str]] = {}
    for knob in knobs.KNOBS:
        notes.setdefault(_note(knob), []).append(f"`{knob.path}`")
    told = "\n".join(f"- {', '.join(paths)}: {note}." for note, paths in notes.items() if note)
    others = [f"| `{name}` | {reason} |" for name, reason in knobs.NOT_KNOBS.items()]
    table = "\n".join(["| name | not a setting, since |", "| --- | --- |", *others])
    rows = "\n".join(lines)
    return f"{KNOBS_HEAD}{rows}\n\nOn TensorRT-RTX:\n\n{told}\n\n## What is no setting\n\n{table}\n"


def _short(version: str) -> str:
    backend, _, number = version.partition(" ")
    return f"RTX {number}" if backend == "tensorrt_rtx" else ".".join(number.split(".")[:2])


def _knob_row(knob: Knob, versions: list[str]) -> list[str]:
    row = [f"`{knob.path}`", ", ".join(f"`{name}`" for name in knob.api)]
    for version in versions:
        backend, _, number = version.partition(" ")
        standing = knob.on(backend)
        row.append(CELLS[standing.effect] if standing.has(number) else CELLS[Effect.LACKING])
    return row


def _note(knob: Knob) -> str:
    return knob.rtx.why or (f"only together with `{knob.rtx.needs}`" if knob.rtx.needs else "")


TARGETS_HEAD = """# Targets

A target is a kind of GPU: `targets=[a10,l4]` builds a plan for each of the two. This table is made by `make docs`
from `conf/targets`, and what each precision needs from `stages/gpus.py`; memory is what NVIDIA's data sheets say.
`rtx` is whether TensorRT-RTX builds for it, which it does on any machine; `backend=tensorrt` builds on the target's
own GPU.

"""

TARGETS_TAIL = """
A flow that asks a target for a precision that it lacks is refused before anything runs (exit code 2), with the
targets that have it: see [precisions.md](precisions.md). Two things the table does not say of 7.5 with TensorRT-RTX:
it has no FP32 matrix products, so that a flow that leaves some in float32 is refused too; and its INT8 convolutions
compute in float. A plan that is larger than the memory is told of at the end of the build. `trtforge doctor` prints
the same targets, and what this machine can build and run.

## One plan for several GPUs

`targets=[portable]` makes one plan for GPUs of 8.0, 8.6, 8.9, 12.0 and 12.1, with TensorRT-RTX. It costs what a plan
for one of them costs: `digits` in fp16 has 545.2 kB, and 545.1 kB for 8.9 alone; a ResNet-50 52.83 MB, for one, three
or five. Each precision must be there on all of them: FP8 needs a list that begins with 8.9. Any list will do:

```
trtforge build flow=fp8 targets=[portable] "targets.portable.compute_capability='8.9,12.0'"
```

The key holds all of them, the header of the plan is held against them, and the plan lies at
`published/MODEL/sm_89_120/…`. `--json` says `"compute_capability": "8.9,12.0"`. `validate` executes it on a GPU of
any of them. 7.5 is no part of `portable`: with it the plan is another one, and has the limits of 7.5 everywhere.
`tensorrt` refuses several: build for one, with `steps.build.config.hardware_compatibility_level=ampere_plus`.

## The GPU of this machine

`targets=[local]` asks the driver. Where there are GPUs of several kinds it takes the first and says which;
`targets.local.compute_capability=8.9` takes the first of that capability, and `CUDA_VISIBLE_DEVICES=GPU-…` leaves
only that one to be found: so one machine is several workers, each with a GPU of its own. `trtforge doctor` prints the
UUIDs.

[flows.md](flows.md#a-target) shows how to add your own.
"""


def targets_page() -> str:
    """The text of docs/targets.md."""
    found = compose([f"targets=[{','.join(options('targets'))}]"]).targets.values()
    named = [target for target in found if schema.LOCAL not in (target.gpu, target.compute_capability)]
    named.sort(key=lambda target: [capability(each) for each in capabilities(target.compute_capability)])
    lines = [_row("target", "GPU", "capability", "memory", *PRECISIONS, "rtx")]
    lines += [_row(*["---"] * (len(PRECISIONS) + 5)), *map(_target_row, named)]
    return TARGETS_HEAD + "\n".join(lines) + "\n" + TARGETS_TAIL


def _target_row(target: schema.Target) -> str:
    own = target.compute_capability
    has = ("-" if why_no_precision(each, own) else "yes" for each in PRECISIONS)
    buildable = backends.find("tensorrt_rtx").buildable or ()
    rtx = "yes" if set(capabilities(own)) <= set(buildable) else "-"
    return _row(f"`{target.name}`", target.gpu, own.replace(",", ", "), target.memory or "-", *has, rtx)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


WORDS = """

`runner` is `prefect` or `local`. `routing` is `auto`, `here` or `queue`: where the steps of a target run
([deployments.md](deployments.md#targets-that-are-built-elsewhere)).
"""


def page() -> str:
    """The text of docs/config.md."""
    groups = [f"| `{group}` | {', '.join(options(group))} |" for group in ("model", "flow", "targets", "backend")]
    parts = [HEAD + "\n".join(groups) + WORDS]
    parts += [section(f"`{prefix}`", kind) for prefix, kind in SECTIONS]
    parts.append("## The stages' own configs\n\nEach is `steps.STEP.config` of a step with that stage.\n")
    for name, stage in STAGES.items():
        if fields(stage.config):
            parts.append(section(f"stage `{name}`", stage.config, "###"))
            parts += [section(f"stage `{name}`, `{key}`", kind, "####") for key, kind in within(stage.config).items()]
    return "\n".join(parts)


def within(kind: type[Any]) -> dict[str, type[Any]]:
    """The dataclasses inside of `kind` that are no stage's config, by their fields."""
    made = {each.name: each.default_factory for each in fields(kind)}
    stages = {stage.config for stage in STAGES.values()}
    return {name: inner for name, inner in made.items() if is_dataclass(inner) and inner not in stages}


def section(title: str, kind: type[Any], level: str = "##") -> str:
    """A heading and a table of the dataclass's fields."""
    told = descriptions(kind)
    rows = [f"| `{f.name}` | {default(f)} | {told.get(f.name, '')} |" for f in fields(kind)]
    return "\n".join([f"{level} {title}\n", "| key | default | |", "| --- | --- | --- |", *rows, ""])


def descriptions(kind: type[Any]) -> dict[str, str]:
    """What the docstrings of the class, and of those that it inherits from, say of each attribute."""
    told: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        _, _, attributes = inspect.cleandoc(each.__dict__.get("__doc__") or "").partition("Attributes:\n")
        found = re.split(r"^(\w+): ", inspect.cleandoc(attributes), flags=re.MULTILINE)[1:]
        told |= {
            name: " ".join(text.split()).replace("|", "\\|") for name, text in zip(found[::2], found[1::2], strict=True)
        }
    return told


def default(field: Field[Any]) -> str:
    """A field's default, as YAML writes it."""
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING or value == MANDATORY:
        return "must be given"
    if is_dataclass(value):
        own = {stage.config: name for name, stage in STAGES.items()}
        return f"as stage `{own[type(value)]}`" if type(value) in own else "see below"
    spelled = json.dumps(value) if value is None or isinstance(value, bool) else getattr(value, "value", value)
    return f"`{spelled}`"


def main() -> None:
    """Writes the pages, or says that one is not what it should be."""
    for path, text in ((CONFIG, page()), (KNOBS, knobs_page()), (TARGETS, targets_page())):
        if "--check" not in sys.argv:
            path.write_text(text)
        elif not path.is_file() or path.read_text() != text:
            sys.exit(f"docs/{path.name} is not what the dataclasses say: run make docs and commit it")


if __name__ == "__main__":
    main()
