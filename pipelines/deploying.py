"""Makes a Prefect server what `prefect.yaml` asks for: `trtforge deploy` and `trtforge serve`.

Everything is looked at first and becomes a list of `Change`s: what is there already is left alone, so that a second
deploy changes nothing, and a dry run is the same list without the last step.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pipelines.prefect_settings  # noqa: F401 - Prefect reads them on import

# isort: split
from httpx import HTTPStatusError, RequestError
from prefect import serve
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import (
    GlobalConcurrencyLimitCreate,
    GlobalConcurrencyLimitUpdate,
    WorkPoolCreate,
)
from prefect.client.schemas.filters import (
    DeploymentFilter,
    DeploymentFilterTags,
    WorkerFilter,
    WorkerFilterStatus,
)
from prefect.client.schemas.objects import StateType, WorkerStatus
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.settings.context import get_current_settings

from conf.compose import compose
from conf.errors import ConfigError
from pipelines.changes import Change
from pipelines.deployed import Made, automation_of, fields_of, now_of, put, shipped_flows, told
from pipelines.deployments import NIGHTLY, POOL, TIMEZONE, Deployments, parsed, read, written
from pipelines.errors import EngineError
from pipelines.flow_run import HEARTBEAT
from stages.wording import first_line

ZOMBIES = "trtforge: runs without heartbeats are Crashed"
"""The name of the automation that ends the runs whose process is gone."""


@contextmanager
def server() -> Iterator[SyncPrefectClient]:
    """A client of the configured server.

    Raises:
        ConfigError: No server is configured.
        EngineError: It does not answer, or refuses what is asked.
    """
    url = require_server()
    try:
        with get_client(sync_client=True) as client:
            yield client
    except HTTPStatusError as error:
        raise EngineError(f"the Prefect server at {url} refuses: {error.response.text[:300]}") from error
    except (RequestError, PrefectException, RuntimeError) as error:
        raise EngineError(
            f"the Prefect server at {url} does not do it: {first_line(error)}",
            "check PREFECT_API_URL and that its server runs",
        ) from error


def require_server() -> str:
    """The URL of the configured server; a temporary one would forget what it is told.

    Raises:
        ConfigError: There is none.
    """
    url = get_current_settings().api.url
    if not url:
        raise ConfigError(
            "no Prefect server is named: deployments, schedules and workers need a lasting one",
            "start one with `prefect server start`, and set PREFECT_API_URL=http://127.0.0.1:4200/api",
        )
    return url


def require_pool(pool: str) -> None:
    """Refuses to start workers for a work pool that nobody deployed.

    Raises:
        ConfigError: There is none, or it is not of type process.
        EngineError: The server does not answer.
    """
    with server() as client:
        try:
            found = client.read_work_pool(pool)
        except ObjectNotFound as error:
            raise ConfigError(f"the server has no work pool {pool}", "trtforge deploy creates it") from error
    if found.type != "process":
        raise ConfigError(
            f"the work pool {pool} is of type {found.type}, and trtforge worker serves pools of type process",
            f"prefect worker start --pool {pool}",
        )


def workers_of(client: SyncPrefectClient, pool: str) -> set[str]:
    """The names of the workers of a pool that the server has heard of lately: it forgives three heartbeats of 30 s."""
    online = WorkerFilter(status=WorkerFilterStatus(any_=[WorkerStatus.ONLINE.value]))
    found: set[str] = set()
    try:
        while page := client.read_workers_for_work_pool(pool, online, offset=len(found), limit=200):
            found |= {worker.name for worker in page}
    except ObjectNotFound:  # nobody deployed it
        pass
    return found


def asked(
    path: Path,
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    schedule: tuple[str, str] | None = None,
    write: bool = True,
) -> tuple[Deployments, bool]:
    """What the file `path` asks for, and whether it is new; where there is none it is written.

    Args:
        path: The file.
        overrides: Of the deployments of a new file.
        config_dirs: The same; as the workers see them.
        schedule: Cron expression and time zone of `rebuild-nightly` in a new file.
        write: Whether to write it: a dry run only reads what it would write.

    Raises:
        ConfigError: The overrides, or the file, say what is not understood; or there is a file already.
    """
    if path.exists():
        if overrides or config_dirs or schedule:
            raise ConfigError(
                f"{path} is there already, and says what is deployed: overrides of this call would be lost",
                f"edit {path}, or delete it to have it written anew",
            )
        return read(path), False
    config = compose(overrides, config_dirs)
    tags = [tag for tag in (config.model.name, config.flow) if tag]
    chosen = [value for key, _, value in (each.partition("=") for each in overrides) if key == "model"]
    models = None if config_dirs else chosen[-1:] or tags[:1]
    cron, timezone = schedule or (NIGHTLY, TIMEZONE)
    text = written(overrides, config_dirs, tags, models, cron, timezone, shipped_flows())
    found = parsed(text, path)
    if write:
        path.write_text(text)
    return found, True


def changes(client: SyncPrefectClient, wanted: Deployments) -> list[Change]:
    """What is to be done on the server, in the order in which it must be; nothing is done yet.

    Raises:
        ConfigError: A deployment holds what Prefect or its flow does not take.
    """
    # All of the file is checked before the server is asked.
    made = [Made(wanted, deployment) for deployment in wanted.deployments]
    found = [_pool(client, wanted), *_queues(client, wanted), *_limits(client, wanted)]
    for each in made:
        found += each.changes(client)
    found += _zombies(client, wanted)
    return [*found, *_others(client, wanted, found)]


def serve_here(wanted: Deployments, limit: int) -> None:
    """Serves the deployments from this process until it is interrupted: schedules run here, and no pool is needed.

    Args:
        wanted: What to serve.
        limit: How many runs may be active at once.

    Raises:
        ConfigError: As `changes`; or no server is configured.
        EngineError: The server does not answer.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # Prefect ends its runs in good order, which takes a while
    with server() as client:
        _refuse_pool(client, wanted.pool)
        for change in _zombies(client, wanted):
            if change.state != "left":
                change.apply()
        served = [Made(wanted, deployment).served() for deployment in wanted.deployments]
        serve(*served, limit=limit, print_starting_message=False)


