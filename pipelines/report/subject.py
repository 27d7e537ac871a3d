"""What the store knows of one plan: the steps that made and judged it, and what was measured of it since."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from artifacts.errors import StoreError
from artifacts.record import Record
from artifacts.store import Store
from pipelines.execute import Outcome
from pipelines.session import Session
from pipelines.targets import BuildTarget


@dataclass(frozen=True)
class Subject:
    """One plan.

    Attributes:
        session: The run that names it.
        target: What it is for.
        plan: The step that made it.
        record: The record of that step.
        timings: The records of all plans of its model and flow that were timed, on any target, in the order of time.
    """

    session: Session
    target: BuildTarget
    plan: Outcome
    record: Record
    timings: Sequence[Record] = ()

    @property
    def store(self) -> Store:
        """Where all of it lies."""
        return self.session.store

    @property
    def name(self) -> str:
        """`digits-l4-int8`, such as a file may be called."""
        return "-".join(self.words)

    @property
    def words(self) -> tuple[str, str, str]:
        """Model, target and flow."""
        return str(self.session.config.model.name), self.target.name, self.session.config.flow

    @cached_property
    def outcomes(self) -> list[Outcome]:
        """The steps of the run that are done and shared or of the target, each after those that it depends on."""
        own = [self.session.outcomes[node.id] for node in self.session.nodes if node.target in (None, self.target)]
        return [outcome for outcome in own if outcome.done]

    @cached_property
    def records(self) -> list[tuple[str, Record]]:
        """What these steps answered, by the steps' names."""
        return [(outcome.node.step, outcome.record) for outcome in self.outcomes if outcome.record is not None]

    def of(self, stage: str) -> Iterator[Record]:
        """The records of the steps of `stage`."""
        return (record for _, record in self.records if record.fields["stage"] == stage)

    @property
    def timed(self) -> Record | None:
        """The last record of those that timed this plan; None where none did."""
        digest = self.record.outputs["plan"].digest
        return next((each for each in reversed(self.timings) if each.fields["inputs"].get("plan") == digest), None)

    def path(self, record: Record, output: str) -> Path:
        """Where an output of a record lies.

        Raises:
            StoreError: It is gone or damaged.
        """
        blob = record.outputs[output]
        if problem := self.store.problem(blob):
            raise StoreError(problem, "run `trtforge verify --repair`, then build again")
        return self.store.path(blob)

    def content(self, record: Record, output: str) -> Mapping[str, Any]:
        """The JSON in an output of a record.

        Raises:
            StoreError: It is gone or damaged.
        """
        return dict(json.loads(self.path(record, output).read_text(encoding="utf-8")))


def subjects(session: Session, timed: Sequence[Record] | None = None) -> list[Subject]:
    """The plans of a run that are built, target by target.

    Args:
        session: The run.
        timed: Its `timings`, where they have been read.
    """
    built = [(target, plan) for target in session.targets if (plan := session.plan(target)) and plan.record]
    found = timed if timed is not None else timings(session) if built else []
    return [Subject(session, target, plan, plan.record, found) for target, plan in built if plan.record]


def timings(session: Session) -> list[Record]:
    """The records of the stage `bench` of the run's model and flow, in the order of time."""
    from artifacts.index import Index

    summaries = Index(session.store).summaries()[0].values()
    wanted = (session.config.model.name, session.config.flow)
    keys = [each.key for each in summaries if each.stage == "bench" and (each.about.model, each.about.flow) == wanted]
    found = [record for key in keys if (record := session.store.record(key)) is not None]
    return sorted(found, key=lambda record: (str(record.provenance.get("finished", "")), record.key))
