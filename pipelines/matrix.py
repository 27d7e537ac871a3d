"""A catalog's models and targets as one table, for Prefect: which plan stands how, and what its gates say."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from pipelines.execute import Outcome
from pipelines.rebuild import Rebuilt
from pipelines.session import Session
from pipelines.targets import BuildTarget

MOST_ROWS = 500
"""Prefect keeps a table as one value of its database; 500 rows are 0.1 MB, and less than 0.2 where each says why."""

LONGEST_REASON = 160

_LAST = {"built": 1, "cached": 2}
"""Where rows of these states stand; before them those of all others, with which something is wrong."""

Row = dict[str, Any]


def table(found: Sequence[Rebuilt]) -> list[Row]:
    """A row for each model and target, first those with which something is wrong; the last tells what is left out.

    Args:
        found: How it went, model by model.
    """
    rows = sorted((row for each in found for row in rows_of(each)), key=lambda row: _LAST.get(row["state"], 0))
    if len(rows) <= MOST_ROWS:
        return rows
    states = Counter(row["state"] for row in rows[MOST_ROWS:])
    told = {"model": f"and {states.total():,} more", "why": ", ".join(f"{n:,} {state}" for state, n in states.items())}
    return [*rows[:MOST_ROWS], {**dict.fromkeys(rows[0], ""), **told}]


def rows_of(rebuilt: Rebuilt) -> Iterator[Row]:
    """A row for each target; one for a model without, and for one that could not be planned."""
    session = rebuilt.session
    if session is None:
        yield _row(rebuilt, state="wrong", why=rebuilt.error)
        return
    for target in session.targets or (None,):
        state = _state(session, target)
        yield _row(
            rebuilt,
            flow=session.config.flow,
            target=target.name if target else "",
            architecture=target.architecture if target else "",
            version=target.release if target else "",
            state=state,
            gates=_gates(session, target),
            seconds=round(sum(each.seconds for each in _own(session, target)), 1),
            why=_why(session, target) if state in ("failed", "refused", "skipped") else "",
        )


def _row(rebuilt: Rebuilt, **values: Any) -> Row:
    why = " ".join(str(values.pop("why", "")).split())
    cut = why if len(why) <= LONGEST_REASON else f"{why[: LONGEST_REASON - 1]}…"
    columns = dict.fromkeys(("flow", "target", "architecture", "version", "state", "gates", "seconds"), "")
    return {"model": rebuilt.model, **columns, **values, "why": cut}


def _state(session: Session, target: BuildTarget | None) -> str:
    """That of its plan and all that it needs; what is shared and was built alone makes no plan `built`."""
    states = {outcome.state for outcome in _needed(session, target)}
    if "failed" in states:
        return "failed"
    if session.reservations(target):
        return "refused"
    if "skipped" in states:
        return "skipped"
    return "built" if any(outcome.state == "built" for outcome in _own(session, target)) else "cached"


def _gates(session: Session, target: BuildTarget | None) -> str:
    if not any(limit is not None for limit in asdict(session.config.gates).values()):
        return "none asked"
    return "no" if session.reservations(target) else "not asked yet" if session.held_back(target) else "hold"


def _why(session: Session, target: BuildTarget | None) -> str:
    errors = [outcome.error for outcome in _needed(session, target) if outcome.error]
    skipped = [f"{outcome.node.id}: {outcome.reason}" for outcome in _needed(session, target) if outcome.reason]
    return next(iter([*errors, *session.reservations(target), *skipped]), "")


def _own(session: Session, target: BuildTarget | None) -> list[Outcome]:
    return [outcome for outcome in session.outcomes.values() if outcome.node.target == target]


def _needed(session: Session, target: BuildTarget | None) -> list[Outcome]:
    return [outcome for outcome in session.outcomes.values() if outcome.node.target in (None, target)]
