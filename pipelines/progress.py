"""How far the steps of a run are, for who looks now and then, such as Prefect's progress artifacts."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from pipelines.execute import Outcome
from pipelines.reporting import Reporter

LONG_SECONDS = 10.0
"""What runs longer is worth a look at how far it is: of the digits model no step does, of a ResNet-50 calibration."""


@dataclass
class Step:
    """A step that has begun.

    Attributes:
        began: By the monotonic clock.
        at: Its phase, and how much of it is done (0 to 1); None where nobody knows.
        outcome: How it ended; None while it runs.
    """

    began: float = field(default_factory=time.monotonic)
    at: tuple[str, float | None] = ("", None)
    outcome: Outcome | None = None


class Progress(Reporter):
    """Passes everything on to another reporter, and keeps how far each step is.

    Nobody waits here, whoever looks: what a step says, often and from any thread, replaces what it said before.
    """

    def __init__(self, reporter: Reporter) -> None:
        self._reporter = reporter
        self._steps: dict[str, Step] = {}

    def steps(self) -> dict[str, Step]:
        """The steps that have begun, by the ids of their nodes."""
        return self._steps.copy()

    def started(self, name: str) -> None:
        """Keeps that it begins."""
        self._steps[name] = Step()
        self._reporter.started(name)

    def progressed(self, name: str, phase: str, fraction: float | None) -> None:
        """Keeps how far it is."""
        if name in self._steps:
            self._steps[name].at = (phase, fraction)
        self._reporter.progressed(name, phase, fraction)

    def finished(self, outcome: Outcome) -> None:
        """Keeps how it ended."""
        if outcome.node.id in self._steps:
            self._steps[outcome.node.id].outcome = outcome
        self._reporter.finished(outcome)

    def note(self, text: str) -> None:
        """Passes it on."""
        self._reporter.note(text)

    def close(self) -> None:
        """Passes it on."""
        self._reporter.close()