def _refuse_pool(client: SyncPrefectClient, pool: str) -> None:
    with suppress(ObjectNotFound):
        client.read_work_pool(pool)
        raise ConfigError(
            f"the server has the work pool {pool}: its workers would take the runs that are served here",
            "start `trtforge worker` instead, or take a server of its own",
        )


def _pool(client: SyncPrefectClient, wanted: Deployments) -> Change:
    try:
        there = client.read_work_pool(wanted.pool)
    except ObjectNotFound:
        now = None
    else:
        if there.type != wanted.pool_type:
            raise ConfigError(
                f"the work pool {wanted.pool} is of type {there.type}, and {wanted.path} says {wanted.pool_type}: "
                "a pool cannot change its type",
                "take another name, or delete the pool with `prefect work-pool delete`",
            )
        now = {"type": there.type}
    create = WorkPoolCreate(name=wanted.pool, type=wanted.pool_type, base_job_template=_template(wanted))
    return Change(f"work pool {wanted.pool}", now, {"type": wanted.pool_type}, lambda: client.create_work_pool(create))


def _template(wanted: Deployments) -> dict[str, Any]:
    """What Prefect ships as the job template of such a pool."""
    if wanted.pool_type == "process":
        from prefect.workers.process import ProcessWorker

        return ProcessWorker.get_default_base_job_template()
    from prefect.workers.base import BaseWorker

    worker = BaseWorker.get_worker_class_from_type(wanted.pool_type)
    if worker is None:
        raise ConfigError(
            f"{wanted.path}: nothing installed knows work pools of type {wanted.pool_type!r}",
            f"install prefect-{wanted.pool_type}, or create the pool with `prefect work-pool create` first",
        )
    return worker.get_default_base_job_template()


