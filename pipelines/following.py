"""Flow runs that follow runs of the command line: each step that begins is a task run, which ends as the step does.

Prefect's engine has no part in it: the steps run in threads of ours, and what a server knows of them goes through its
REST interface. Runs of deployments are Prefect's own (`pipelines.flows`), and look the same.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from pipelines import flow_run, labels, shown
from pipelines.errors import Exit, InterruptedBuildError
from pipelines.execute import Outcome
from pipelines.flow_run import FlowRun, State, TaskRun
from pipelines.graph import Node
from pipelines.progress import Progress
from pipelines.rebuild import Rebuilt, code, total
from pipelines.reporting import Reporter, summary
from pipelines.server_api import Api, Patient
from pipelines.session import Session

BUILD, REBUILD = "trtforge-build", "trtforge-rebuild"
"""The flows that the command line has runs of: `trtforge refit` is a build with other weights."""

FLUSH_SECONDS = 0.5
"""What happens within so long goes to the server as one request."""

INTERRUPTED = State("CANCELLED", "interrupted")


@dataclass(frozen=True)
class _Moment:
    """A step has begun, or ended."""

    node: Node
    future: Future[Outcome]
    has_ended: bool
    at: datetime = field(default_factory=lambda: datetime.now(timezone.utc))


@dataclass
class Followed:
    """A run that a flow run follows.

    Attributes:
        session: The run.
        reporter: What tells the user, and how far its steps are.
        overrides: Hydra's, as they were given.
        config_dirs: The user's own config directories.
        cached: The steps that were found in the store before anything ran.
        resumes: The id of a flow run that goes on with it; None for a new one.
        interrupted: Whether the user has stopped it.
        flow_run: What follows it; None while none is open.
    """

    session: Session
    reporter: Progress
    overrides: Sequence[str]
    config_dirs: Sequence[Path]
    cached: Sequence[str]
    resumes: str | None = None
    interrupted: bool = False
    flow_run: FlowRun | None = None
    _moments: SimpleQueue[_Moment | None] = field(default_factory=SimpleQueue)

    def begin(self, node: Node, future: Future[Outcome]) -> None:
        """A step has begun, whose outcome `future` will hold."""
        self._moments.put(_Moment(node, future, has_ended=False))
        future.add_done_callback(lambda future: self._moments.put(_Moment(node, future, has_ended=True)))

    def end(self) -> None:
        """No more steps will begin, and all that have have ended."""
        self._moments.put(None)

    def moments(self) -> Iterator[_Moment | None]:
        """The beginnings and ends of steps, as they happen, until there are no more; None after a while without one."""
        while True:
            try:
                moment = self._moments.get(timeout=FLUSH_SECONDS)
            except Empty:
                yield None
                continue
            if moment is None:
                return
            yield moment


@dataclass
class FollowedCatalog:
    """A rebuild that a flow run follows, with a subflow run for each model that has something to do.

    Attributes:
        reporter: What tells the user.
        overrides: Hydra's, as they were given.
        models: The names of all its models.
        config_dirs: The user's own config directories.
        resumes: The id of a flow run that goes on with it; None for a new one.
        rows: How it went, model by model; complete when it has ended.
        interrupted: Whether the user has stopped it.
        flow_run: What follows it; None while none is open.
    """

    reporter: Reporter
    overrides: Sequence[str]
    models: Sequence[str]
    config_dirs: Sequence[Path]
    resumes: str | None = None
    rows: list[Rebuilt] = field(default_factory=list)
    interrupted: bool = False
    flow_run: FlowRun | None = None
    _begun: SimpleQueue[Followed | None] = field(default_factory=SimpleQueue)

    def begin(self, followed: Followed) -> None:
        """A model has begun."""
        self._begun.put(followed)

    def end(self) -> None:
        """No more models will begin."""
        self._begun.put(None)

    def begun(self) -> Iterator[Followed]:
        """The models, as they begin, until no more will."""
        return iter(self._begun.get, None)


def follow(followed: Followed | FollowedCatalog, api: Api) -> None:
    """Has a flow run follow a run of the command line, until that is over.

    Once it is open, a server that is away is waited for.

    Raises:
        ConnectionError: The server does not answer.
        RefusedError: It does not take what it is told.
    """
    if isinstance(followed, Followed):
        _follow(followed, api)
    else:
        _follow_catalog(followed, api)


def state_of(outcome: Outcome) -> State:
    """The state in which a step's task run ends."""
    if outcome.record is None:
        return State("FAILED", outcome.error or "")
    return State("COMPLETED", f"{summary(outcome)}: {outcome.key}", "Cached" if outcome.state == "cached" else "")


