"""Writes docs/config.md from the dataclasses: `python docs/generate.py` (`--check` only compares)."""

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
from conf.compose import options
from stages import STAGES
from stages.gates import Gates

PAGE = Path(__file__).with_name("config.md")

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
    ("targets.NAME", schema.Target),
    ("backend", schema.Backend),
    ("store", schema.StoreConfig),
    ("gates", Gates),
    ("steps.STEP", schema.Step),
)


def page() -> str:
    """The page's text."""
    groups = [f"| `{group}` | {', '.join(options(group))} |" for group in ("model", "flow", "targets", "backend")]
    parts = [HEAD + "\n".join(groups) + "\n\n`runner` is `prefect` or `local`.\n"]
    parts += [section(f"`{prefix}`", kind) for prefix, kind in SECTIONS]
    parts.append("## The stages' own configs\n\nEach is `steps.STEP.config` of a step with that stage.\n")
    parts += [section(f"stage `{name}`", stage.config, "###") for name, stage in STAGES.items() if fields(stage.config)]
    return "\n".join(parts)


def section(title: str, kind: type[Any], level: str = "##") -> str:
    """A heading and a table of the dataclass's fields."""
    told = descriptions(kind)
    rows = [f"| `{f.name}` | {default(f)} | {told.get(f.name, '')} |" for f in fields(kind)]
    return "\n".join([f"{level} {title}\n", "| key | default | |", "| --- | --- | --- |", *rows, ""])


def descriptions(kind: type[Any]) -> dict[str, str]:
    """What the class's docstring says of each attribute."""
    _, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
    block = inspect.cleandoc(attributes)
    found = re.split(r"^(\w+): ", block, flags=re.MULTILINE)[1:]
    return {
        name: " ".join(text.split()).replace("|", "\\|") for name, text in zip(found[::2], found[1::2], strict=True)
    }


def default(field: Field[Any]) -> str:
    """A field's default, as YAML writes it."""
    value = field.default_factory() if field.default_factory is not MISSING else field.default
    if value is MISSING or value == MANDATORY:
        return "must be given"
    if is_dataclass(value):
        return "see below" if type(value).__module__ == "conf.schema" else f"as stage `{field.name}`"
    spelled = json.dumps(value) if value is None or isinstance(value, bool) else getattr(value, "value", value)
    return f"`{spelled}`"


def main() -> None:
    """Writes the page, or says that it is not what it should be."""
    text = page()
    if "--check" not in sys.argv:
        PAGE.write_text(text)
    elif not PAGE.is_file() or PAGE.read_text() != text:
        sys.exit("docs/config.md is not what the dataclasses say: run make docs and commit it")


if __name__ == "__main__":
    main()