def _queues(client: SyncPrefectClient, wanted: Deployments) -> Iterator[Change]:
    try:
        there = {queue.name: queue for queue in client.read_work_queues(wanted.pool, limit=200)}
    except ObjectNotFound:  # the pool is not there yet
        there = {}
    for name, limit in wanted.queues.items():
        queue = there.get(name)
        if queue is None:
            now, apply = (
                None,
                _later(client.create_work_queue, name, concurrency_limit=limit, work_pool_name=wanted.pool),
            )
        else:
            now = {"concurrency_limit": queue.concurrency_limit}
            apply = _later(client.update_work_queue, queue.id, concurrency_limit=limit)
        yield Change(f"work queue {name}", now, {"concurrency_limit": limit}, apply)


def _limits(client: SyncPrefectClient, wanted: Deployments) -> Iterator[Change]:
    there = {limit.name: limit for limit in client.read_global_concurrency_limits(limit=200, offset=0)}
    for name, slots in wanted.limits.items():
        if name in there:
            now = {"limit": there[name].limit, "active": there[name].active}
            update = GlobalConcurrencyLimitUpdate(limit=slots, active=True)
            apply = _later(client.update_global_concurrency_limit, name, update)
        else:
            now = None
            create = GlobalConcurrencyLimitCreate(name=name, limit=slots, active=True)
            apply = _later(client.create_global_concurrency_limit, create)
        yield Change(f"concurrency limit {name}", now, {"limit": slots, "active": True}, apply)


def _zombies(client: SyncPrefectClient, wanted: Deployments) -> list[Change]:
    """The automation that Prefect documents for runs whose process died: nobody else would ever end them."""
    if wanted.crashed_after_seconds is None:
        return []
    told_so = f"no heartbeat for {wanted.crashed_after_seconds} s: its process died"
    # A worker that dies while it starts a run leaves it Pending for ever: of eight killed at random three did.
    begun = {f"prefect.flow-run.{state}" for state in ("Pending", "Submitting", "Running")}
    ended = {f"prefect.flow-run.{state}" for state in ("Completed", "Failed", "Cancelled", "Crashed")}
    waits = {f"prefect.flow-run.{state}" for state in ("Scheduled", "AwaitingRetry", "AwaitingConcurrencySlot")}
    made = AutomationCore(
        name=ZOMBIES,
        trigger=EventTrigger(
            after={HEARTBEAT, *begun},
            expect={HEARTBEAT, *ended, *waits},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            # By the flow's name: heartbeats have the tags that a run began with, those of the command line's none.
            match_related={"prefect.resource.role": "flow", "prefect.resource.name": f"{POOL}-*"},
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=wanted.crashed_after_seconds),
        ),
        actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message=told_so, force=False)],
    )
    return [Change(f"automation {ZOMBIES}", now_of(client, ZOMBIES), told(made), lambda: put(client, made))]


def _others(client: SyncPrefectClient, wanted: Deployments, ours: Sequence[Change]) -> Iterator[Change]:
    """What earlier files named: it is told and left alone."""
    named = {change.what for change in ours}
    tagged = DeploymentFilter(tags=DeploymentFilterTags(all_=[POOL]))
    there = client.read_deployments(deployment_filter=tagged, limit=200)
    found = {f"deployment {client.read_flow(each.flow_id).name}/{each.name}": fields_of(each) for each in there}
    prefixes = tuple(automation_of(deployment.name) for deployment in wanted.deployments)
    for automation in client.read_automations(limit=200):
        if automation.name == ZOMBIES or automation.name.startswith(prefixes):
            found[f"automation {automation.name}"] = told(automation)
    for what, now in found.items():
        if what not in named:
            yield Change(what, now, None, lambda: None)


def _later(call: Callable[..., object], *arguments: Any, **options: Any) -> Callable[[], object]:
    return lambda: call(*arguments, **options)
