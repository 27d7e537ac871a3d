"""The Prefect flows, entry points of deployments: each a shell around the function that the verb of its name calls.

The store is the one authority on what is cached: Prefect's own cache is off, and a hit shows as a state named `Cached`.
Steps run in threads of ours; a task run is a step as Prefect sees it, and ends when the step does. What was cached
before anything ran is one task run. Nothing is tried again, whatever Prefect's settings say: a model that cannot be
built could not be the next time. Nobody imports this module while nothing has to run.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import nullcontext
from contextvars import ContextVar, copy_context
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import UUID

from pipelines.prefect_server import OFFLINE  # noqa: F401  # isort: skip - Prefect reads its settings on import
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import get_client
from prefect.client.schemas import State
from prefect.events.worker import EventsWorker
from prefect.flow_engine import run_flow
from prefect.futures import PrefectFuture
from prefect.logging.handlers import APILogWorker
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.settings.context import get_current_settings
from prefect.states import Cancelled, Completed, Failed, Pending
from prefect.task_runners import ThreadPoolTaskRunner

from artifacts.errors import StoreError
from conf.errors import ConfigError
from pipelines import labels, limits, schedule, shown
from pipelines.errors import EngineError, Exit, InterruptedBuildError
from pipelines.execute import Outcome
from pipelines.graph import Node
from pipelines.orphans import end_with
from pipelines.progress import Progress
from pipelines.rebuild import Rebuilt, choose, code, of_architecture, total
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
    logging.raiseExceptions = False  # Prefect tells of each batch of lines that it cannot send
    overrides, config_dirs = list(followed.overrides), [str(path) for path in followed.config_dirs]
    with temporary_settings({PREFECT_API_URL: api}) if api else nullcontext():
        if isinstance(followed, Followed):
            arguments: dict[str, Any] = {"overrides": overrides, "config_dirs": config_dirs}
            _call(build, arguments, followed.resumes)
        else:
            arguments = {"overrides": overrides, "models": list(followed.models), "config_dirs": config_dirs}
            _call(rebuild, arguments, followed.resumes)
    if followed.flow_run is None:
        raise ConnectionError("no flow run could be opened")


@task(name="step", task_run_name="{node}", cache_policy=NO_CACHE, persist_result=False, retries=0)
def step(node: str) -> Any:
    """One node of the step graph, such as `build[l4]`, which runs already."""
    try:
        return _state(_running.get()[node].result())
    except InterruptedBuildError:
        return Cancelled(message="interrupted")


@task(name="cached", task_run_name="cached: {what}", cache_policy=NO_CACHE, persist_result=False, retries=0)
def cached(what: str, names: str) -> Any:
    """What was found in the store before anything ran, as one task run."""
    return Completed(name="Cached", message=names)


_STEPS: Any = ThreadPoolTaskRunner(max_workers=schedule.AT_ONCE)


@flow(name="trtforge-build", task_runner=_STEPS, persist_result=False, retries=0)
def build(overrides: list[str], config_dirs: list[str] | None = None) -> Any:
    """Brings a flow's outputs up to date, as `trtforge build` does.

    Args:
        overrides: Hydra overrides, such as `["flow=int8", "targets=[l4]"]`.
        config_dirs: Directories of own config groups.
    """
    followed, planned = _followed.get(), _planned.get()
    if isinstance(followed, Followed):
        return _follow(followed)
    return _run(*planned) if planned else _update(overrides, _paths(config_dirs), _ours("build"))


@flow(name="trtforge-refit", task_runner=_STEPS, persist_result=False, retries=0)
def refit(weights: str, overrides: list[str], config_dirs: list[str] | None = None) -> Any:
    """Builds with other weights, as `trtforge refit` does.

    Args:
        weights: A safetensors or ONNX file.
        overrides: Hydra overrides.
        config_dirs: Directories of own config groups.
    """
    from pipelines import new_weights

    reporter, directories = _ours("refit"), _paths(config_dirs)
    return _update(new_weights.overrides(Path(weights), overrides, directories), directories, reporter)


@flow(name="trtforge-rebuild", persist_result=False, retries=0)
def rebuild(
    overrides: list[str],
    models: list[str] | None = None,
    config_dirs: list[str] | None = None,
    architecture: str | None = None,
) -> Any:
    """Brings a catalog up to date, as `trtforge rebuild` does: a subflow run for each model with something to do.

    Args:
        overrides: Hydra overrides, for every model.
        models: Names of models; all of the config directories where none are given.
        config_dirs: Directories of own config groups.
        architecture: Such as `sm_89`: only for targets of that.
    """
    followed = _followed.get()
    if isinstance(followed, FollowedCatalog):
        return _follow_catalog(followed)
    reporter, directories = _ours("rebuild"), _paths(config_dirs)
    chosen = choose(overrides, models, directories)
    _describe_catalog(chosen, reporter)
    own = of_architecture(architecture, overrides, directories)
    return _summed_up(rebuild_catalog(own, chosen, directories, reporter, Event(), _run_as_subflow), reporter)


@flow(name="trtforge-gc", persist_result=False, retries=0)
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

    reporter = _ours("gc")
    config = compose(overrides, _paths(config_dirs)).store
    limits = health.limits(older_than, pack_after, config.budget)
    found = health.collect(Store(Path(config.root)), limits, [], dry_run, reporter, Event())
    freed = in_bytes(found["bytes_before"] - found["bytes_after"])
    did = "would delete" if dry_run else "deleted"
    return Completed(message=f"{did} {len(found['deleted'])} things, {freed}; {in_bytes(found['bytes_after'])} stay")


@flow(name="trtforge-watch", persist_result=False, retries=0)
def watch(overrides: list[str], config_dirs: list[str] | None = None) -> Any:
    """Tells Prefect of versions that published plans were not built with, as `trtforge watch --emit` does.

    Args:
        overrides: Hydra overrides; those of `model`, `flow`, `targets` and `backend` choose among the plans.
        config_dirs: Directories of own config groups.
    """
    from pipelines import versions

    reporter = _ours("watch")
    found = versions.watch(overrides, _paths(config_dirs), emit=True)
    told = f"{len(found.plans)} published plans, {len(found.changes)} changes, {len(found.emitted or ())} new"
    shown.show_versions(found.changes, told, reporter.note)
    return Completed(message=told)


@flow(name="trtforge-target", task_runner=_STEPS, persist_result=False, retries=0)
def target(job: str = "") -> Any:
    """Runs the steps of a target that another machine has sent to the queue of this one.

    Args:
        job: Its id in the remote that both share.
    """
    from pipelines.job import taken

    _end_with_worker()
    reporter = Lines()
    try:
        with taken(job, reporter.note) as session:
            shown.describe(shown.flow_run().name, labels.tags([session]), reporter.note)  # its sender has named it
            _run_steps(session, reporter)
    except (ConfigError, EngineError, StoreError) as error:
        return Failed(message=error.what)
    return _verdict(session)


class _Open:
    """The open flow run of a command, for `recording`."""

    def __init__(self) -> None:
        self.task_runs: Sequence[str] = ()
        self._flow_run = shown.flow_run()

    @property
    def id(self) -> str:
        return str(self._flow_run.id)

    def is_final(self) -> bool:
        state = self._flow_run.state
        return state is not None and state.is_final()

    def drain(self, seconds: float) -> None:
        # Task runs reach the server as events, from a queue that is emptied in the background.
        EventsWorker.drain_all(timeout=seconds)
        APILogWorker.drain_all(timeout=seconds)


class _TaskRuns:
    """The task runs of a flow run, and how far they are.

    Args:
        found: The steps that were found in the store before anything ran.
        progress: What the others tell.
    """

    def __init__(self, found: Sequence[str], progress: Progress) -> None:
        self._shown: dict[str, PrefectFuture[Any]] = {}
        self._futures: dict[str, Future[Outcome]] = {}
        _running.set(self._futures)
        if found:
            what = f"{len(found)} step{'s' if len(found) > 1 else ''}"
            self._shown["cached"] = cached.submit(what, ", ".join(found), return_state=False)
        self._bars = shown.Bars(progress, self._id, progress.note)

    def __enter__(self) -> _TaskRuns:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.end()

    def show(self, node: Node, future: Future[Outcome]) -> None:
        """Adds the task run of a step that has begun."""
        self._futures[node.id] = future
        before = [self._shown[name] for name in node.before if name in self._shown]
        self._shown[node.id] = step.submit(node.id, return_state=False, wait_for=before)

    def wait(self) -> list[str]:
        """Waits until all have ended, and gives their ids."""
        for future in self._shown.values():
            future.wait()
        return [str(future.task_run_id) for future in self._shown.values()]

    def _id(self, node: str) -> UUID | None:
        future = self._shown.get(node)
        return future.task_run_id if future else None


def _call(flow_of_it: Any, arguments: dict[str, Any], resumes: str | None) -> None:
    if resumes is None:
        flow_of_it(**arguments, return_state=True)
        return
    with get_client(sync_client=True) as client:
        # What has ended does not run again; what is pending may.
        client.set_flow_run_state(UUID(resumes), Pending(message="trtforge resume"), force=True)
        flow_run = client.read_flow_run(UUID(resumes))
    run_flow(flow_of_it, flow_run=flow_run, parameters=arguments, return_type="state")


def _follow(followed: Followed) -> State[Any]:
    followed.flow_run = flow_run = _Open()
    shown.describe_session(followed.session, followed.reporter.note)
    with _TaskRuns(followed.cached, followed.reporter) as task_runs:
        for node, future in followed.begun():
            task_runs.show(node, future)
        flow_run.task_runs = task_runs.wait()
    if followed.interrupted:
        return Cancelled(message="interrupted")
    shown.show_plans(followed.session, followed.reporter.note)
    return _verdict(followed.session)


def _follow_catalog(catalog: FollowedCatalog) -> State[Any]:
    catalog.flow_run = flow_run = _Open()
    _describe_catalog(catalog.models, catalog.reporter)
    for followed in catalog.begun():
        # Not waited for to its own end: that waits 0.9 s for its thread of heartbeats.
        child = Thread(target=copy_context().run, args=(_follow_as_subflow, followed), daemon=True)
        child.start()
        while child.is_alive() and not (followed.flow_run and followed.flow_run.is_final()):
            child.join(0.01)
        flow_run.task_runs = followed.flow_run.task_runs if followed.flow_run else ()
    return Cancelled(message="interrupted") if catalog.interrupted else _summed_up(catalog.rows, catalog.reporter)


def _follow_as_subflow(followed: Followed) -> None:
    _followed.set(followed)
    directories = [str(path) for path in followed.config_dirs]
    build(list(followed.overrides), directories, return_state=True)


def _end_with_worker() -> None:
    """Has a run say that it crashed, and end, when the worker that has started its process is killed.

    Nobody would see it, nor cancel it, and the first line that it prints would break it.
    """
    if "PREFECT__FLOW_RUN_ID" in os.environ:  # else it was called in a process of somebody's own
        end_with(os.getppid(), signal.SIGTERM)


def _ours(name: str) -> Reporter:
    """What tells of a run that a deployment has started; the run has this name until more is known of it."""
    _end_with_worker()
    reporter = Lines()
    shown.describe(name, [labels.OURS], reporter.note)
    return reporter


def _update(overrides: Sequence[str], config_dirs: Sequence[Path], reporter: Reporter) -> State[Any]:
    ran: list[Session] = []

    def run(session: Session, reporter: Reporter, *_: object) -> None:
        ran.append(session)
        shown.describe_session(session, reporter.note)
        _run_steps(session, reporter)

    session = update(overrides, config_dirs, reporter, Event(), run)
    if ran:
        shown.show_plans(session, reporter.note)
    else:
        shown.describe_session(session, reporter.note)
        _TaskRuns(list(session.outcomes), Progress(reporter)).wait()
    return _verdict(session)


def _run_as_subflow(
    session: Session, reporter: Reporter, overrides: Sequence[str], config_dirs: Sequence[Path]
) -> None:
    token = _planned.set((session, reporter))
    try:
        build(list(overrides), [str(path) for path in config_dirs], return_state=True)
    finally:
        _planned.reset(token)
    schedule.raise_bugs(session)


def _run(session: Session, reporter: Reporter) -> State[Any]:
    shown.describe_session(session, reporter.note)
    _run_steps(session, reporter)
    shown.show_plans(session, reporter.note)
    return _verdict(session)


def _run_steps(session: Session, reporter: Reporter) -> None:
    """Runs the steps of a session in this flow run."""
    session.workshop = replace(session.workshop, slot=limits.slot)
    found = [name for name, outcome in session.outcomes.items() if outcome.done]
    progress = Progress(reporter)
    with _TaskRuns(found, progress) as task_runs:
        with schedule.threads(session) as pool:

            def submit(node: Node) -> Future[Outcome]:
                future = pool.submit(schedule.work, session, node, progress)
                if node.id not in found:
                    task_runs.show(node, future)
                return future

            try:
                schedule.run(session, progress, submit)
            except BaseException:  # such as the signal by which Prefect cancels a run
                session.workshop.stop.set()
                raise
        task_runs.wait()


def _describe_catalog(models: Sequence[str], reporter: Reporter) -> None:
    shown.describe(labels.name_of_rebuild(models), labels.tags([], models), reporter.note)


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
    why = next((outcome.error for outcome in session.outcomes.values() if outcome.error), None)
    return Failed(message=f"not up to date: {', '.join(bad)}" + (f"; {why}" if why else ""))


def _summed_up(rows: Sequence[Rebuilt], reporter: Reporter) -> State[Any]:
    """The verdict on a catalog, whose table is an artifact of the flow run."""
    shown.show_catalog(rows, reporter.note)
    return Completed(message=total(rows)) if code(rows) is Exit.DONE else Failed(message=total(rows))
