"""The Prefect flows, entry points of deployments: each a shell around the function that the verb of its name calls.

The store is the one authority on what is cached: Prefect's own cache is off, and a hit shows as a state named `Cached`.
Steps run in threads of ours; a task run is a step as Prefect sees it, and ends when the step does. What was cached
before anything ran is one task run. Nobody imports this module while nothing has to run.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from contextvars import ContextVar, copy_context
from pathlib import Path
from threading import Event, Thread
from typing import Any

from pipelines.prefect_server import OFFLINE  # noqa: F401  # isort: skip - Prefect reads its settings on import
from prefect import flow, task
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State
from prefect.client.schemas.objects import FlowRun
from prefect.context import FlowRunContext
from prefect.events.worker import EventsWorker
from prefect.futures import PrefectFuture
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.settings.context import get_current_settings
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from pipelines import schedule
from pipelines.errors import Exit, InterruptedBuildError
from pipelines.execute import Outcome
from pipelines.graph import Node
from pipelines.rebuild import Rebuilt, choose, code, total
from pipelines.rebuild import rebuild as rebuild_catalog
from pipelines.recording import Followed, FollowedCatalog
from pipelines.reporting import Lines, Reporter, summary
from pipelines.session import Session
from pipelines.updating import update

_followed: ContextVar[Followed | FollowedCatalog | None] = ContextVar("followed", default=None)
_planned: ContextVar[tuple[Session, Reporter] | None] = ContextVar("planned", default=None)
_running: ContextVar[dict[str, Future[Outcome]]] = ContextVar("running")


def names_server() -> bool:
    """Whether Prefect's settings name a server."""
    return bool(get_current_settings().api.url)


def follow(followed: Followed | FollowedCatalog, api: str | None) -> None:
    """Has a flow run follow a run of the command line, until that is over.

    Args:
        followed: The run, or a catalog of them.
        api: The address of a server that Prefect's settings do not name.

    Raises:
        Exception: Prefect failed; it has many ways to.
    """
    _followed.set(followed)
    overrides, config_dirs = list(followed.overrides), [str(path) for path in followed.config_dirs]
    with temporary_settings({PREFECT_API_URL: api}) if api else nullcontext():
        if isinstance(followed, Followed):
            _named(build, followed.session)(overrides, config_dirs, return_state=True)
        else:
            rebuild(overrides, list(followed.models), config_dirs, return_state=True)
    if followed.flow_run is None:
        raise ConnectionError("no flow run could be opened")


@task(name="step", task_run_name="{node}", cache_policy=NO_CACHE, persist_result=False)
def step(node: str) -> Any:
    """One node of the step graph, such as `build[l4]`, which runs already."""
    try:
        return _state(_running.get()[node].result())
    except InterruptedBuildError:
        return Cancelled(message="interrupted")


@task(name="cached", task_run_name="cached: {what}", cache_policy=NO_CACHE, persist_result=False)
def cached(what: str, names: str) -> Any:
    """What was found in the store before anything ran, as one task run."""
    return Completed(name="Cached", message=names)


_STEPS: Any = ThreadPoolTaskRunner(max_workers=schedule.AT_ONCE)


@flow(name="trtforge-build", task_runner=_STEPS, persist_result=False)
def build(overrides: list[str], config_dirs: list[str] | None = None) -> Any:
    """Brings a flow's outputs up to date, as `trtforge build` does.

    Args:
        overrides: Hydra overrides, such as `["flow=int8", "targets=[l4]"]`.
        config_dirs: Directories of own config groups.
    """
    followed, planned = _followed.get(), _planned.get()
    if isinstance(followed, Followed):
        return _follow(followed)
    return _run(*planned) if planned else _update(overrides, _paths(config_dirs))


@flow(name="trtforge-refit", task_runner=_STEPS, persist_result=False)
def refit(weights: str, overrides: list[str], config_dirs: list[str] | None = None) -> Any:
    """Builds with other weights, as `trtforge refit` does.

    Args:
        weights: A safetensors or ONNX file.
        overrides: Hydra overrides.
        config_dirs: Directories of own config groups.
    """
    from pipelines import new_weights

    directories = _paths(config_dirs)
    return _update(new_weights.overrides(Path(weights), overrides, directories), directories)


