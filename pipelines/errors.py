"""What ends a run, and the exit code that says so."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """The command line's exit codes."""

    DONE = 0
    STEP_FAILED = 1
    WRONG_CALL = 2
    GATE_SAID_NO = 3
    NOBODY_CAN_BUILD = 4
    INTERRUPTED = 130


class CannotBuildError(Exception):
    """No machine at hand can build a target.

    Args:
        what: One line: which target, and why not.
        next_step: One line: what the user can do about it.
    """

    def __init__(self, what: str, next_step: str = "") -> None:
        super().__init__(what, next_step)
        self.what = what
        self.next_step = next_step


class EngineError(Exception):
    """Prefect could not run the flow.

    Args:
        what: One line: what it said.
        next_step: One line: what the user can do about it.
    """

    def __init__(self, what: str, next_step: str = "") -> None:
        super().__init__(what, next_step)
        self.what = what
        self.next_step = next_step


class InterruptedBuildError(Exception):
    """The user asked to stop while a step was running."""
