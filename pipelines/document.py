"""What a run says at its end: the JSON document of the contract, and the same for people."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from pipelines.execute import Outcome
from pipelines.session import Session
from pipelines.targets import BuildTarget


def document(session: Session) -> dict[str, Any]:
    """What `build --json` and `status --json` print."""
    finished = all(outcome.state in ("built", "cached") for outcome in session.outcomes.values())
    return {
        "flow": session.config.flow,
        "ok": finished and not any(session.refusals(outcome) for outcome in session.outcomes.values()),
        "steps": [_step(session, session.outcomes[node.id]) for node in session.nodes],
        "plans": plans(session),
    }


def plans(session: Session) -> list[dict[str, Any]]:
    """The plans that are there, one per target."""
    found = []
    for target in session.targets:
        outcome = session.plan(target)
        if outcome is None or outcome.record is None:
            continue
        blob = outcome.record.outputs["plan"]
        found.append(
            {
                "target": target.name,
                "compute_capability": target.compute_capability,
                "backend": target.backend,
                "backend_version": target.backend_version,
                "path": str(session.store.path(blob)),
                "digest": blob.digest,
                "bytes": blob.bytes,
                "validated": session.validated(target),
            }
        )
    return found


def print_table(session: Session) -> None:
    """Prints the steps as a table, then one line per plan with its path."""
    screen = console()
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("step", "target", "state"):
        table.add_column(column)
    for column in ("seconds", "size"):
        table.add_column(column, justify="right")
    for node in session.nodes:
        outcome = session.outcomes[node.id]
        size = sum(blob.bytes for blob in outcome.record.outputs.values()) if outcome.record else None
        seconds = f"{outcome.seconds:.1f}" if outcome.state in ("built", "failed") else "-"
        table.add_row(
            node.step,
            node.target.name if node.target else "-",
            outcome.state,
            seconds,
            "-" if size is None else in_bytes(size),
        )
    screen.print(table)
    for target in session.targets:
        _print_plan(session, target, screen)


def console() -> Console:
    """Where tables go: as wide as the terminal, and never folded in a pipe or a file."""
    return Console(width=None if sys.stdout.isatty() else 200)


def in_bytes(size: int) -> str:
    """A size for people: `412 B`, `1.3 MB`; powers of ten, as disks and file listings count."""
    amount, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):  # noqa: B007 - the last unit is used below
        if amount < 1000:
            break
        amount /= 1000
    return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"


def _print_plan(session: Session, target: BuildTarget, screen: Console) -> None:
    outcome = session.plan(target)
    if outcome is None or outcome.record is None:
        return
    directory = session.published(target)
    directory = directory if directory and directory.exists() else None
    path = directory / "model.plan" if directory else session.store.path(outcome.record.outputs["plan"])
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    told = "validated" if session.validated(target) else "not validated"
    screen.print(f"{target.name}: {path} ({told})", markup=False, highlight=False, soft_wrap=True)


def _step(session: Session, outcome: Outcome) -> dict[str, Any]:
    record = outcome.record
    refusals = session.refusals(outcome)
    return {
        "step": outcome.node.step,
        "stage": outcome.node.stage.name,
        "target": outcome.node.target.name if outcome.node.target else None,
        "state": outcome.state,
        "key": outcome.key,
        "seconds": round(outcome.seconds, 3),
        "reason": outcome.reason,
        "error": outcome.error or (f"gate: {'; '.join(refusals)}" if refusals else None),
        "outputs": {
            name: {"digest": blob.digest, "bytes": blob.bytes, "path": str(session.store.path(blob))}
            for name, blob in (record.outputs if record else {}).items()
        },
        "metrics": dict(record.metrics) if record else {},
    }