def verdict(session: Session) -> State:
    """The state in which the flow run of a session ends."""
    if session.exit is Exit.DONE:
        return State("COMPLETED", "all plans are up to date")
    bad = [name for name, o in session.outcomes.items() if o.state in ("failed", "skipped") or session.refusals(o)]
    why = next((outcome.error for outcome in session.outcomes.values() if outcome.error), None)
    return State("FAILED", f"not up to date: {', '.join(bad)}" + (f"; {why}" if why else ""))


def verdict_on(rows: Sequence[Rebuilt]) -> State:
    """The state in which the flow run of a catalog ends."""
    return State("COMPLETED" if code(rows) is Exit.DONE else "FAILED", total(rows))


def name_of_cached(cached: Sequence[str]) -> str:
    """The name of the task run for what was cached before anything ran: `cached: 5 steps`."""
    return f"cached: {len(cached)} step{'s' if len(cached) > 1 else ''}"


def _follow(followed: Followed, api: Api, parent: FlowRun | None = None) -> None:
    name, tags = labels.name(followed.session), labels.tags([followed.session])
    run = _open(followed, api, BUILD, name, tags, _parameters(followed), parent)
    with run.beating():
        _Steps(followed, run).follow()
        if followed.interrupted:
            run.close(INTERRUPTED)
        else:
            shown.show_sources(run, followed.session, followed.reporter.note)
            run.close(verdict(followed.session))


class _Steps:
    """The task runs and the tables of an open flow run, while the steps that it follows run.

    Args:
        followed: The steps.
        run: The flow run.
    """

    def __init__(self, followed: Followed, run: FlowRun) -> None:
        self._followed, self._run = followed, run
        self._task_runs: dict[str, TaskRun] = {}
        self._plans = shown.Plans(run, followed.session, followed.reporter.note)
        self._flushed = time.monotonic()

    def follow(self) -> None:
        """Follows them until all are over."""
        if self._followed.cached:
            self._task_runs["cached"] = self._run.begin(name_of_cached(self._followed.cached))
            self._run.end(self._task_runs["cached"], State("COMPLETED", ", ".join(self._followed.cached), "Cached"))
        with shown.Bars(self._run, self._followed.reporter, self._id, self._followed.reporter.note):
            for moment in self._followed.moments():
                if moment is not None:
                    self._take(moment)
                if time.monotonic() - self._flushed >= FLUSH_SECONDS:
                    self._run.flush()
                    self._flushed = time.monotonic()
        for task_run in self._task_runs.values():
            if task_run.state is not None and task_run.state.type not in flow_run.FINAL:
                self._run.end(task_run, INTERRUPTED)  # a step that did not end in good order
        if not self._followed.interrupted:
            self._plans.show()  # of targets whose last steps were skipped

    def _take(self, moment: _Moment) -> None:
        name = moment.node.id
        if moment.has_ended:
            self._run.end(self._task_runs[name], _end_of(moment.future), moment.at)
            self._plans.show()  # while other steps run: the first takes 0.1 s, each other one 0.03 s
        else:
            after = [self._task_runs[each].id for each in moment.node.before if each in self._task_runs]
            self._task_runs[name] = self._run.begin(name, moment.at, after)

    def _id(self, name: str) -> str | None:
        return self._task_runs[name].id if name in self._task_runs else None


def _end_of(future: Future[Outcome]) -> State:
    error = future.exception()
    if error is None:
        return state_of(future.result())
    if isinstance(error, InterruptedBuildError):
        return INTERRUPTED
    return State("FAILED", f"{type(error).__name__}: {error}")  # a bug, which the build itself raises


def _follow_catalog(catalog: FollowedCatalog, api: Api) -> None:
    parameters = {**_parameters(catalog), "models": list(catalog.models)}
    name, tags = labels.name_of_rebuild(catalog.models), labels.tags([], catalog.models)
    run = _open(catalog, api, REBUILD, name, tags, parameters)
    with run.beating():
        for followed in catalog.begun():
            _follow(followed, run.api, run)
            assert followed.flow_run is not None  # noqa: S101 - it has just been followed
            run.task_runs = followed.flow_run.task_runs
        if not catalog.interrupted:
            shown.show_catalog(run, catalog.rows, catalog.reporter.note)
        run.close(INTERRUPTED if catalog.interrupted else verdict_on(catalog.rows))


def _open(
    followed: Followed | FollowedCatalog,
    api: Api,
    flow: str,
    name: str,
    tags: Sequence[str],
    parameters: dict[str, Any],
    parent: FlowRun | None = None,
) -> FlowRun:
    if followed.resumes is None:
        run = flow_run.opened(api, flow, name, tags, parameters, parent)
    else:
        run = flow_run.reopened(api, followed.resumes, flow)
        shown.describe(run, name, tags, followed.reporter.note)
    if parent is None:
        run.api = Patient(api)
    followed.flow_run = run
    return run


def _parameters(followed: Followed | FollowedCatalog) -> dict[str, Any]:
    return {"overrides": list(followed.overrides), "config_dirs": [str(path) for path in followed.config_dirs]}
