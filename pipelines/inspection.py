"""What is in the store, and what a file is: the verbs `ls` and `inspect`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from artifacts.digest import is_digest
from artifacts.record import Record
from artifacts.store import Hit, Store
from conf.errors import ConfigError
from pipelines.document import console, in_bytes
from stages import STAGES, plan
from stages.stage import Job, StageError

_SHORTEST = 8
"""Hex digits that a person must at least type of a key or digest."""


def list_plans(store: Store) -> list[dict[str, Any]]:
    """The plans that have a name, sorted by it; of a damaged one it says so."""
    published = {name.removeprefix("published/"): key for name, key in store.refs("published").items()}
    return [_listed(store, name.removeprefix("plans/"), key, published) for name, key in store.refs("plans").items()]


def print_plans(found: list[dict[str, Any]]) -> None:
    """Prints what `list_plans` found as a table."""
    screen = console()
    if not found:
        screen.print("no plans yet: run trtforge build")
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("plan", "built", "published", "state"):
        table.add_column(column)
    table.add_column("size", justify="right")
    for entry in found:
        size = "-" if entry["bytes"] is None else in_bytes(entry["bytes"])
        table.add_row(entry["name"], entry["built"] or "-", "yes" if entry["published"] else "no", entry["state"], size)
    screen.print(table)


def inspect(what: str, store: Store) -> dict[str, Any]:
    """Says what `what` is: a file (plan, ONNX), a key or digest (or its beginning), or the name of a plan.

    Raises:
        ConfigError: It is nothing of these.
        StageError: The file is damaged.
    """
    path = Path(what)
    if path.is_file():
        return _file(path)
    name = what if what.startswith(("plans/", "published/")) else f"plans/{what}"
    key = store.ref(name) or _by_digest(what, store)
    if isinstance(key, Path):
        return _file(key)
    if key is None:
        raise ConfigError(
            f"{what}: no file, no key or digest of the store {store.root}, no name of a plan",
            "give a path, or a name or key out of `trtforge ls` or `trtforge build --json`",
        )
    return _record(store, key)


def print_inspection(found: Mapping[str, Any]) -> None:
    """Prints what `inspect` found, one line per field."""
    screen = console()
    for name, value in found.items():
        if isinstance(value, Mapping):
            screen.print(f"{name}:", markup=False, highlight=False)
            for inner, content in value.items():
                screen.print(f"  {inner}: {_plain(content)}", markup=False, highlight=False, soft_wrap=True)
        else:
            screen.print(f"{name}: {_plain(value)}", markup=False, highlight=False, soft_wrap=True)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _listed(store: Store, name: str, key: str, published: Mapping[str, str]) -> dict[str, Any]:
    found = store.lookup(key)
    record = found.record if isinstance(found, Hit) else None
    blob = record.outputs["plan"] if record else None
    return {
        "name": name,
        "key": key,
        "state": "ok" if isinstance(found, Hit) else found.reason or "record is gone",
        "built": record.provenance.get("finished") if record else None,
        "published": name in published,
        "digest": blob.digest if blob else None,
        "bytes": blob.bytes if blob else None,
        "path": str(store.path(blob)) if blob else None,
    }


def _by_digest(what: str, store: Store) -> str | Path | None:
    """A record's key, or an object's path, that begins with the hex digits `what`."""
    if not (_SHORTEST <= len(what) <= 64 and is_digest(what.ljust(64, "0"))):
        return None
    keys = [path.stem for path in (store.root / "records").glob(f"{what}*.json")]
    objects = list((store.root / "objects" / what[:2]).glob(f"{what[2:]}*"))
    if len(keys) + len(objects) > 1:
        raise ConfigError(f"{what}: {len(keys) + len(objects)} keys and digests begin so", "give more digits")
    return keys[0] if keys else objects[0] if objects else None


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
    with path.open("rb") as file:
        head = file.read(4)
    if head in (b"vtrt", b"ftrt"):
        return {"kind": "plan", "path": str(path), **asdict(plan.read(path))}
    return {"kind": "onnx", "path": str(path), "bytes": path.stat().st_size, **_signature(path)}


def _signature(path: Path) -> dict[str, Any]:
    from tempfile import TemporaryDirectory

    stage = STAGES["signature"]
    with TemporaryDirectory() as directory:
        stage.run(Job(stage.config(), {"onnx": [path]}, {}, Path(directory)))
        content: dict[str, Any] = json.loads((Path(directory) / stage.outputs["signature"]).read_text())
    return content
