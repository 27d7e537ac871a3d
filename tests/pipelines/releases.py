"""Stores as another release of TensorRT-RTX would have left them: with its version in records and names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from artifacts import publications
from artifacts.publications import Publication
from artifacts.record import Record
from artifacts.store import Store
from pipelines.session import published_files
from tests.pipelines.conftest import Forge

OLDER = "1.7.0.98"


def leave(forge: Forge, version: str) -> Forge:
    """Makes the store of `forge` what TensorRT-RTX of `version` would have left there, with the bytes of today's."""

    def change(record: Record) -> Record:
        facts = record.fields["facts"]
        if "backend_version" not in facts:
            return record
        return replace(record, fields={**record.fields, "facts": {**facts, "backend_version": version}})

    rewrite(Store(forge.store), change)
    return forge


def rewrite(store: Store, change: Callable[[Record], Record]) -> None:
    """Lets every record be what `change` makes of it, and published names mean what became of theirs."""
    became: dict[str, Record] = {}
    for key in list(store.recorded()):
        before = store.record(key)
        assert before
        after = change(before)
        if after.key != key:
            store.delete(store.record_path(key))
            store.put(after)
        became[key] = after
    for name, key in store.refs("published").items():
        after, own = became[key], name.removeprefix("published/")
        store.delete_ref(name)
        (store.root / name).unlink()
        store.delete(store.root / "publications" / f"{own}.json")
        model, arch, _, flow = own.split("/")
        renamed = f"{model}/{arch}/rtx-{after.fields['facts']['backend_version']}/{flow}"
        moved = Publication(after.key, at="2026-01-02T03:04:05+00:00", by="ann@forge")
        publications.move(store, renamed, published_files(after), moved)
    for name in store.refs("plans"):
        store.delete_ref(name)
