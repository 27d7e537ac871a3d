"""Says in words what two questions differ in, and where each value came from.

The differences come from the records alone. Where a value came from is told by the overrides that each record keeps,
and for the config at hand also by its files, the environment and the defaults.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path as FilePath
from typing import Any

from artifacts.difference import Difference, Path, spell
from artifacts.index import About, Index
from artifacts.record import Blob, Record
from artifacts.store import Store
from conf.origin import DEFAULT, Origins, causing
from pipelines.execute import NEVER_BUILT
from pipelines.graph import DATA, MODEL, Node
from stages.data.options import Data

TOLD = 3
"""So many changes fit the one line that `status` has for a step."""

STRUCTURE = "structure"
"""The output of the stage `split` that is read to tell what changed in it."""

_MODEL_FILES = {
    "onnx": "model.path",
    "weights": "model.weights",
    "source": "model.entry_point",
    "calibration": "model.calibration.path",
    "calibration_source": "model.calibration.callable",
    "ranges": "model.ranges",
    "holdout": "model.holdout.path",
    "holdout_source": "model.holdout.callable",
    "golden": "model.holdout.golden",
    "metric": "model.holdout.metric",
    "against": "steps.validate.config.against",
    "plugins": "model.plugins",
    "passes": "steps",
}
_SOURCE = {"kind": "source", "order": "inputs"}
"""Parts of the fact `source` that the config calls otherwise."""

_MANY = {
    "source": "modules of model.entry_point",
    "passes": "modules of the user's own passes",
    "plugins": "plugin libraries",
    "calibration": "calibration batches",
    "calibration_source": "modules of model.calibration.callable",
    "holdout": "held-out batches",
    "holdout_source": "modules of model.holdout.callable",
    "golden": "golden outputs",
    "metric": "modules of model.holdout.metric",
    "against": "what is compared against",
}


@dataclass(frozen=True)
class Side:
    """One of the two that are compared: its question, and what is known about how it came to be asked."""

    question: Mapping[str, Any]
    made: Mapping[str, Any]
    origins: Origins | None = None

    @classmethod
    def of(cls, record: Record) -> Side:
        """The side of a record."""
        return cls(record.fields, record.provenance)

    @property
    def overrides(self) -> Sequence[str]:
        """The overrides of its run."""
        return [str(line) for line in self.made.get("overrides") or ()]

    def origin(self, paths: Sequence[str]) -> str | None:
        """Where the values of the config at `paths` came from; None where that is not known."""
        if self.origins is not None:
            found = [self.origins.of(path) for path in paths]
            return next((origin for origin in found if origin != DEFAULT), DEFAULT)
        kept = self.made.get("origins") or {}
        return next((str(kept[name]) for path in paths for name in kept if f"{path}.".startswith(f"{name}.")), None)

    def source(self, name: str) -> str:
        """What its flow gives as the input `name`: `surgery.onnx`, `model.calibration`."""
        return str((self.made.get("inputs") or {}).get(name, ""))

    def at(self, path: Path) -> Any:
        """The value at `path` of its question; None where there is none."""
        found: Any = self.question
        for part in path:
            found = found.get(part) if isinstance(found, Mapping) else None
        return found


class Reasons:
    """Says in one line why a question has no answer yet: what `pipelines.execute.Workshop.reason` wants."""

    def __init__(self, store: Store, made: Mapping[str, Any], origins: Origins) -> None:
        self._store, self._index = store, Index(store)
        self._made = made
        self._origins = origins

    def __call__(self, node: Node, question: Mapping[str, Any]) -> str:
        """The reason; `not built yet` where the step was never built for the target and the model."""
        side = asked(node, question, self._made, self._origins)
        found = self._index.nearest(question, About.of(Record({}, {}, provenance=side.made)))
        if found is None or not found.same_step:
            return NEVER_BUILT
        told = words(found.differences, Side.of(found.record), side, self._store)
        more = [f"and {len(told) - TOLD} more"] if len(told) > TOLD else []
        return "; ".join([*told[:TOLD], *more])

    def origins(self, node: Node) -> dict[str, str]:
        """Where the values of the node's config came from, as far as they are not defaults; kept with its record."""
        paths = [f"steps.{node.step}.config.{each.name}" for each in fields(node.config)]
        paths += [f"model.{name}.{each.name}" for name in DATA if name in node.stage.facts for each in fields(Data)]
        return {path: origin for path in paths if (origin := self._origins.of(path)) != DEFAULT}


def asked(node: Node, question: Mapping[str, Any], made: Mapping[str, Any], origins: Origins) -> Side:
    """The side of a question that the run at hand asks.

    Args:
        node: The node that asks.
        question: Its fields.
        made: What records of the run keep as provenance.
        origins: Where the values of its config came from.
    """
    own = {"step": node.step, "target": node.target.name if node.target else None, "inputs": dict(node.inputs)}
    return Side(question, {**made, **own}, origins)


def words(differences: Iterable[Difference], then: Side, now: Side, store: Store) -> list[str]:
    """The differences in words, one for each field; of a list, one for the whole of it."""
    paths = dict.fromkeys(_whole(found.path) for found in differences)
    return [_word(path, then, now, store) for path in paths]


def because(path: Path, then: Side, now: Side, store: Store) -> str:
    """Where the value at `path` of the later question came from; of a model's structure, what changed in it."""
    match path:
        case ("version",):
            versions = [str(side.made.get("trtforge")) for side in (then, now)]
            return (
                "another trtforge: " + " -> ".join(versions) if versions[0] != versions[1] else "the stage's own code"
            )
        case ("tools", *_) | ("facts", "backend_version", *_) | ("facts", "source", "exporter" | "packages", *_):
            return "installed"
        case ("facts", "calibration" | "holdout" | "metric", "packages", *_):
            return "installed"
        case ("facts", "platform" | "gpu_here", *_):
            return "this machine"
        case ("inputs", str(name), *_):
            return _because_input(name, then, now, store)
    return _because_config(_config_paths(path, now), then, now)