@flow(name="trtforge-rebuild", persist_result=False)
def rebuild(overrides: list[str], models: list[str] | None = None, config_dirs: list[str] | None = None) -> Any:
    """Brings a catalog up to date, as `trtforge rebuild` does: a subflow run for each model with something to do.

    Args:
        overrides: Hydra overrides, for every model.
        models: Names of models; all of the config directories where none are given.
        config_dirs: Directories of own config groups.
    """
    followed = _followed.get()
    if isinstance(followed, FollowedCatalog):
        return _follow_catalog(followed)
    directories = _paths(config_dirs)
    chosen = choose(overrides, models, directories)
    return _summed_up(rebuild_catalog(overrides, chosen, directories, Lines(), Event(), _run_as_subflow))


@flow(name="trtforge-gc", persist_result=False)
def gc(
    overrides: list[str],
    config_dirs: list[str] | None = None,
    dry_run: bool = False,
    older_than: str = "30d",
    pack_after: str = "1d",
) -> Any:
    """Packs and deletes what no ref reaches, as `trtforge gc` does.

    Args:
        overrides: Hydra overrides, such as `["store.budget=50GiB"]`.
        config_dirs: Directories of own config groups.
        dry_run: Only say what would be deleted.
        older_than: Keep what is younger.
        pack_after: Keep what is older, and not reached, as a delta.
    """
    from artifacts.store import Store
    from conf.compose import compose
    from pipelines import health
    from pipelines.document import in_bytes

    config = compose(overrides, _paths(config_dirs)).store
    limits = health.limits(older_than, pack_after, config.budget)
    found = health.collect(Store(Path(config.root)), limits, [], dry_run, Lines(), Event())
    freed = in_bytes(found["bytes_before"] - found["bytes_after"])
    did = "would delete" if dry_run else "deleted"
    return Completed(message=f"{did} {len(found['deleted'])} things, {freed}; {in_bytes(found['bytes_after'])} stay")


@flow(name="trtforge-watch", persist_result=False)
def watch(overrides: list[str], config_dirs: list[str] | None = None) -> Any:
    """Tells Prefect of versions that published plans were not built with, as `trtforge watch --emit` does.

    Args:
        overrides: Hydra overrides; those of `model`, `flow`, `targets` and `backend` choose among the plans.
        config_dirs: Directories of own config groups.
    """
    from pipelines import versions

    found = versions.watch(overrides, _paths(config_dirs), emit=True)
    told = f"{len(found.plans)} published plans, {len(found.changes)} changes, {len(found.emitted or ())} new"
    create_table_artifact([change.document() for change in found.changes], "trtforge-versions", told)
    return Completed(message=told)


class _Open:
    """The open flow run of a command, for `recording`."""

    def __init__(self) -> None:
        context = FlowRunContext.get()
        assert context is not None  # noqa: S101 - made in a flow only
        assert context.flow_run is not None  # noqa: S101
        self._flow_run: FlowRun = context.flow_run

    def is_final(self) -> bool:
        state = self._flow_run.state
        return state is not None and state.is_final()

    def drain(self, seconds: float) -> None:
        # Task runs reach the server as events, from a queue that is emptied in the background.
        EventsWorker.drain_all(timeout=seconds)
        APILogWorker.drain_all(timeout=seconds)


class _TaskRuns:
    """The task runs of a flow run."""

    def __init__(self, found: Sequence[str]) -> None:
        self._shown: dict[str, PrefectFuture[Any]] = {}
        self._futures: dict[str, Future[Outcome]] = {}
        _running.set(self._futures)
        if found:
            what = f"{len(found)} step{'s' if len(found) > 1 else ''}"
            self._shown["cached"] = cached.submit(what, ", ".join(found), return_state=False)

    def show(self, node: Node, future: Future[Outcome]) -> None:
        """Adds the task run of a step that has begun."""
        self._futures[node.id] = future
        before = [self._shown[name] for name in node.before if name in self._shown]
        self._shown[node.id] = step.submit(node.id, return_state=False, wait_for=before)

    def wait(self) -> None:
        """Waits until all have ended."""
        for future in self._shown.values():
            future.wait()


def _follow(followed: Followed) -> State[Any]:
    followed.flow_run = _Open()
    shown = _TaskRuns(followed.cached)
    for node, future in followed.begun():
        shown.show(node, future)
    shown.wait()
    if followed.interrupted:
        return Cancelled(message="interrupted")
    _show_evidence(followed.session, followed.reporter)
    return _verdict(followed.session)


