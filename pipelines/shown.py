"""What a flow run shows of itself in Prefect beside its task runs: name, tags, tables, progress and events.

Nothing of it holds a step up or fails one: what a server does not take is told once, and left out.
"""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass
from functools import cached_property
from threading import Event, Thread
from typing import TYPE_CHECKING
from uuid import UUID

import pipelines.prefect_server  # noqa: F401 - it sets what Prefect reads on import

# isort: split
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import ArtifactCreate, ArtifactUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.events import emit_event

from pipelines import labels, lineage, matrix, progress
from pipelines.execute import Outcome
from pipelines.progress import Progress
from pipelines.rebuild import Rebuilt, total
from pipelines.reporting import summary
from pipelines.session import Session
from stages.backends import find
from stages.wording import first_line

if TYPE_CHECKING:
    from pipelines.versions import Change

LOOK_SECONDS = 2.0
"""How often a progress artifact is brought up to date, at most: a request takes 10 ms of the server."""

END_SECONDS = 5.0
"""How long a run that is over waits for its progress artifacts to end; as a rule it is one request for each."""

Tell = Callable[[str], None]


def flow_run() -> FlowRun:
    """The open flow run, of which there is one."""
    context = FlowRunContext.get()
    assert context is not None  # noqa: S101 - made in a flow only
    assert context.flow_run is not None  # noqa: S101
    return context.flow_run


def describe(name: str, tags: Iterable[str], note: Tell) -> None:
    """Gives the open flow run a name, and tags beside those that its deployment gave it; others of ours are gone."""
    run = flow_run()
    with _optional("its name and tags", note), get_client(sync_client=True) as client:
        client.update_flow_run(run.id, name=name, tags=sorted({*run.tags, *tags}))
        # Not the tags: Prefect would send all of them with every event of every task run, which costs the server of a
        # run of 14 task runs 0.2 s of processor time.
        run.name = name


def describe_session(session: Session, note: Tell) -> None:
    """Gives the open flow run the name and the tags of what it builds."""
    describe(labels.name(session), labels.tags([session]), note)


def show_plans(session: Session, note: Tell) -> None:
    """Gives Prefect the tables of each plan's report, as an artifact of the flow run, and what it was made from."""
    from pipelines.report import verb
    from pipelines.report.markdown import markdown
    from pipelines.report.subject import subjects

    for subject in subjects(session):
        with _optional(f"{subject.name}: its tables", note):
            found = verb.evidence(subject)
            text = markdown(found, _report_command(session), session.store.root.absolute())
            create_markdown_artifact(text, _key(f"plan-{subject.name}"), found.verdict[0].text)
    for event in lineage.events(session):
        with _optional("what its plans were made from", note):
            emit_event(**event)


def show_catalog(rows: Sequence[Rebuilt], note: Tell) -> None:
    """Gives Prefect a rebuild's models and targets as a table, and the flow run the tags of all of them."""
    sessions = [each.session for each in rows if each.session is not None]
    models = [each.model for each in rows]
    describe(flow_run().name, labels.tags(sessions, models), note)
    with _optional("the table of its models and targets", note):
        create_table_artifact(matrix.table(rows), "trtforge-rebuild", total(rows))


def show_versions(changes: Sequence[Change], told: str, note: Tell) -> None:
    """Gives Prefect the changes of versions that a watch has found as a table, and tags to the open flow run."""
    found = {tag for each in changes for tag in (each.architecture, f"{find(each.backend).short}-{each.after}")}
    describe(flow_run().name, [labels.OURS, *found], note)
    with _optional("the table of its changes", note):
        create_table_artifact([change.document() for change in changes], "trtforge-versions", told)


@dataclass
class _Bar:
    """The progress artifact of a step."""

    artifact: UUID
    percent: float
    told: str


class Bars:
    """Progress artifacts of the steps that run long, brought up to date by a thread of their own.

    A step that does not say how far it is has none. At its end the bar of a step is full, or removed where it failed.

    Args:
        steps: How far they are.
        task_run: The task run of a step; None where it has none.
        note: Told, once, what the server does not take.
    """

    def __init__(self, steps: Progress, task_run: Callable[[str], UUID | None], note: Tell) -> None:
        self._steps, self._task_run, self._note = steps, task_run, note
        self._bars: dict[str, _Bar] = {}
        self._run = flow_run().id
        self._over = Event()
        self._thread = Thread(target=copy_context().run, args=(self._watch,), daemon=True, name="progress")

    def start(self) -> None:
        """Begins to look."""
        self._thread.start()

    def end(self) -> None:
        """All steps are over: brings what there is to its end."""
        self._over.set()
        self._thread.join(END_SECONDS)

    def _watch(self) -> None:
        with _optional("how far its steps are", self._note):
            while not self._over.wait(LOOK_SECONDS):
                self._look()
            self._look()
            for bar in self._bars.values():  # of what was interrupted
                self._client.delete_artifact(bar.artifact)

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
            found = ArtifactCreate(
                type="progress", description=told, data=percent, flow_run_id=self._run, task_run_id=self._task_run(name)
            )
            self._bars[name] = _Bar(self._client.create_artifact(found).id, percent, told)
        elif (bar.percent, bar.told) != (percent, told):
            self._client.update_artifact(bar.artifact, ArtifactUpdate(data=percent, description=told))
            bar.percent, bar.told = percent, told

    def _end(self, name: str, outcome: Outcome) -> None:
        bar = self._bars.pop(name, None)
        if bar is None:
            return
        if outcome.done:
            full = ArtifactUpdate(data=100.0, description=f"{name}: {summary(outcome)}")
            self._client.update_artifact(bar.artifact, full)
        else:
            self._client.delete_artifact(bar.artifact)

    @cached_property
    def _client(self) -> SyncPrefectClient:
        return get_client(sync_client=True)  # made where there is something to show


@contextmanager
def _optional(what: str, note: Tell) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a server has many ways to fail, and the plans are built without it
        note(f"Prefect was not shown {what}: {first_line(error)}")


def _key(name: str) -> str:
    """Of an artifact: Prefect takes lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _report_command(session: Session) -> str:
    context = FlowRunContext.get()
    directories = (context.parameters if context else None) or {}
    given = [f"--config-dir={directory}" for directory in directories.get("config_dirs") or ()]
    overrides = session.workshop.provenance.get("overrides")
    return shlex.join(["trtforge", "report", *given, *(overrides if isinstance(overrides, list) else ())])
