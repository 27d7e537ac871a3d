"""What two plans, or two ONNX files, differ in: the verb `diff`.

Of two plans::

    {"kind": "plan", "same": false,             # whether they are the same bytes
     "a": {"what", "path", "digest", "bytes", "key", "model", "flow", "target", "built"}, "b": {…},
     "settings": [{"step", "field", "before", "after", "because", "words"}],   # of every step that went into them
     "sizes": {"plan_bytes": {"a", "b"}, "weight_bytes": {…}},
     "unread": {"a": null, "b": null},          # why the layers of one are not known; then "profiles" is empty
     "profiles": [{"a": "default", "b": "default",
                   "precisions": {"INT8": {"a": {"layers", "products", "macs", "weight_bytes", "ms"}, "b": {…}}},
                   "layers": {"a": 14, "b": 11, "same": 3, "retyped": 1},
                   "products": [{"node": "conv1", "a": "FP16", "b": "INT8"}],   # that compute in something else
                   "fusions": [{"nodes": […], "a": ["conv1"], "b": ["conv1", "__myl_MulRelu"]}]}],
     "accuracy": {"max_abs_error": {"a": 0.1, "b": 0.2}},     # numbers of `validate` that differ; {} without records
     "latency": {"latency_ms": {"a": 1.0, "b": 0.5}}}         # and of `bench`

Of two ONNX files `settings` as above, and `changes`: the lines of `stages.structure_changes`.

Settings go back to the model: those of the step that made each plan, of the steps whose outputs it took, and so on.
What follows from a step before is told there alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.text import Text

from artifacts import digest
from artifacts.difference import Difference, difference
from artifacts.errors import StoreError
from artifacts.record import Record
from artifacts.store import Store
from conf.errors import ConfigError
from pipelines import layers, lookup
from pipelines.document import bare_table, console, in_bytes
from pipelines.graph import MODEL
from pipelines.layers import Plan
from pipelines.reasons import Side, because, words
from stages import layer_changes, plan
from stages.layer_report import Count, ProfileLayers, Report
from stages.stage import StageError

MOST_LINES = 20
"""Of each list so many are printed; `--json` has all."""

_NONE = Count(macs=0)
_EVIDENCE = {"accuracy": "validate", "latency": "bench"}


@dataclass(frozen=True)
class Named:
    """One of the two that are compared.

    Attributes:
        what: As the user named it.
        kind: `plan` or `onnx`.
        files: The plan; or the ONNX file, and its data where it has any.
        record: Of the step that made it; None where the store knows none.
    """

    what: str
    kind: str
    files: Sequence[Path]
    record: Record | None

    def document(self) -> dict[str, Any]:
        """Who it is."""
        path, made = self.files[0], self.record.provenance if self.record else {}
        return {
            "what": self.what,
            "path": str(path),
            "digest": digest.of_file(path),
            "bytes": sum(each.stat().st_size for each in self.files),
            "key": self.record.key if self.record else None,
            **{name: made.get(name) for name in ("model", "flow", "target")},
            "built": made.get("finished"),
        }


def diff(a: str, b: str, store: Store) -> dict[str, Any]:
    """Compares `a` with `b`, each as `lookup.find` understands it.

    Raises:
        ConfigError: One is nothing that can be compared, or cannot be read; or one is a plan and the other is not.
    """
    try:
        one, other = _named(a, store), _named(b, store)
        if one.kind != other.kind:
            kinds = {"plan": "a plan", "onnx": "an ONNX file"}
            raise ConfigError(f"{a} is {kinds[one.kind]}, {b} {kinds[other.kind]}", "compare two of a kind")
        found = [each.document() for each in (one, other)]
        return {
            "kind": one.kind,
            "same": found[0]["digest"] == found[1]["digest"],
            "a": found[0],
            "b": found[1],
            "settings": _settings(one, other, store),
            **(_of_plans(one, other, store) if one.kind == "plan" else _of_models(one, other)),
        }
    except (StageError, StoreError) as error:
        raise ConfigError(error.what, error.next_step) from error


def print_diff(found: Mapping[str, Any]) -> None:
    """Prints what `diff` found: tables, and lists of at most `MOST_LINES` lines."""
    for side in ("a", "b"):
        each = found[side]
        made = [str(each[name]) for name in ("model", "flow", "target") if each[name]]
        key = [f"key {each['key'][:16]}"] if each["key"] else ["not of this store"]
        _say(f"{side}: {each['what']}: {', '.join([in_bytes(each['bytes']), *made, *key])}")
    if found["same"]:
        _say("the same bytes")
    told = dict.fromkeys((each["step"], each["words"]) for each in found["settings"])
    _print_list("settings", [f"{step}: {line}" for step, line in told])
    if found["kind"] == "onnx":
        _print_list("changes", found["changes"])
        return
    _print_numbers("size", found["sizes"], in_bytes)
    for side, reason in found["unread"].items():
        if reason:
            _say(f"layers of {side}: {reason}")
    for profile in found["profiles"]:
        _print_profile(profile)
    for name in _EVIDENCE:
        _print_numbers(name, found[name], lambda number: f"{number:g}")


def _named(what: str, store: Store) -> Named:
    found = lookup.find(what, store)
    if isinstance(found, str):
        record = store.record(found)
        if record is not None and "plan" not in record.outputs:
            return _onnx_of(what, record, store)
    elif not lookup.is_plan(found):
        return Named(what, "onnx", [found], lookup.maker(digest.of_file(found), store))
    plan_found = layers.plan_of(what, store)
    return Named(what, "plan", [plan_found.path], plan_found.record)


def _onnx_of(what: str, record: Record, store: Store) -> Named:
    files = lookup.onnx_files(record, store)
    if not files:
        told = f"{what}: the record of a step {record.fields.get('stage')}, which makes neither a plan nor an ONNX file"
        raise ConfigError(told, "compare two plans, or two ONNX files")
    return Named(what, "onnx", files, record)


# Settings


def _settings(a: Named, b: Named, store: Store) -> list[dict[str, Any]]:
    """What the questions of all steps differ in that went into the two, those first that come first."""
    before, after = (_chain(each.record, store) for each in (a, b))
    told: list[dict[str, Any]] = []
    for step in dict.fromkeys([*list(before)[:-1], *list(after)[:-1], *before, *after]):
        if step in before and step in after:
            told += _step_settings(step, before[step], after[step], {*before} & {*after}, store)
        elif before and after:
            who = "b" if step in after else "a"
            word = f"only {who} has this step"
            told.append(
                {"step": step, "field": None, "before": None, "after": None, "because": word, "words": word}
                | ({"after": "there"} if who == "b" else {"before": "there"})
            )
    return told


def _step_settings(step: str, a: Record, b: Record, common: set[str], store: Store) -> Iterator[dict[str, Any]]:
    then, now = Side.of(a), Side.of(b)
    for each in difference(a.fields, b.fields):
        if _follows(each, then, now, common):
            continue
        yield {
            "step": step,
            "field": each.field,
            "before": each.before,
            "after": each.after,
            "because": because(each.path, then, now, store),
            "words": words([each], then, now, store)[0],
        }


def _follows(found: Difference, then: Side, now: Side, common: set[str]) -> bool:
    """Whether it is an input that a step gave which is told of itself."""
    if found.path[0] != "inputs":
        return False
    name = str(found.path[1])
    source = now.source(name).partition(".")[0]
    return then.source(name) == now.source(name) and source != MODEL and source in common


def _chain(record: Record | None, store: Store) -> dict[str, Record]:
    """The records that led to `record`, by their steps, the first first."""
    found: dict[str, Record] = {}
    if record is None:
        return found
    for given in record.fields.get("inputs", {}).values():
        contents = [given] if isinstance(given, str) else list(given or ())
        made = lookup.maker(contents[0], store) if contents else None
        if made is not None and made.key != record.key:
            found |= {step: each for step, each in _chain(made, store).items() if step not in found}
    return {**found, str(record.provenance.get("step") or record.fields.get("stage")): record}


# Plans


def _of_plans(a: Named, b: Named, store: Store) -> dict[str, Any]:
    headers = [plan.read(each.files[0]) for each in (a, b)]
    reports = [layers.report_of(Plan(each.files[0], each.record), store) for each in (a, b)]
    sizes = [{"plan_bytes": header.bytes, "weight_bytes": header.weight_bytes} for header in headers]
    return {
        "sizes": _pairs(*sizes),
        "unread": {side: report.unread_reason for side, report in zip("ab", reports, strict=True)},
        "profiles": _profiles(*reports),
        **{name: _pairs(*(_numbers(each, stage, store) for each in (a, b))) for name, stage in _EVIDENCE.items()},
    }


def _profiles(a: Report, b: Report) -> list[dict[str, Any]]:
    """The profiles of both, by their names where both have the same, else in their order."""
    if a.unread_reason or b.unread_reason:
        return []
    by_name = {each.profile: each for each in b.profiles}
    if {each.profile for each in a.profiles} == by_name.keys():
        return [_profile(each, by_name[each.profile]) for each in a.profiles]
    return [_profile(one, other) for one, other in zip(a.profiles, b.profiles, strict=False)]


def _profile(a: ProfileLayers, b: ProfileLayers) -> dict[str, Any]:
    found, (one, other) = layer_changes.changes(a, b), (a.precisions, b.precisions)
    return {
        "a": a.profile,
        "b": b.profile,
        "precisions": {
            name: {"a": asdict(one.get(name, _NONE)), "b": asdict(other.get(name, _NONE))}
            for name in dict.fromkeys([*one, *other])
        },
        "layers": {"a": len(a.layers), "b": len(b.layers), "same": found.same, "retyped": found.retyped},
        "products": [asdict(each) for each in found.products],
        "fusions": [asdict(each) for each in found.fusions],
    }


def _numbers(of: Named, stage: str, store: Store) -> dict[str, float]:
    """The numbers among the metrics of the latest record of `stage` that took the plan, by their paths."""
    taken = lookup.takers(digest.of_file(of.files[0]), stage, store)
    return dict(_leaves(taken[0].metrics)) if taken else {}


def _leaves(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{name}", value


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """What differs; None where one has no such number."""
    names = dict.fromkeys([*a, *b])
    return {name: {"a": a.get(name), "b": b.get(name)} for name in names if a.get(name) != b.get(name)}


# ONNX files


def _of_models(a: Named, b: Named) -> dict[str, Any]:
    from stages import structure_changes

    return {"changes": structure_changes.between(a.files, b.files)}


# For people


def _print_profile(found: Mapping[str, Any]) -> None:
    names = dict.fromkeys(str(found[side]) for side in ("a", "b") if found[side])
    title = f" of profile {' and '.join(names)}" if names else ""
    counts = found["layers"]
    told = (
        f"{counts['same']} the same, {counts['retyped']} in other types, {len(found['fusions'])} groups fused otherwise"
    )
    _say(f"layers{title}: {counts['a']} -> {counts['b']}: {told}")
    numbers = ("layers", "products", "MACs", "weights")
    table = bare_table("computes in", *numbers, right=numbers)
    for name, count in found["precisions"].items():
        cells = [
            _arrow(count["a"][what], count["b"][what], layers.in_macs if what == "macs" else _sized(what))
            for what in ("layers", "products", "macs", "weight_bytes")
        ]
        table.add_row(f"  {name}", *cells)
    console().print(table)
    _print_list("products", [f"{each['node']}: {each['a']} -> {each['b']}" for each in found["products"]])
    _print_list("fusions", [f"{_layers_told(each['a'])} -> {_layers_told(each['b'])}" for each in found["fusions"]])


def _print_numbers(title: str, found: Mapping[str, Mapping[str, Any]], spell: Any) -> None:
    if found:
        numbers = ("a", "b", "b / a")
        table = bare_table(title, *numbers, right=numbers)
        for name, each in found.items():
            cells = ["-" if each[side] is None else spell(each[side]) for side in ("a", "b")]
            table.add_row(f"  {name}", *cells, f"{each['b'] / each['a']:.3f}" if each["a"] and each["b"] else "-")
        console().print(table)


def _print_list(title: str, lines: Sequence[str]) -> None:
    if lines:
        _say(f"{title}:")
        for line in lines[:MOST_LINES]:
            _say(f"  {line}")
        if len(lines) > MOST_LINES:
            _say(f"  and {len(lines) - MOST_LINES} more: --json has all")


def _arrow(a: Any, b: Any, spell: Any) -> str:
    one, other = ("?" if each is None else spell(each) for each in (a, b))
    return one if one == other else f"{one} -> {other}"


def _sized(what: str) -> Any:
    return in_bytes if what == "weight_bytes" else str


def _layers_told(names: Sequence[str]) -> str:
    return " + ".join(names) or "nothing"


def _say(text: str) -> None:
    console().print(Text(text), soft_wrap=True)