def _because_input(name: str, then: Side, now: Side, store: Store) -> str:
    source, _, output = (now.source(name) or then.source(name)).partition(".")
    if now.source(name) != then.source(name):
        return _because_config([f"steps.{now.made.get('step')}.inputs.{name}"], then, now)
    if source != MODEL:
        if now.at(("inputs", name)) is None:
            return f"{source} is to run first"
        changes = _structure_changes(name, then, now, store) if output == STRUCTURE else []
        return f"{source} gave {'; '.join(['another structure', *changes]) if changes else 'other bytes'}"
    path = _MODEL_FILES[output]
    if causing(now.overrides, path) == causing(then.overrides, path):
        return "another content"
    return _because_config([path], then, now)


def _structure_changes(name: str, then: Side, now: Side, store: Store) -> list[str]:
    """What changed between the structures that both sides took as the input `name`, if both are still there."""
    from stages import structure_changes

    both = []
    for side in (then, now):
        digests = side.at(("inputs", name))
        both.append([store.path(Blob(each, 0)) for each in ([digests] if isinstance(digests, str) else digests or ())])
    if not all(files and all(map(FilePath.is_file, files)) for files in both):
        return []
    told = structure_changes.between(*both)
    more = [f"and {len(told) - TOLD} more"] if len(told) > TOLD else []
    return [*told[:TOLD], *more]


def _because_config(paths: Sequence[str], then: Side, now: Side) -> str:
    lines = [line for path in paths if (line := causing(now.overrides, path))]
    if lines:
        return f"override {lines[0]}"
    gone = [line for path in paths if (line := causing(then.overrides, path))]
    ending = f"; before: override {gone[0]}" if gone else ""
    if origin := now.origin(paths):
        return origin + ending
    for name in ("flow", "model", "trtforge"):
        if then.made.get(name) != now.made.get(name):
            return f"{name} {then.made.get(name)} -> {now.made.get(name)}" + ending
    return "no override" + ending


def _config_paths(path: Path, side: Side) -> list[str]:
    """The keys of the config that decide the field at `path` of a question."""
    target = f"targets.{side.made.get('target')}"
    names = [str(part) for part in _whole(path)]
    match names:
        case ["config", *rest]:
            return [".".join(["steps", str(side.made.get("step")), "config", *rest])]
        case ["stage"]:
            return [f"steps.{side.made.get('step')}.stage"]
        case ["facts", "profiles", *rest]:
            return [".".join(["model.profiles", *rest]), "model.dims"]
        case ["facts", "calibration" | "holdout", "shapes" | "profiles", *_]:
            return ["model.profiles", "model.dims"]
        case ["facts", "calibration" | "holdout" as data, *rest]:
            return [".".join(["model", data, *rest])]
        case ["facts", "metric", *_]:
            return ["model.holdout.metric", "model.holdout.metric_direction"]
        case ["facts", "source", *rest]:
            return [".".join(["model", *(_SOURCE.get(part, part) for part in rest)])]
        case ["facts", "backend"]:
            return [f"{target}.backend", "backend.name"]
    return [f"{target}.{names[-1]}"]


def _word(path: Path, then: Side, now: Side, store: Store) -> str:
    before, after = then.at(path), now.at(path)
    change = f"{_plain(before)} -> {_plain(after)}"
    match path:
        case ("version",):
            return f"stage {now.at(('stage',))}: version {change}"
        case ("tools", str(tool)):
            return f"{tool} {change}"
        case ("facts", "backend_version"):
            return f"{now.at(('facts', 'backend'))} {change}"
        case ("inputs", str(name)):
            return _input_word(name, before, after, then, now, store)
        case ("config", *_) | ("stage",) | ("facts", "calibration" | "holdout", *_):
            where = _config_paths(path, now)[0]
        case _:
            where = spell(path).removeprefix("facts.")
    return f"{where} {change}, {_by(where, because(path, then, now, store))}"


def _input_word(name: str, before: Any, after: Any, then: Side, now: Side, store: Store) -> str:
    reason = because(("inputs", name), then, now, store)
    source, _, output = now.source(name).partition(".")
    if now.source(name) != then.source(name):
        told = f"{now.source(name) or 'nothing'} instead of {then.source(name) or 'nothing'}"
        return f"input {name}: {told}, {_by('', reason)}"
    if source != MODEL:
        return f"input {name}: {reason}"
    what = _MANY.get(output, f"model.{output}")
    by = "" if reason == "another content" else f", {_by(_MODEL_FILES[output], reason)}"
    return f"{what}: {_files_changed(before or (), after or ())}{by}"


def _files_changed(before: Sequence[str], after: Sequence[str]) -> str:
    fresh = sum((Counter(after) - Counter(before)).values())
    if len(before) != len(after):
        return f"{len(before)} -> {len(after)} files, {fresh} of them new"
    if not fresh:
        return f"the same {len(after)} files in another order"
    return "another content" if len(after) == 1 else f"{fresh} of {len(after)} files changed"


def _by(where: str, reason: str) -> str:
    line = reason.removeprefix("override ")
    if line == reason:
        return f"from {reason}" if "/" in reason or reason.startswith("variable") else reason
    return "by override" if line.lstrip("+~").startswith(f"{where}=") else f"by {reason}"


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _whole(path: Path) -> Path:
    """The path up to the list that it leads into."""
    position = next((i for i, part in enumerate(path) if isinstance(part, int)), len(path))
    return path[:position]
