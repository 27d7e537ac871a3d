"""What is in the store, and what a file is: the verbs `ls` and `inspect`."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

from rich.text import Text

from artifacts import packing, publications
from artifacts.index import About, Index, Summary
from artifacts.record import Record
from artifacts.store import Hit, Store
from conf.errors import ConfigError
from conf.schema import Config
from pipelines import child, lookup, sources
from pipelines.document import bare_table, console, in_bytes
from stages import STAGES, backends, plan, plan_graph
from stages.stage import Job, StageError


def list_plans(store: Store) -> list[dict[str, Any]]:
    """The plans that have a name, sorted by it; of a damaged one it says so."""
    published = {name.removeprefix("published/"): key for name, key in store.refs("published").items()}
    answers: dict[tuple[str | None, ...], list[Summary]] = defaultdict(list)
    for summary in Index(store).summaries()[0].values():
        answers[_whose(summary.about)].append(summary)
    return [
        _listed(store, name.removeprefix("plans/"), key, published) | _on_disk(store, store.record(key), answers)
        for name, key in store.refs("plans").items()
    ]


def deltas(store: Store) -> dict[str, int]:
    """How many objects of the store are kept as deltas, what these take, and what the whole files would take."""
    return asdict(packing.saving(store))


def print_plans(found: list[dict[str, Any]], saved: Mapping[str, int]) -> None:
    """Prints what `list_plans` found as a table, and what `deltas` did below it."""
    screen = console()
    if not found:
        screen.print("no plans yet: run trtforge build")
        return
    numbers = ("size", "on disk", "superseded, on disk of whole")
    table = bare_table("plan", "built", "published", "state", *numbers, right=numbers)
    for entry in found:
        size = "-" if entry["bytes"] is None else in_bytes(entry["bytes"])
        refused = "; ".join(line.partition(": ")[0] for line in entry["refused"])  # without what to do about it
        state = f"refused: {refused}" if refused else entry["state"]
        told = "yes" if entry["published"] else "another" if entry["published_key"] else "no"
        superseded = entry["superseded"]
        ones = f"{superseded['plans']}: {in_bytes(superseded['disk_bytes'])} of {in_bytes(superseded['bytes'])}"
        row = (size, in_bytes(entry["disk_bytes"]), ones if superseded["plans"] else "-")
        table.add_row(entry["name"], entry["built"] or "-", told, state, *row)
    screen.print(table)
    if saved["objects"]:
        sizes = f"{in_bytes(saved['disk_bytes'])} on disk instead of {in_bytes(saved['bytes'])}"
        screen.print(f"{saved['objects']} objects are kept as deltas: {sizes}", highlight=False)


def list_records(store: Store) -> list[dict[str, Any]]:
    """Every record that can be read, the latest first, out of the index."""
    found = [
        {
            "key": summary.key,
            "stage": summary.stage,
            "step": summary.about.step,
            "target": summary.about.target,
            "model": summary.about.model,
            "flow": summary.about.flow,
            "built": summary.about.finished,
            "bytes": sum(blob.bytes for blob in summary.blobs),
        }
        for summary in Index(store).summaries()[0].values()
    ]
    return sorted(found, key=lambda each: (each["built"] or "", each["key"]), reverse=True)


def print_records(found: list[dict[str, Any]]) -> None:
    """Prints what `list_records` found, a line for each: for `grep` and `sort`."""
    for each in found:
        step = f"{each['step']}[{each['target']}]" if each["target"] else each["step"]
        name = f"{each['model']}/{each['flow']}"
        print(f"{each['key'][:16]}  {each['built'] or '-':<25}  {in_bytes(each['bytes']):>9}  {name:<24}  {step}")


def inspect(what: str, store: Store) -> dict[str, Any]:
    """Says what `what` is: a file (plan, ONNX), a key or digest (or its beginning), or the name of a plan.

    Raises:
        ConfigError: It is nothing of these.
        StageError: The file is damaged.
    """
    found = lookup.find(what, store)
    return _file(found) if isinstance(found, Path) else _record(store, found)


def operators(what: str, config: Config, stop: Event) -> dict[str, Any]:
    """Which operators of the ONNX file `what` the parser of the run's backend takes; TensorRT runs in a child process.

    Args:
        what: A path, or the key or digest (or its beginning) of a record or object of the store.
        config: The run's: its backend, its plugins and its store.
        stop: Set when the user wants to stop.

    Raises:
        ConfigError: It is no ONNX file, the backend is not there, or has no plugins and some are given.
        StageError: The model is no valid ONNX.
    """
    backend = config.backend.name
    version = backends.installed_version(backend)
    if version is None:
        raise ConfigError(f"{backend} is not installed", backends.find(backend).install_hint)
    sources.refuse_plugins(config.model, backend)
    inputs = {"onnx": _onnx_files(what, Store(Path(config.store.root)))}
    if config.model.plugins:
        inputs["plugins"] = sources.plugins(config.model)
    stage = STAGES["operators"]
    facts = {"backend": backend, "backend_version": version}
    with TemporaryDirectory() as directory:
        work = child.Work("inspect", stage, stage.config(), inputs, facts, Path(directory), child.Limits(600.0))
        result = child.run(work, lambda phase, fraction: None, stop)
        found: dict[str, Any] = json.loads((result.out / stage.outputs["operators"]).read_text())
    return {"ok": not found["refused"], "path": str(inputs["onnx"][0]), **found}


def _onnx_files(what: str, store: Store) -> list[Path]:
    path: str | Path | None = Path(what) if Path(what).is_file() else lookup.by_digest(what, store)
    if isinstance(path, Path):
        if not lookup.is_plan(path):
            return [path]
    elif path is not None and isinstance(hit := store.lookup(path), Hit) and "onnx" in hit.record.outputs:
        return lookup.onnx_files(hit.record, store)
    raise ConfigError(
        f"{what}: no ONNX file, and no key or digest of one in the store {store.root}",
        "give the path of an ONNX file, or the key of a step that makes one out of `trtforge build --json`",
    )


def print_operators(found: Mapping[str, Any]) -> None:
    """Prints what `operators` found: the refused ones with their nodes, or that there are none."""
    screen = console()
    total = sum(found["operators"].values())
    who = f"{found['backend']} {found['backend_version']}"
    for each in found["refused"]:
        line = f"{each['operator']} (node {each['node']!r}): {each['reason']}"
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
    what = f"{len(found['refused'])} of {total} nodes refused" if found["refused"] else f"takes all {total} nodes"
    screen.print(f"{who}: {what}", markup=False, highlight=False, soft_wrap=True)
    if found["refused"]:
        screen.print("surgery may mend it: inspect what `trtforge build flow=export` makes", highlight=False)


def print_inspection(found: Mapping[str, Any]) -> None:
    """Prints what `inspect` found, one line per field."""
    screen = console()
    for name, value in found.items():
        if name == "profiles" and found["kind"] == "plan":
            _print_graphs(value)
        elif isinstance(value, Mapping):
            screen.print(f"{name}:", markup=False, highlight=False)
            for inner, content in value.items():
                if name == "metrics" and inner == "passes":
                    _print_passes(content)
                    continue
                screen.print(f"  {inner}: {_plain(content)}", markup=False, highlight=False, soft_wrap=True)
        else:
            screen.print(f"{name}: {_plain(value)}", markup=False, highlight=False, soft_wrap=True)


def _print_graphs(graphs: Sequence[Mapping[str, Any]]) -> None:
    screen = console()
    for number, graph in enumerate(graphs):
        screen.print(f"profile {number}:", highlight=False)
        for name in ("memory_budget_bytes", "weighted"):
            screen.print(f"  {name}: {_plain(graph[name])}", markup=False, highlight=False, soft_wrap=True)
        for operation in graph["operations"]:
            screen.print(f"  {_operation(operation)}", markup=False, highlight=False, soft_wrap=True)


def _operation(operation: Mapping[str, Any]) -> str:
    """Of a plan: `corrltn conv1: int8 int8 float -> int32`."""
    reads, writes = (" ".join(operation[name]) or "nothing" for name in ("reads", "writes"))
    return f"{operation['kind']} {operation['name']}: {reads} -> {writes}"


def _print_passes(passes: Sequence[Mapping[str, Any]]) -> None:
    columns = ("  pass", "nodes", "bytes", "did")
    table = bare_table(*columns, fold=columns)
    for each in passes:
        own = {name: value for name, value in each.items() if name not in _MEASURED and value not in (0, {}, [], "ok")}
        did = ", ".join(f"{name}: {_plain(value)}" for name, value in own.items())
        counts = (f"{each[f'{what}_before']} -> {each[f'{what}_after']}" for what in ("nodes", "bytes"))
        table.add_row(Text(f"  {each['pass']}"), *counts, Text(did))
    console().print(table)


_MEASURED = ("pass", "nodes_before", "nodes_after", "bytes_before", "bytes_after")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _listed(store: Store, name: str, key: str, published: Mapping[str, str]) -> dict[str, Any]:
    found = store.lookup(key)
    record = found.record if isinstance(found, Hit) else None
    blob = record.outputs["plan"] if record else None
    other = store.record(published[name]) if name in published else None
    mark = publications.refusal(store, name)
    return {
        "name": name,
        "key": key,
        "state": "ok" if isinstance(found, Hit) else found.reason or "record is gone",
        "built": record.provenance.get("finished") if record else None,
        "published": other is not None and record is not None and other.outputs.get("plan") == blob,
        "published_key": published.get(name),
        "refused": list(mark.gates) if mark is not None and mark.key == key else [],
        "digest": blob.digest if blob else None,
        "bytes": blob.bytes if blob else None,
        "path": str(store.path(blob)) if blob else None,
    }


def _on_disk(
    store: Store, record: Record | None, answers: Mapping[tuple[str | None, ...], Sequence[Summary]]
) -> dict[str, Any]:
    """What a plan takes of the disk, and what those take that had its name before."""
    own = record.outputs.get("plan") if record else None
    same = answers.get(_whose(About.of(record)), ()) if record else ()
    plans = {max(each.outputs, key=lambda blob: blob.bytes) for each in same if each.outputs} - {own}
    superseded = {blob: size for blob in plans if (size := store.disk_bytes(blob))}
    return {
        "disk_bytes": store.disk_bytes(own) if own else 0,
        "superseded": {
            "plans": len(superseded),
            "bytes": sum(blob.bytes for blob in superseded),
            "disk_bytes": sum(superseded.values()),
        },
    }


def _whose(about: About) -> tuple[str | None, ...]:
    return (about.step, about.target, about.model, about.flow)


def _record(store: Store, key: str) -> dict[str, Any]:
    found = store.lookup(key)
    if not isinstance(found, Hit):
        raise StageError(found.reason or f"record {key} is gone", "run `trtforge build` again: it rebuilds it")
    record: Record = found.record
    log = store.path(record.log) if record.log else None
    return {
        "kind": "record",
        "key": key,
        **record.fields,
        "outputs": {
            name: {"digest": blob.digest, "bytes": blob.bytes, "path": str(store.path(blob))}
            for name, blob in record.outputs.items()
        },
        "metrics": dict(record.metrics),
        "provenance": dict(record.provenance),
        "log": str(log) if log else None,
    }


def _file(path: Path) -> dict[str, Any]:
    if lookup.is_plan(path):
        return {"kind": "plan", "path": str(path), **asdict(plan.read(path)), **_graph(path)}
    return {"kind": "onnx", "path": str(path), "bytes": path.stat().st_size, **_signature(path)}


def _graph(path: Path) -> dict[str, Any]:
    """What the graph of each optimization profile says, and how many there are."""
    reason = plan_graph.why_unreadable(path)
    graphs = [] if reason else plan_graph.read(path)
    found = [
        {
            "memory_budget_bytes": graph.memory_budget_bytes,
            "weighted": plan_graph.counts(graph.operations),
            "operations": [asdict(operation) for operation in graph.operations],
        }
        for graph in graphs
    ]
    return {"graph_unread_reason": reason, "graphs": len(found) or None, "profiles": found}


def _signature(path: Path) -> dict[str, Any]:
    stage = STAGES["signature"]
    with TemporaryDirectory() as directory:
        stage.run(Job(stage.config(), {"onnx": [path]}, {}, Path(directory)))
        content: dict[str, Any] = json.loads((Path(directory) / stage.outputs["signature"]).read_text())
    return content
