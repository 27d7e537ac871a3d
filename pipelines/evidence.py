"""What a plan is judged by beside its model and data: golden outputs, the user's own metric, and an earlier plan."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from artifacts import publications
from artifacts.record import Record
from artifacts.store import Store
from conf.errors import ConfigError
from conf.schema import Holdout
from pipelines import data, sources
from pipelines.graph import VALIDATE, Node
from stages.stage import JSON

if TYPE_CHECKING:
    from pipelines.session import Session

PUBLISHED = "published"
"""What `against` says for the plan that stands published in the place of the one that is validated."""

METRIC = "model.holdout.metric"

_NEXT_STEP = "name a plan or key out of `trtforge ls`, an ONNX file, or `published`"


def files(holdout: Holdout) -> dict[str, Sequence[Path]]:
    """The golden outputs, and the user's own Python that judges; what is not given is absent.

    Raises:
        ConfigError: A path or a function is not there, or a metric has no labels to judge by.
    """
    found: dict[str, Sequence[Path]] = {}
    if holdout.golden is not None:
        found["golden"] = data.arrays("model.holdout.golden", holdout.golden)
    if holdout.metric is not None:
        if holdout.labels is None:
            raise ConfigError(
                f"{METRIC}={holdout.metric} needs labels, and the held-out data have none",
                "name the array: model.holdout.labels=NAME",
            )
        module, script = data.callable_of(METRIC, holdout.metric, "metric")
        found["metric"] = sources.script(script, METRIC) if script else sources.modules(module, key=METRIC)
    return found


def fact(holdout: Holdout) -> dict[str, JSON] | None:
    """The fact `metric`: the function, which numbers are better, and the versions of the packages that it imports.

    Raises:
        ConfigError: The function is not found.
    """
    if holdout.metric is None:
        return None
    module, script = data.callable_of(METRIC, holdout.metric, "metric")
    imported = sources.script_packages(script, METRIC) if script else sources.packages(module, key=METRIC)
    return {
        "callable": f"{data.SCRIPT}{module.partition(':')[2]}" if script else module,
        "direction": holdout.metric_direction,
        "packages": dict(imported),
    }


def with_against(session: Session, external: Callable[[Path], Sequence[Path]]) -> list[Node]:
    """The nodes of a session, those that compare `against` something with its files.

    Args:
        session: Its nodes were looked up: a plan that stands already is not compared with itself.
        external: The ONNX file and its data.

    Raises:
        ConfigError: There is no such plan or file.
    """
    return [
        replace(node, files={**node.files, **given}, inputs={**node.inputs, **dict.fromkeys(given, "model.against")})
        if (against := getattr(node.config, "against", None)) and (given := _against(against, node, session, external))
        else node
        for node in session.nodes
    ]


def overlaps(session: Session) -> list[tuple[str, str]]:
    """Steps that validate on samples that the model was calibrated with: what, and what to do, each in one line."""
    found = {}
    for outcome in session.outcomes.values():
        overlap = outcome.record.metrics.get("overlap") if outcome.record and outcome.node.stage.name == VALIDATE else 0
        if isinstance(overlap, Mapping) and overlap["count"]:
            first = overlap["first_samples"]
            named = ", ".join(map(str, first)) + (", …" if overlap["count"] > len(first) else "")
            found[outcome.node.step] = (
                f"{outcome.node.step}: {overlap['count']} of {overlap['held_out_samples']} held-out samples are in "
                f"model.calibration, too: {named} (counted from 0)",
                "hold other samples out: these say little about data that the model was not calibrated with",
            )
    return list(found.values())


def _against(
    against: str, node: Node, session: Session, external: Callable[[Path], Sequence[Path]]
) -> dict[str, Sequence[Path]]:
    store = session.store
    if against == PUBLISHED:
        return next((_plan_files(store, record) for record in _published(node, session)), {})
    path = Path(against)
    if path.suffix in data.ARRAYS:
        raise ConfigError(
            f"steps.{node.step}.config.against={against}: arrays are golden outputs",
            f"give them as such: model.holdout.golden={against}",
        )
    if path.is_file():
        return {"against_onnx": external(path.absolute())}
    key = store.ref(against) or store.ref(f"plans/{against}") or _key(store, against)
    record = store.record(key) if key else None
    if record is None or "plan" not in record.outputs:
        what = "no plan" if record else "no file, no key of the store, no name of a plan"
        raise ConfigError(f"steps.{node.step}.config.against={against}: {what}", _NEXT_STEP)
    return _plan_files(store, record)


def _published(node: Node, session: Session) -> Iterator[Record]:
    """What was published where the node's plan would be, the latest first, but for that plan itself.

    Once a plan is published, its next validation would else hold it against itself.
    """
    own, store, place = _plan_of(node, session), session.store, session.place(node.target)
    current = store.ref(f"published/{place}")
    for key in dict.fromkeys([*([current] if current else []), *publications.history(store, place).before]):
        record = store.record(key)
        if record is not None and record.outputs["plan"].digest != own and store.path(record.outputs["plan"]).is_file():
            yield record


def _plan_of(node: Node, session: Session) -> str | None:
    """The digest of the plan that the node is to validate; None where it is not built yet."""
    before, output = node.upstream.get("plan", ("", ""))
    record = session.outcomes[before].record if before else None
    return record.outputs[output].digest if record else None


def _plan_files(store: Store, record: Record) -> dict[str, Sequence[Path]]:
    """The plan of a record, and what it was built from, as far as the store has it."""
    from pipelines import lookup  # reads the index, which a run that compares with no plan need not open

    blob = record.outputs["plan"]
    if not store.path(blob).is_file():
        raise ConfigError(f"the plan {blob.digest} to compare against is gone from the store", _NEXT_STEP)
    found: dict[str, Sequence[Path]] = {"against_plan": [store.path(blob)]}
    made = lookup.maker(blob.digest, store, lookup.PLAN_MAKERS)
    # A refitted plan was made of a structure and of weights.
    for name, given in (("against_onnx", ("onnx", "structure")), ("against_weights", ("weights",))):
        took = next((each for each in given if made and made.fields["inputs"].get(each)), None)
        if made and took and (paths := lookup.inputs(made, took, store)):
            found[name] = paths
    return found


def _key(store: Store, text: str) -> str | None:
    from pipelines import lookup

    found = lookup.keys(text, store) if lookup.is_beginning(text) else []
    if len(found) > 1:
        raise ConfigError(f"{text}: {len(found)} keys begin so", "give more digits")
    return found[0] if found else None
