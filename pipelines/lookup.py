"""What people name: a file, a key or digest of the store or its beginning, the name of a plan, a model and a target."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from artifacts import digest
from artifacts.index import Index, Summary
from artifacts.record import Blob, Record
from artifacts.store import Store
from conf.errors import ConfigError
from stages.stage import DATA_SUFFIX

SHORTEST = 8
"""Hex digits that a person must at least type of a key or digest."""

PLAN_MAGIC = (b"vtrt", b"ftrt")

PLAN_MAKERS = ("refit", "build")
"""The stages that make a plan; the same bytes come out of others, such as `publish`, too."""


def find(what: str, store: Store) -> Path | str:
    """The path of a file, or the key of a record.

    Args:
        what: A path; a key or digest, or its beginning; a plan's name as `ls` has it, or `published/` and that; or
            `MODEL@TARGET` or `MODEL/FLOW@TARGET`: the plan that was last built so.
        store: Where keys and names are looked up.

    Raises:
        ConfigError: It is nothing of these, or could be several.
    """
    if Path(what).is_file():
        return Path(what)
    name = what if what.startswith(("plans/", "published/")) else f"plans/{what}"
    found = store.ref(name) or by_digest(what, store) or _by_target(what, store)
    if found is None:
        raise ConfigError(
            f"{what}: no file, no key or digest of the store {store.root}, no name of a plan",
            "give a path, or a name or key out of `trtforge ls` or `trtforge build --json`",
        )
    return found


def record(beginning: str, store: Store) -> Record:
    """The record whose key begins with these hex digits.

    Raises:
        ConfigError: There is none, or several.
    """
    found = keys(beginning, store)
    read = store.record(found[0]) if len(found) == 1 else None
    if read is None:
        what = f"{len(found)} records begin so" if len(found) > 1 else "no readable record of the store has this key"
        raise ConfigError(f"{beginning}: {what}: {store.root}", "give a whole key out of `trtforge status --json`")
    return read


def keys(beginning: str, store: Store) -> list[str]:
    """The keys of records that begin so."""
    return sorted(path.stem for path in (store.root / "records").glob(f"{beginning}*.json"))


def is_beginning(text: str) -> bool:
    """Whether `text` is long enough a beginning of a key or digest to name one."""
    return SHORTEST <= len(text) <= 64 and digest.is_digest(text.ljust(64, "0"))


def by_digest(what: str, store: Store) -> str | Path | None:
    """A record's key, or an object's path, that begins with the hex digits `what`.

    Raises:
        ConfigError: Several do.
    """
    if not is_beginning(what):
        return None
    records, objects = keys(what, store), store.objects(what)
    if len(records) + len(objects) > 1:
        raise ConfigError(f"{what}: {len(records) + len(objects)} keys and digests begin so", "give more digits")
    return records[0] if records else store.path(Blob(objects[0], 0)) if objects else None


def is_plan(path: Path) -> bool:
    """Whether the file at `path` begins as a plan does."""
    with path.open("rb") as file:
        return file.read(4) in PLAN_MAGIC


def maker(content: str, store: Store, stages: tuple[str, ...] = ()) -> Record | None:
    """The latest readable record whose answer has the digest `content`; of `stages`, where some are named."""
    found = [
        summary
        for summary in Index(store).summaries()[0].values()
        if any(blob.digest == content for blob in summary.outputs) and (not stages or summary.stage in stages)
    ]
    return next(_latest_first(found, store), None)


def takers(content: str, stage: str, store: Store) -> list[Record]:
    """The readable records of `stage` whose question has the digest `content` among its inputs, the latest first."""
    found = [
        summary
        for summary in Index(store).summaries()[0].values()
        if summary.stage == stage and content in summary.inputs
    ]
    return list(_latest_first(found, store))


def _latest_first(found: list[Summary], store: Store) -> Iterator[Record]:
    """The records that can be read."""
    found.sort(key=lambda each: (each.about.finished or "", each.key), reverse=True)
    return (read for each in found if (read := store.record(each.key)))


def inputs(of: Record, name: str, store: Store) -> list[Path]:
    """The files of the input `name` of a record, as far as the store has them; none where one is missing."""
    given = of.fields.get("inputs", {}).get(name) or []
    paths = [store.path(Blob(each, 0)) for each in ([given] if isinstance(given, str) else given)]
    return paths if all(path.is_file() for path in paths) else []


def onnx_files(of: Record, store: Store) -> list[Path]:
    """The ONNX file, and its data where it has any, that a record's answer holds; none where it holds none."""
    return [store.path(of.outputs[name]) for name in ("onnx", "onnx" + DATA_SUFFIX) if name in of.outputs]


def _by_target(what: str, store: Store) -> str | None:
    """The key of the plan that was last built for `MODEL@TARGET` or `MODEL/FLOW@TARGET`."""
    model, _, target = what.rpartition("@")
    found = [
        summary
        for summary in Index(store).summaries()[0].values()
        if summary.stage in PLAN_MAKERS
        and summary.about.target == target
        and model in (summary.about.model, f"{summary.about.model}/{summary.about.flow}")
    ]
    # A plan that is refitted at once may be built within the same second, which is as long as times are told apart.
    return (
        max(found, key=lambda each: (each.about.finished or "", each.stage == "refit", each.key)).key if found else None
    )
