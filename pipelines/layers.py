"""What runs inside a plan: the verb `layers`. The report is `stages.layer_report`'s."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event
from typing import Any

from rich.table import Table
from rich.text import Text

from artifacts import digest
from artifacts.record import Record
from artifacts.store import Store
from conf.errors import ConfigError
from pipelines import child, lookup
from pipelines.document import bare_table, console, in_bytes
from stages import STAGES, backends, layer_report, plan
from stages.gpus import gpus
from stages.layer_report import Layer, ProfileLayers, Report
from stages.stage import StageError

_SECONDS = 600.0
"""How long timing may take; the largest engines load in tens of seconds."""


@dataclass(frozen=True)
class Plan:
    """A plan, and the record of the step that made it.

    Attributes:
        path: The file.
        record: Of the step that made it; None where the store knows none.
    """

    path: Path
    record: Record | None

    def inputs(self, store: Store) -> dict[str, list[Path]]:
        """What it was built from, as the stage `layers` takes it, as far as the store has it."""
        if self.record is None:
            return {}
        onnx = lookup.inputs(self.record, "onnx", store) or lookup.inputs(self.record, "structure", store)
        return {"onnx": onnx} if onnx else {}

    @property
    def profiles(self) -> Any:
        """The fact `profiles` of its build; None where nobody knows it."""
        return self.record.fields["facts"].get("profiles") if self.record else None


def plan_of(what: str, store: Store) -> Plan:
    """The plan that `what` names, as `lookup.find` understands it.

    Raises:
        ConfigError: It names none.
        StageError: Its record is gone.
    """
    found = lookup.find(what, store)
    if isinstance(found, Path):
        if not lookup.is_plan(found):
            raise ConfigError(f"{what}: not a plan", "give a plan, or a name or key out of `trtforge ls`")
        return Plan(found, lookup.maker(digest.of_file(found), store, lookup.PLAN_MAKERS))
    record = store.record(found)
    if record is None:
        raise StageError(f"record {found} is gone or damaged", "run `trtforge build` again: it rebuilds it")
    blob = record.outputs.get("plan")
    if blob is None:
        told = f"{what}: the record of a step {record.fields.get('stage')}, which makes no plan"
        raise ConfigError(told, "give a key or name out of `trtforge ls --json`")
    if problem := store.problem(blob):
        raise StageError(f"{what}: {problem}", "run `trtforge build` again: it rebuilds it")
    if record.fields["stage"] not in lookup.PLAN_MAKERS:
        record = lookup.maker(blob.digest, store, lookup.PLAN_MAKERS)
    return Plan(store.path(blob), record)


def report_of(found: Plan, store: Store) -> Report:
    """The report that was kept with a plan, or else one that is made now, without a GPU.

    Raises:
        StageError: The plan or the report is damaged.
    """
    kept = found.record.outputs.get("layers") if found.record else None
    if kept is not None and not store.problem(kept):
        return Report.of(json.loads(store.path(kept).read_text("utf-8")))
    model = layer_report.model_of(found.inputs(store).get("onnx"))
    log = found.record.log if found.record else None
    said = store.path(log).read_text("utf-8", errors="replace") if log and not store.problem(log) else ""
    return layer_report.of_plan(found.path, model, found.profiles, said)


def layers(what: str, store: Store, timed: bool, stop: Event) -> dict[str, Any]:
    """Answers the verb.

    Args:
        what: As `lookup.find` understands it.
        store: Where it is looked up.
        timed: Whether to time each layer, in a child process, on a GPU that executes the plan.
        stop: Set when the user wants to stop.

    Raises:
        ConfigError: It is no plan, or none that a GPU here executes.
        StageError: The plan is damaged, or cannot be executed.
    """
    found = plan_of(what, store)
    report = _timed(found, store, stop) if timed else report_of(found, store)
    return {
        "path": str(found.path),
        "key": found.record.key if found.record else None,
        "shares": report.shares(),
        **report.document(),
    }


def print_layers(found: Mapping[str, Any]) -> None:
    """Prints what `layers` found: for each profile a table of its precisions, and one of its layers."""
    report = Report.of(found)
    screen = console()
    for said in (report.unread_reason, report.model_reason):
        if said:
            screen.print(said, markup=False, highlight=False, soft_wrap=True)
    for read in report.profiles:
        screen.print(f"profile {read.profile or '(name not known)'}:", markup=False, highlight=False)
        screen.print(precision_table(read))
        screen.print(_layer_table(read.layers))
        for name, number in read.unplaced.items():
            screen.print(f"{name}: no layer names it ({in_macs(number)} MACs)", markup=False, highlight=False)
    if any(layer.ms is None for read in report.profiles for layer in read.layers) and report.timed_reason:
        screen.print(f"no times: {report.timed_reason}", markup=False, highlight=False, soft_wrap=True)


def precision_table(read: ProfileLayers) -> Table:
    """Of one profile: layers, products, MACs, weights and time of each precision, with their shares."""
    counts = read.precisions
    numbers = ("layers", "products", "MACs", "weights", "time")
    table = bare_table("precision", *numbers, right=numbers)
    macs, held, ms = (
        sum(getattr(count, what) or 0 for count in counts.values()) for what in ("macs", "weight_bytes", "ms")
    )
    for name, count in counts.items():
        table.add_row(
            name,
            str(count.layers),
            str(count.products),
            _with_share(in_macs(count.macs), count.macs, macs),
            _with_share(in_bytes(count.weight_bytes), count.weight_bytes, held),
            _with_share("-" if count.ms is None else f"{count.ms:.3f} ms", count.ms, ms),
        )
    return table


def in_macs(number: int | None) -> str:
    """Multiply-accumulates for people: `14.2 M`; powers of ten."""
    if number is None:
        return "?"
    amount = float(number)
    for unit in ("", " k", " M", " G", " T"):  # noqa: B007 - the last is used below
        if amount < 1000:
            break
        amount /= 1000
    return f"{number}" if not unit else f"{amount:.1f}{unit}"


def _layer_table(found: Sequence[Layer]) -> Table:
    numbers, names = ("MACs", "time"), ("layer", "of the nodes")
    table = bare_table("computes in", *numbers, *names, right=numbers, fold=names)
    for layer in found:
        time = "-" if layer.ms is None else f"{layer.ms:.4f} ms"
        macs = in_macs(layer.macs) if layer.macs else "-"
        name = layer.name if layer.name else layer.kind
        table.add_row(layer.precision, macs, time, Text(name), Text(" ".join(layer.nodes)))
    return table


def _timed(found: Plan, store: Store, stop: Event) -> Report:
    header = plan.read(found.path)
    facts = found.record.fields["facts"] if found.record else {}
    here = gpus()
    capability = facts.get("compute_capability") or _capability(header.compute_capabilities, here)
    reason = backends.why_not_run(header.backend, capability, here)
    if reason:
        raise ConfigError(f"{found.path}: {reason}", "time it on a machine with such a GPU, or leave out --time")
    stage = STAGES["layers"]
    given = {
        "backend": header.backend,
        "backend_version": header.version,
        "compute_capability": capability,
        "gpu_here": True,
        "profiles": found.profiles,
    }
    inputs = {"plan": [found.path], **found.inputs(store)}
    if found.record and (plugins := lookup.inputs(found.record, "plugins", store)):
        inputs["plugins"] = plugins
    with TemporaryDirectory() as directory:
        work = child.Work("layers", stage, stage.config(), inputs, given, Path(directory), child.Limits(_SECONDS))
        result = child.run(work, lambda phase, fraction: None, stop)
        return Report.of(json.loads((result.out / stage.outputs["layers"]).read_text("utf-8")))


def _capability(built_for: Sequence[str], here: Any) -> str:
    """Of a plan that no record tells of: that of the first GPU here which it was built for."""
    own = [gpu.compute_capability for gpu in here.found]
    return next((each for each in own if each in built_for or not built_for), next(iter(built_for), "?"))


def _with_share(text: str, part: float | None, whole: float) -> str:
    return f"{text} ({100 * part / whole:.1f} %)" if part is not None and whole else text
