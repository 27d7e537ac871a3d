"""What a flow run shows of itself in Prefect beside its task runs: name, tags, tables, progress and events.

Nothing of it holds a step up or fails one: what a server does not take is told once, and left out.
"""

from __future__ import annotations

import json
import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from threading import Event, Thread
from typing import TYPE_CHECKING

from artifacts.record import Record
from pipelines import labels, lineage, matrix, progress
from pipelines.execute import Outcome
from pipelines.flow_run import FlowRun
from pipelines.progress import Progress
from pipelines.rebuild import Rebuilt, total
from pipelines.reporting import summary
from pipelines.session import Session
from pipelines.targets import BuildTarget
from stages.backends import find
from stages.wording import first_line

if TYPE_CHECKING:
    from pipelines.versions import Change

LOOK_SECONDS = 2.0
"""How often a progress artifact is brought up to date, at most: a request takes 10 ms of the server."""

END_SECONDS = 5.0
"""How long a run that is over waits for its progress artifacts to end; as a rule it is one request for each."""

Tell = Callable[[str], None]


def describe(run: FlowRun, name: str, tags: Iterable[str], note: Tell) -> None:
    """Gives a flow run a name, and tags beside those that its deployment gave it."""
    with _optional("its name and tags", note):
        run.rename(name, tags)


class Plans:
    """Gives Prefect the tables of each plan's report, as an artifact of a flow run.

    Args:
        run: The flow run.
        session: What it runs.
        note: Told what the server does not take.
    """

    def __init__(self, run: FlowRun, session: Session, note: Tell) -> None:
        self._run, self._session, self._note = run, session, note
        self._shown: set[str] = set()

    def show(self) -> None:
        """Shows those whose steps are all over, and that were not shown before."""
        session = self._session
        over = [target for target in session.targets if target.name not in self._shown and _is_over(session, target)]
        if not over:
            return
        from pipelines.report import verb
        from pipelines.report.markdown import markdown
        from pipelines.report.subject import subjects

        self._shown |= {target.name for target in over}
        for subject in subjects(session, self._timings):
            if subject.target not in over:
                continue
            with _optional(f"{subject.name}: its tables", self._note):
                found = verb.evidence(subject)
                text = markdown(found, _report_command(self._run, session), session.store.root.absolute())
                self._run.artifact("markdown", text, found.verdict[0].text, _key(f"plan-{subject.name}"))

    @cached_property
    def _timings(self) -> Sequence[Record]:
        from pipelines.report.subject import timings

        return timings(self._session)  # once, for it looks at every record of the store


def show_sources(run: FlowRun, session: Session, note: Tell) -> None:
    """Gives Prefect what the plans that were built were made from."""
    with _optional("what its plans were made from", note):
        for event in lineage.events(session):
            run.emit(event)
        run.flush()


def show_catalog(run: FlowRun, rows: Sequence[Rebuilt], note: Tell) -> None:
    """Gives Prefect a rebuild's models and targets as a table, and the flow run the tags of all of them."""
    sessions = [each.session for each in rows if each.session is not None]
    describe(run, run.name, labels.tags(sessions, [each.model for each in rows]), note)
    with _optional("the table of its models and targets", note):
        run.artifact("table", json.dumps(matrix.table(rows)), total(rows), "trtforge-rebuild")


def show_versions(run: FlowRun, changes: Sequence[Change], told: str, note: Tell) -> None:
    """Gives Prefect the changes of versions that a watch has found as a table, and tags to the flow run."""
    found = {tag for each in changes for tag in (each.architecture, f"{find(each.backend).short}-{each.after}")}
    describe(run, run.name, [labels.OURS, *found], note)
    with _optional("the table of its changes", note):
        run.artifact("table", json.dumps([change.document() for change in changes]), told, "trtforge-versions")


@dataclass
class _Bar:
    """The progress artifact of a step."""

    artifact: str
    percent: float
    told: str


class Bars:
    """Progress artifacts of the steps that run long, brought up to date by a thread of their own.

    A step that does not say how far it is has none. At its end the bar of a step is full, or removed where it failed.

    Args:
        run: The flow run.
        steps: How far they are.
        task_run: The id of the task run of a step; None where it has none.
        note: Told, once, what the server does not take.
    """

    def __init__(self, run: FlowRun, steps: Progress, task_run: Callable[[str], str | None], note: Tell) -> None:
        self._run, self._steps, self._task_run, self._note = run, steps, task_run, note
        self._bars: dict[str, _Bar] = {}
        self._over = Event()
        self._thread = Thread(target=self._watch, daemon=True, name="progress")

    def __enter__(self) -> Bars:
        """Begins to look."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """All steps are over: brings what there is to its end."""
        self._over.set()
        self._thread.join(END_SECONDS)

    def _watch(self) -> None:
        with _optional("how far its steps are", self._note):
            while not self._over.wait(LOOK_SECONDS):
                self._look()
            self._look()
            for bar in self._bars.values():  # of what was interrupted
                self._run.remove(bar.artifact)

    def _look(self) -> None:
        for name, step in self._steps.steps().items():
            phase, fraction = step.at
            if step.outcome is not None:
                self._end(name, step.outcome)
            elif fraction is not None and time.monotonic() - step.began >= progress.LONG_SECONDS:
                self._show(name, round(100 * fraction, 1), f"{name}: {phase}")

    def _show(self, name: str, percent: float, told: str) -> None:
        bar = self._bars.get(name)
        if bar is None:
            made = self._run.artifact("progress", percent, told, task_run=self._task_run(name))
            self._bars[name] = _Bar(made, percent, told)
        elif (bar.percent, bar.told) != (percent, told):
            self._run.change(bar.artifact, percent, told)
            bar.percent, bar.told = percent, told

    def _end(self, name: str, outcome: Outcome) -> None:
        bar = self._bars.pop(name, None)
        if bar is None:
            return
        if outcome.done:
            self._run.change(bar.artifact, 100.0, f"{name}: {summary(outcome)}")
        else:
            self._run.remove(bar.artifact)


@contextmanager
def _optional(what: str, note: Tell) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a server has many ways to fail, and the plans are built without it
        note(f"Prefect was not shown {what}: {first_line(error)}")


def _is_over(session: Session, target: BuildTarget) -> bool:
    own = [session.outcomes[node.id] for node in session.nodes if node.target == target]
    return all(outcome.state not in ("missing", "waiting") for outcome in own)


def _key(name: str) -> str:
    """Of an artifact: Prefect takes lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _report_command(run: FlowRun, session: Session) -> str:
    given = [f"--config-dir={directory}" for directory in run.parameters.get("config_dirs") or ()]
    overrides = session.workshop.provenance.get("overrides")
    return shlex.join(["trtforge", "report", *given, *(overrides if isinstance(overrides, list) else ())])
