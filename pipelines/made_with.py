"""What a published plan was made with: the versions in the keys of its steps, and which of them are not installed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from artifacts.record import Record
from artifacts.store import Store
from pipelines.builders import Builders
from stages import installed
from stages.gpus import architecture


@dataclass(frozen=True)
class Rerun:
    """A step that a rebuild runs anew, since its key holds a version that is not installed any more.

    Attributes:
        step: Its name in the flow.
        package: A backend, or a distribution of the key's tools.
        built_with: The versions that it ran with, of those that gave these bytes.
        installed: The version here; None where there is none.
    """

    step: str
    package: str
    built_with: tuple[str, ...]
    installed: str | None


@dataclass
class Lineage:
    """Which steps published plans were made by.

    Attributes:
        store: Where they are.
        makers: Digest -> the keys of the records that gave these bytes, each with its model.
        read: The records that were read already.
    """

    store: Store
    makers: Mapping[str, Sequence[tuple[str, str | None]]] = field(default_factory=dict)
    read: dict[str, Record | None] = field(default_factory=dict)

    @classmethod
    def of(cls, store: Store) -> Lineage:
        """That of all records of `store`."""
        from artifacts.index import Index  # SQLite takes 10 ms, which `status --versions` need not spend

        makers = defaultdict(list)
        for summary in Index(store).summaries()[0].values():
            if summary.stage != "publish":  # it copies a plan, so that its output is what made it
                for blob in summary.outputs:
                    makers[blob.digest].append((summary.key, summary.about.model))
        return cls(store, makers)

    def _record(self, key: str) -> Record | None:
        if key not in self.read:
            self.read[key] = self.store.record(key)
        return self.read[key]

    def records(self, key: str, model: str) -> Iterator[Record]:
        """The record of the plan that was published for `model` under `key`, and all that it was made from."""
        seen, front = set[str](), [key]
        while front:
            key = front.pop()
            record = None if key in seen else self._record(key)
            seen.add(key)
            if record is not None:
                yield record
                for digest in _inputs(record):
                    makers = self.makers.get(digest, ())
                    # Steps are shared by models of the same content: what made it may be another's.
                    front += [maker for maker, whose in makers if whose == model] or [maker for maker, _ in makers]


def tools(records: Sequence[Record]) -> dict[str, tuple[str, ...]]:
    """The versions of the packages that stand in the keys of `records`, sorted."""
    found: dict[str, set[str]] = defaultdict(set)
    for record in records:
        for name, version in record.fields["tools"].items():
            found[name].add(version)
    return {name: tuple(sorted(versions)) for name, versions in found.items()}


def reruns(records: Sequence[Record], builders: Builders) -> list[Rerun]:
    """The steps whose keys hold versions that would not run them now, in the order of their names.

    The same bytes may have come out with several versions: one of them that is installed is enough.
    """
    used: dict[tuple[str, str], set[str]] = defaultdict(set)
    here: dict[str, str | None] = {}
    for record in records:
        step = str(record.provenance.get("step") or record.fields["stage"])
        for name, version in record.fields["tools"].items():
            used[step, name].add(version)
            here[name] = installed.version(name)
        facts = record.fields["facts"]
        if "backend_version" in facts:
            used[step, facts["backend"]].add(facts["backend_version"])
            here[facts["backend"]] = _now(facts, builders)
    return [
        Rerun(step, name, tuple(sorted(versions)), here[name])
        for (step, name), versions in sorted(used.items())
        if here[name] not in versions
    ]


def _now(facts: Mapping[str, Any], builders: Builders) -> str | None:
    """The version of a step's backend by which it would run now."""
    capability = facts.get("compute_capability")  # what only asks the parser has none
    return builders.version(facts["backend"], architecture(capability) if capability else "")


def _inputs(record: Record) -> Iterator[str]:
    for told in record.fields["inputs"].values():
        yield from [told] if isinstance(told, str) else told
