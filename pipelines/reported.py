"""What a verb did that runs some steps of a flow alone: those steps, how each ended, and the report that each wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.execute import Outcome
from pipelines.graph import Node
from pipelines.session import Session


@dataclass(frozen=True)
class Reported:
    """Steps that were run, target by target.

    Attributes:
        session: The run.
        nodes: Its steps that were.
    """

    session: Session
    nodes: Sequence[Node]

    @property
    def outcomes(self) -> list[Outcome]:
        """How each of the steps ended."""
        return [self.session.outcomes[node.id] for node in self.nodes]

    def report(self, outcome: Outcome) -> Mapping[str, Any]:
        """The JSON file that a step which is done wrote as its output `report`."""
        assert outcome.record is not None, "it is done"  # noqa: S101
        path = self.session.store.path(outcome.record.outputs["report"])
        return dict(json.loads(path.read_text(encoding="utf-8")))

    def described(self, outcome: Outcome) -> dict[str, Any]:
        """A step as the verb's JSON has it; its report is null where it has none."""
        target = outcome.node.target
        return {
            "step": outcome.node.step,
            "target": target.name if target else None,
            "state": outcome.state,
            "key": outcome.key,
            "seconds": round(outcome.seconds, 3),
            "error": outcome.error,
            "report": self.report(outcome) if outcome.done else None,
        }
