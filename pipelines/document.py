"""What a run says at its end: the JSON document of the contract, and the same for people."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.execute import Outcome
from pipelines.session import Session
from pipelines.targets import BuildTarget

if TYPE_CHECKING:
    from rich.console import Console, JustifyMethod
    from rich.table import Table

PIPE_COLUMNS = 200
"""How wide a table may be that goes to a pipe or a file."""

_HEADER = ("step", "target", "state", "seconds", "size")
_NUMBERS = 2
"""So many of the columns, the last, hold numbers and end flush."""


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
    rows = [_row(session.outcomes[node.id]) for node in session.nodes]
    print("\n".join(plain_table(rows))) if _is_plain(rows) else print_rich_table(rows, console())
    for target in session.targets:
        _print_plan(session, target)
    onnx = session.published(None)
    if onnx and onnx.exists():
        _print_path(f"{session.config.model.name}", onnx / "model.onnx")


def plain_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines that `print_rich_table` prints to a pipe, 30 ms faster: what takes the time is to import rich."""
    table = [_HEADER, *rows]
    widths = [max(len(row[column]) for row in table) for column in range(len(_HEADER))]
    texts = len(_HEADER) - _NUMBERS
    return [
        "  ".join(
            cell.ljust(width) if column < texts else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in table
    ]


def print_rich_table(rows: Sequence[Sequence[str]], screen: Console) -> None:
    """Prints the rows as a table that fits the terminal."""
    from rich.text import Text

    table = bare_table(*_HEADER, right=_HEADER[-_NUMBERS:])
    for row in rows:
        table.add_row(*map(Text, row))
    screen.print(table)


def bare_table(*columns: str, right: Collection[str] = (), fold: Collection[str] = ()) -> Table:
    """A table without lines or rows; columns of numbers are at the `right`, those that `fold` show long names whole."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        justify: JustifyMethod = "right" if name in right else "left"
        table.add_column(name, justify=justify, overflow="fold" if name in fold else "ellipsis")
    return table


def console() -> Console:
    """Where tables go: as wide as the terminal, and never folded in a pipe or a file."""
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS)


def in_bytes(size: int) -> str:
    """A size for people: `412 B`, `1.3 MB`; powers of ten, as disks and file listings count."""
    amount, unit = float(size), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):  # noqa: B007 - the last unit is used below
        if amount < 1000:
            break
        amount /= 1000
    return f"{size} B" if unit == "B" else f"{amount:.1f} {unit}"


def _row(outcome: Outcome) -> tuple[str, ...]:
    node, record = outcome.node, outcome.record
    return (
        node.step,
        node.target.name if node.target else "-",
        outcome.state,
        f"{outcome.seconds:.1f}" if outcome.state in ("built", "failed") else "-",
        in_bytes(sum(blob.bytes for blob in record.outputs.values())) if record else "-",
    )


def _is_plain(rows: Sequence[Sequence[str]]) -> bool:
    """Whether no terminal has to be pleased, and every character is one column wide."""
    if sys.stdout.isatty() or os.environ.get("FORCE_COLOR"):
        return False
    return all(cell.isascii() and cell.isprintable() for row in rows for cell in row) and (
        len(plain_table(rows)[0]) <= PIPE_COLUMNS
    )


def _print_plan(session: Session, target: BuildTarget) -> None:
    outcome = session.plan(target)
    if outcome is None or outcome.record is None:
        return
    directory = session.published(target)
    directory = directory if directory and directory.exists() else None
    path = directory / "model.plan" if directory else session.store.path(outcome.record.outputs["plan"])
    told = "validated" if session.validated(target) else "not validated"
    if refusals := session.reservations(target):
        told += f"; refused: {'; '.join(refusals)}"
    if directory is None and session.store.ref(f"published/{session.place(target)}"):
        told += "; another is published"
    size = outcome.record.outputs["plan"].bytes
    if target.memory_bytes is not None and size > target.memory_bytes:
        told += f"; its {in_bytes(size)} are more than the GPU's {in_bytes(target.memory_bytes)} of memory"
    _print_path(target.name, path, f" ({told})")


def _print_path(name: str, path: Path, told: str = "") -> None:
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    print(f"{name}: {path}{told}")


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