def _follow_catalog(catalog: FollowedCatalog) -> State[Any]:
    catalog.flow_run = _Open()
    for followed in catalog.begun():
        # Not waited for to its own end: that waits 0.9 s for its thread of heartbeats.
        child = Thread(target=copy_context().run, args=(_follow_as_subflow, followed), daemon=True)
        child.start()
        while child.is_alive() and not (followed.flow_run and followed.flow_run.is_final()):
            child.join(0.01)
    return Cancelled(message="interrupted") if catalog.interrupted else _summed_up(catalog.rows)


def _follow_as_subflow(followed: Followed) -> None:
    _followed.set(followed)
    directories = [str(path) for path in followed.config_dirs]
    _named(build, followed.session)(list(followed.overrides), directories, return_state=True)


def _update(overrides: Sequence[str], config_dirs: Sequence[Path]) -> State[Any]:
    ran: list[Session] = []

    def run(session: Session, reporter: Reporter, *_: object) -> None:
        ran.append(session)
        _run_steps(session, reporter)

    reporter = Lines()
    session = update(overrides, config_dirs, reporter, Event(), run)
    if ran:
        _show_evidence(session, reporter)
    else:
        _TaskRuns(list(session.outcomes)).wait()
    return _verdict(session)


def _run_as_subflow(
    session: Session, reporter: Reporter, overrides: Sequence[str], config_dirs: Sequence[Path]
) -> None:
    token = _planned.set((session, reporter))
    try:
        _named(build, session)(list(overrides), [str(path) for path in config_dirs], return_state=True)
    finally:
        _planned.reset(token)
    schedule.raise_bugs(session)


def _run(session: Session, reporter: Reporter) -> State[Any]:
    _run_steps(session, reporter)
    _show_evidence(session, reporter)
    return _verdict(session)


def _run_steps(session: Session, reporter: Reporter) -> None:
    """Runs the steps of a session in this flow run."""
    found = [name for name, outcome in session.outcomes.items() if outcome.done]
    shown = _TaskRuns(found)
    with ThreadPoolExecutor(schedule.AT_ONCE) as pool:

        def submit(node: Node) -> Future[Outcome]:
            future = pool.submit(schedule.work, session, node, reporter)
            if node.id not in found:
                shown.show(node, future)
            return future

        try:
            schedule.run(session, reporter, submit)
        except BaseException:  # such as the signal by which Prefect cancels a run
            session.workshop.stop.set()
            raise
    shown.wait()


def _show_evidence(session: Session, reporter: Reporter) -> None:
    """Gives Prefect the tables of each plan's report, as an artifact of the flow run."""
    from pipelines.report import verb
    from pipelines.report.markdown import markdown
    from pipelines.report.subject import subjects

    for subject in subjects(session):
        key = re.sub(r"[^a-z0-9]+", "-", f"plan-{subject.name}".lower()).strip("-")
        try:
            found = verb.evidence(subject)
            create_markdown_artifact(markdown(found), key, found.verdict[0].text)
        except Exception as error:  # a server has many ways to fail, and the plan is built
            what = (str(error).splitlines() or [type(error).__name__])[0]
            reporter.note(f"{subject.name}: its tables did not reach Prefect: {what}")


def _named(flow_of_it: Any, session: Session) -> Any:
    return flow_of_it.with_options(flow_run_name=f"{session.config.model.name}-{session.config.flow}")


def _paths(config_dirs: Sequence[str] | None) -> list[Path]:
    return [Path(path) for path in config_dirs or []]


def _state(outcome: Outcome) -> State[Any]:
    if outcome.record is None:
        return Failed(message=outcome.error)
    outputs = {name: blob.digest for name, blob in outcome.record.outputs.items()}
    reference = {"key": outcome.key, "outputs": outputs}
    name = "Cached" if outcome.state == "cached" else "Completed"
    return Completed(name=name, message=f"{summary(outcome)}: {outcome.key}", data=reference)


def _verdict(session: Session) -> State[Any]:
    if session.exit is Exit.DONE:
        return Completed(message="all plans are up to date")
    bad = [name for name, o in session.outcomes.items() if o.state in ("failed", "skipped") or session.refusals(o)]
    return Failed(message=f"not up to date: {', '.join(bad)}")


def _summed_up(rows: Sequence[Rebuilt]) -> State[Any]:
    """The verdict on a catalog, whose table is an artifact of the flow run."""
    create_table_artifact([each.row() for each in rows], "trtforge-rebuild", total(rows))
    return Completed(message=total(rows)) if code(rows) is Exit.DONE else Failed(message=total(rows))
