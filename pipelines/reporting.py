"""What people see while a run goes on: a live bar per running step on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING

from pipelines.execute import WAITING, Outcome

if TYPE_CHECKING:
    from rich.progress import TaskID


class Reporter:
    """Told what happens, from any thread; says nothing."""

    def started(self, name: str) -> None:
        """A step begins."""

    def progressed(self, name: str, phase: str, fraction: float | None) -> None:
        """A step is at `phase`, of which `fraction` (0 to 1) is done."""

    def finished(self, outcome: Outcome) -> None:
        """A step has ended."""

    def note(self, text: str) -> None:
        """Something that a waiting user wants to know."""

    def close(self) -> None:
        """The run is over: leaves the terminal as it was."""


class Lines(Reporter):
    """A line when a step begins and one when it ends, on stderr: for logs."""

    def __init__(self) -> None:
        self._waits: dict[str, str] = {}

    def started(self, name: str) -> None:
        """Prints that it begins."""
        self.note(f"{name}: started")

    def progressed(self, name: str, phase: str, fraction: float | None) -> None:
        """Prints whom it waits for, once; the rest is for bars."""
        if phase.startswith(WAITING) and self._waits.get(name) != phase:
            self._waits[name] = phase
            self.note(f"{name}: {phase}")

    def finished(self, outcome: Outcome) -> None:
        """Prints how it ended."""
        self.note(f"{outcome.node.id}: {summary(outcome)}")

    def note(self, text: str) -> None:
        """Prints it, text and newline in one write: steps report from several threads."""
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()


class Live(Reporter):
    """A bar per running step, on the terminal behind stderr."""

    def __init__(self) -> None:
        from rich.console import Console  # 30 ms, which only a terminal needs
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        self._lock = threading.Lock()
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.fields[step]:<18}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.description}", markup=False),
            TimeElapsedColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._progress.start()

    def started(self, name: str) -> None:
        """Adds its bar."""
        with self._lock:
            self._bars[name] = self._progress.add_task("", total=None, step=name)

    def progressed(self, name: str, phase: str, fraction: float | None) -> None:
        """Moves its bar."""
        with self._lock:
            if name in self._bars:
                total = None if fraction is None else 1.0
                self._progress.update(self._bars[name], description=phase[:48], total=total, completed=fraction or 0.0)

    def finished(self, outcome: Outcome) -> None:
        """Replaces its bar by a line that stays."""
        with self._lock:
            bar = self._bars.pop(outcome.node.id, None)
            if bar is not None:
                self._progress.remove_task(bar)
        self._progress.console.print(f"{outcome.node.id}: {summary(outcome)}", markup=False, highlight=False)

    def note(self, text: str) -> None:
        """Prints it above the bars."""
        self._progress.console.print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Removes what is left of the bars and shows the cursor again."""
        self._progress.stop()


def choose(quiet: bool) -> Reporter:
    """The reporter that fits where stderr goes."""
    if quiet:
        return Reporter()
    return Live() if sys.stderr.isatty() else Lines()


def summary(outcome: Outcome) -> str:
    """`built in 1.2 s`, `cached`, `failed: …`."""
    match outcome.state:
        case "built":
            return f"built in {outcome.seconds:.1f} s"
        case "failed":
            return f"failed after {outcome.seconds:.1f} s"
        case "skipped":
            return f"skipped: {outcome.reason}"
        case state:
            return f"{state}, {outcome.reason}" if outcome.reason else state
