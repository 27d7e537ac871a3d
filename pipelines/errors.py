"""What ends a run, and the exit code that says so."""

from __future__ import annotations

from enum import IntEnum

from conf.errors import ConfigError


class Exit(IntEnum):
    """The command line's exit codes."""

    DONE = 0
    STEP_FAILED = 1
    WRONG_CALL = 2
    GATE_SAID_NO = 3
    NOBODY_CAN_BUILD = 4
    INTERRUPTED = 130


class RunError(Exception):
    """A run cannot go on, for a reason that is no single step's.

    Args:
        what: One line: what, where, what it got and what is allowed.
        next_step: One line: what the user can do about it.
    """

    def __init__(self, what: str, next_step: str = "") -> None:
        super().__init__(what, next_step)
        self.what = what
        self.next_step = next_step


class CannotBuildError(RunError):
    """No machine at hand can build a target."""


class EngineError(RunError):
    """Prefect could not run the flow."""


def exit_of(error: Exception) -> Exit:
    """The exit code of an error that has words for the user."""
    if isinstance(error, ConfigError):
        return Exit.WRONG_CALL
    return Exit.NOBODY_CAN_BUILD if isinstance(error, CannotBuildError) else Exit.STEP_FAILED


class InterruptedBuildError(Exception):
    """The user asked to stop while a step was running."""
