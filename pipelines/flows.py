"""The Prefect flows, entry points of deployments: each a shell around the function that the verb of its name calls.

The store is the one authority on what is cached: Prefect's own cache is off, and a hit shows as a state named `Cached`.
Steps run in threads of ours; a task run is a step as Prefect sees it, and ends when the step does. What was cached
before anything ran is one task run. Nothing is tried again, whatever Prefect's settings say: a model that cannot be
built could not be the next time. Runs of the command line look the same, without this import (`pipelines.following`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextvars import ContextVar
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pipelines.prefect_settings  # noqa: F401 - Prefect reads them on import

# isort: split
from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas import State, StateType
from prefect.client.schemas.objects import FlowRun as PrefectFlowRun
from prefect.context import FlowRunContext
from prefect.futures import PrefectFuture
from prefect.states import Cancelled, Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from artifacts.errors import StoreError
from conf.errors import ConfigError
from pipelines import flow_run, following, labels, limits, schedule, shown
from pipelines.errors import EngineError, InterruptedBuildError
from pipelines.execute import Outcome
from pipelines.graph import Node
from pipelines.orphans import end_with
from pipelines.progress import Progress
from pipelines.rebuild import choose, of_architecture
from pipelines.rebuild import rebuild as rebuild_catalog
from pipelines.reporting import Lines, Reporter
from pipelines.server_api import Prefects
from pipelines.session import Session
from pipelines.updating import update

_planned: ContextVar[tuple[Session, Reporter] | None] = ContextVar("planned", default=None)
_running: ContextVar[dict[str, Future[Outcome]]] = ContextVar("running")


@task(name="step", task_run_name="{node}", cache_policy=NO_CACHE, persist_result=False, retries=0)
def step(node: str) -> Any:
    """One node of the step graph, such as `build[l4]`, which runs already."""
    try:
        return _end_of(_running.get()[node].result())
    except InterruptedBuildError:
        return Cancelled(message="interrupted")


@task(name="cached", task_run_name="{name}", cache_policy=NO_CACHE, persist_result=False, retries=0)
def cached(name: str, names: str) -> Any:
    """What was found in the store before anything ran, as one task run."""
    return Completed(name="Cached", message=names)


_STEPS: Any = ThreadPoolTaskRunner(max_workers=schedule.AT_ONCE)


@flow(name=following.BUILD, task_runner=_STEPS, persist_result=False, retries=0)
def build(overrides: list[str], config_dirs: list[str] | None = None) -> Any:
    """Brings a flow's outputs up to date, as `trtforge build` does.

    Args:
        overrides: Hydra overrides, such as `["flow=int8", "targets=[l4]"]`.
        config_dirs: Directories of own config groups.
    """
    planned = _planned.get()
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


@flow(name=following.REBUILD, persist_result=False, retries=0)
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
    reporter, directories = _ours("rebuild"), _paths(config_dirs)
    chosen = choose(overrides, models, directories)
    _describe(labels.name_of_rebuild(chosen), labels.tags([], chosen), reporter)
    own = of_architecture(architecture, overrides, directories)
    rows = rebuild_catalog(own, chosen, directories, reporter, Event(), _run_as_subflow)
    shown.show_catalog(_here(), rows, reporter.note)
    return _state(following.verdict_on(rows))


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
    shown.show_versions(_here(), found.changes, told, reporter.note)
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
            _describe(_here().name, labels.tags([session]), reporter)  # its sender has named it
            _run_steps(session, reporter)
    except (ConfigError, EngineError, StoreError) as error:
        return Failed(message=error.what)
    return _state(following.verdict(session))


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
            self._shown["cached"] = cached.submit(following.name_of_cached(found), ", ".join(found), return_state=False)
        self.bars = shown.Bars(_here(), progress, self._id, progress.note)

    def show(self, node: Node, future: Future[Outcome]) -> None:
        """Adds the task run of a step that has begun."""
        self._futures[node.id] = future
        before = [self._shown[name] for name in node.before if name in self._shown]
        self._shown[node.id] = step.submit(node.id, return_state=False, wait_for=before)

    def wait(self) -> None:
        """Waits until all have ended."""
        for future in self._shown.values():
            future.wait()

    def _id(self, node: str) -> str | None:
        future = self._shown.get(node)
        return str(future.task_run_id) if future else None


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
    _describe(name, [labels.OURS], reporter)
    return reporter


def _here() -> flow_run.FlowRun:
    """The flow run in which this is called."""
    flow_of_it, run = _context()
    deployment = str(run.deployment_id) if run.deployment_id else None
    return flow_run.FlowRun(
        Prefects(), str(run.id), flow_of_it, str(run.flow_id), run.name, run.tags, run.parameters, deployment
    )


def _context() -> tuple[str, PrefectFlowRun]:
    """The name of the flow in which this is called, and Prefect's own object of its run."""
    context = FlowRunContext.get()
    assert context is not None  # noqa: S101 - called in flows only
    assert context.flow is not None  # noqa: S101
    assert context.flow_run is not None  # noqa: S101
    return context.flow.name, context.flow_run


def _describe(name: str, tags: Iterable[str], reporter: Reporter) -> None:
    shown.describe(_here(), name, tags, reporter.note)
    # Not the tags: Prefect would send all of them with every event of every task run, which costs the server of a run
    # of 14 task runs 0.2 s of processor time.
    _context()[1].name = name


def _describe_session(session: Session, reporter: Reporter) -> None:
    _describe(labels.name(session), labels.tags([session]), reporter)


def _show_plans(session: Session, reporter: Reporter) -> None:
    run = _here()
    shown.Plans(run, session, reporter.note).show()
    shown.show_sources(run, session, reporter.note)


def _update(overrides: Sequence[str], config_dirs: Sequence[Path], reporter: Reporter) -> State[Any]:
    ran: list[Session] = []

    def run(session: Session, reporter: Reporter, *_: object) -> None:
        ran.append(session)
        _describe_session(session, reporter)
        _run_steps(session, reporter)

    session = update(overrides, config_dirs, reporter, Event(), run)
    if ran:
        _show_plans(session, reporter)
    else:
        _describe_session(session, reporter)
        _TaskRuns(list(session.outcomes), Progress(reporter)).wait()
    return _state(following.verdict(session))


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
    _describe_session(session, reporter)
    _run_steps(session, reporter)
    _show_plans(session, reporter)
    return _state(following.verdict(session))


def _run_steps(session: Session, reporter: Reporter) -> None:
    """Runs the steps of a session in this flow run."""
    session.workshop = replace(session.workshop, slot=limits.slot)
    found = [name for name, outcome in session.outcomes.items() if outcome.done]
    progress = Progress(reporter)
    task_runs = _TaskRuns(found, progress)
    with task_runs.bars:
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


def _paths(config_dirs: Sequence[str] | None) -> list[Path]:
    return [Path(path) for path in config_dirs or []]


def _state(found: flow_run.State, data: Any = None) -> State[Any]:
    told = found.document()
    return State(type=StateType(told["type"]), name=told["name"], message=told["message"], data=data)


def _end_of(outcome: Outcome) -> State[Any]:
    if outcome.record is None:
        return _state(following.state_of(outcome))
    outputs = {name: blob.digest for name, blob in outcome.record.outputs.items()}
    return _state(following.state_of(outcome), {"key": outcome.key, "outputs": outputs})
