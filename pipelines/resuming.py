"""`trtforge resume RUN`: goes on with a flow run that has crashed, failed or was cancelled.

It is the same flow run that goes on; what it had finished is in the store, and shows as `Cached`. A run of a
deployment goes back to its work queue. One of the command line is run here, with the parameters that it has recorded.
A run that says `Running` may be dead: whether it lives its heartbeats tell.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, timezone
from difflib import get_close_matches
from pathlib import Path
from typing import Any
from uuid import UUID

import pipelines.prefect_settings  # noqa: F401 - Prefect reads them on import

# isort: split
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas import State, StateType
from prefect.client.schemas.filters import FlowFilter, FlowRunFilter, TaskRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound
from prefect.settings.context import get_current_settings
from prefect.states import Completed, Crashed, Scheduled

from conf.errors import ConfigError
from pipelines.deploying import server
from pipelines.deployments import CRASHED_AFTER_SECONDS
from pipelines.flow_run import HEARTBEAT
from pipelines.following import BUILD, REBUILD

OURS = "trtforge-"
"""How the names of our flows begin."""

_LOOKED_AT = 200
"""So many runs, the latest, are looked at for a beginning of an id; the server gives no more at once."""

_ALIVE = (StateType.RUNNING, StateType.PENDING, StateType.CANCELLING)
_UNFINISHED = (*_ALIVE, StateType.CRASHED, StateType.FAILED, StateType.CANCELLED)


@dataclass(frozen=True)
class Resumed:
    """What becomes of a run.

    Attributes:
        id: The flow run's.
        name: Its name.
        flow: The name of its flow: `trtforge-build`.
        was: The name of the state in which it was found.
        next: `nothing` is left to do, it is `queued`, or is to be run `here`.
        queue: The work queue of a run of a deployment; None where `trtforge serve` serves it.
        parameters: What the flow was called with.
    """

    id: str
    name: str
    flow: str
    was: str
    next: str
    queue: str | None = None
    parameters: dict[str, Any] = field(default_factory=dict)

    @property
    def overrides(self) -> list[str]:
        """Hydra's."""
        return list(self.parameters.get("overrides") or [])

    @property
    def config_dirs(self) -> list[Path]:
        """The user's own config directories; relative ones count from the working directory."""
        return [Path(path) for path in self.parameters.get("config_dirs") or []]

    def document(self) -> dict[str, Any]:
        """What `--json` prints of it."""
        return {"id": self.id, "name": self.name, "flow": self.flow, "was": self.was, "next": self.next} | (
            {"queue": self.queue} if self.next == "queued" else {}
        )

    def lines(self) -> list[str]:
        """The same for people."""
        run = f"{self.name} ({self.id})"
        if self.next == "nothing":
            return [f"{run} is {self.was}: nothing to resume"]
        if self.next == "here":
            return [f"{run} was {self.was}: it goes on here"]
        serves = f"on the queue {self.queue}: trtforge worker" if self.queue else "for trtforge serve"
        return [f"{run} was {self.was}, and waits {serves}", f"see how it goes: prefect flow-run inspect {self.id}"]


def resume(wanted: str, now: datetime | None = None) -> Resumed:
    """Puts a run of a deployment back on its queue, and says of any other what is to be run here.

    Args:
        wanted: The flow run's id, the beginning of it, or its name.
        now: The time, with its zone; that of the clock if it is not given.

    Raises:
        ConfigError: There is no such run, or it cannot be resumed: it runs, is not ours, or is part of another.
        EngineError: The server does not answer.
    """
    with server() as client:
        run, flow = _find(client, wanted)
        state = run.state or Scheduled()
        found = Resumed(str(run.id), run.name, flow, state.name or "", "nothing", run.work_queue_name)
        if state.is_completed():
            return found
        if state.is_scheduled():
            return replace(found, next="queued")
        _refuse_parts(client, run)
        if state.type in _ALIVE:
            _end(client, run, state, now or datetime.now(timezone.utc))
        elif not state.is_final():
            raise ConfigError(f"{_told(run)}: nothing has to go on", f"prefect flow-run resume {run.id}")
        if run.deployment_id is not None:
            _end_parts(client, run)
            client.set_flow_run_state(run.id, Scheduled(message="trtforge resume"), force=True)
            return replace(found, next="queued")
        if flow not in (BUILD, REBUILD):
            raise ConfigError(
                f"{_told(run)}, and {flow} has no deployment to run it", f"trtforge {flow.removeprefix(OURS)} …"
            )
        _end_parts(client, run)
        return replace(found, next="here", parameters=dict(run.parameters))


def conclude(found: Resumed) -> None:
    """Completes a run for which nothing was left to do: nobody has opened it again.

    Raises:
        EngineError: The server does not answer.
    """
    with server() as client:
        state = client.read_flow_run(UUID(found.id)).state
        if state is not None and state.is_final() and not state.is_completed():
            told: State[Any] = Completed(name="Cached", message="all is up to date: nothing was left to do")
            client.set_flow_run_state(UUID(found.id), told, force=True)


def _find(client: SyncPrefectClient, wanted: str) -> tuple[FlowRun, str]:
    """The run of that id or name, and the name of its flow; of several of a name the latest."""
    run = _by_id(client, wanted) or _by_name(client, wanted) or _by_beginning(client, wanted)
    flow = client.read_flow(run.flow_id).name
    if not flow.startswith(OURS):
        raise ConfigError(
            f"{run.name} ({run.id}) is a run of the flow {flow}, which is not trtforge's",
            f"prefect flow-run retry {run.id}",
        )
    return run, flow


def _by_id(client: SyncPrefectClient, wanted: str) -> FlowRun | None:
    with suppress(ValueError, ObjectNotFound):
        return client.read_flow_run(UUID(wanted))
    return None


def _by_name(client: SyncPrefectClient, wanted: str) -> FlowRun | None:
    named = FlowRunFilter.model_validate({"name": {"any_": [wanted]}})
    latest = client.read_flow_runs(flow_run_filter=named, sort=FlowRunSort.EXPECTED_START_TIME_DESC, limit=1)
    return latest[0] if latest else None


def _by_beginning(client: SyncPrefectClient, wanted: str) -> FlowRun:
    recent = _recent(client)
    found = [run for run in recent if wanted and str(run.id).startswith(wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        told = ", ".join(f"{run.id} ({run.name}, {run.state_name})" for run in found[:5])
        raise ConfigError(f"{len(found)} flow runs begin with {wanted!r}: {told}", "name more of its id")
    raise ConfigError(f"the server has no flow run {wanted!r}", _instead(wanted, recent))


def _instead(wanted: str, recent: Sequence[FlowRun]) -> str:
    """What may be meant: runs of a name like it, or else the latest that are not finished."""
    unfinished = [run for run in recent if run.state_type in _UNFINISHED]
    close = get_close_matches(wanted, {run.name for run in unfinished}, n=3)
    near = [run for run in unfinished if run.name in close] or unfinished
    told = ", ".join(f"{run.name} ({run.id}, {run.state_name})" for run in near[:3])
    return f"unfinished: {told}" if told else "none of trtforge's runs is unfinished"


def _recent(client: SyncPrefectClient) -> list[FlowRun]:
    """The latest of our runs; those that a schedule has only planned are left out, which are hundreds."""
    not_planned = {
        "operator": "or_",
        "state": {"type": {"not_any_": [StateType.SCHEDULED]}},
        "start_time": {"is_null_": False},
    }
    return client.read_flow_runs(
        flow_filter=FlowFilter.model_validate({"name": {"like_": OURS}}),
        flow_run_filter=FlowRunFilter.model_validate(not_planned),
        sort=FlowRunSort.EXPECTED_START_TIME_DESC,
        limit=_LOOKED_AT,
    )


def _refuse_parts(client: SyncPrefectClient, run: FlowRun) -> None:
    """Of a run that another has started only that other knows what became of it."""
    if run.parent_task_run_id is None:
        return
    with suppress(ObjectNotFound):
        parent = client.read_task_run(run.parent_task_run_id).flow_run_id
        if parent is not None:
            raise ConfigError(f"{_told(run)}, and is part of the run {parent}", f"trtforge resume {parent}")


def _end(client: SyncPrefectClient, run: FlowRun, state: State[Any], now: datetime) -> None:
    """Ends a run whose process is dead: as Crashed, the state in which it would be had anybody been there to say so."""
    seen = max(filter(None, (state.timestamp, _last_heartbeat(client, run, now))))
    silent, dead_after = now - seen, timedelta(seconds=_dead_after_seconds())
    if silent < dead_after:
        rest = (dead_after - silent).total_seconds()
        raise ConfigError(
            f"{_told(run)}: it gave a sign of life {silent.total_seconds():.0f} s ago",
            f"prefect flow-run cancel {run.id}; or, if its process is dead, try again in {rest:.0f} s",
        )
    message = f"no sign of life for {silent.total_seconds():.0f} s: its process died"
    client.set_flow_run_state(run.id, Crashed(message=message), force=True)


def _dead_after_seconds() -> float:
    """Three heartbeats of our runs; where Prefect's settings have them come less often, three of those."""
    return max(CRASHED_AFTER_SECONDS, 3 * (get_current_settings().flows.heartbeat_frequency or 0))


def _last_heartbeat(client: SyncPrefectClient, run: FlowRun, now: datetime) -> datetime | None:
    wanted = {
        "occurred": {"until": now.isoformat()},
        "event": {"name": [HEARTBEAT]},
        "resource": {"id": [f"prefect.flow-run.{run.id}"]},
    }
    found = client.request("POST", "/events/filter", json={"filter": wanted, "limit": 1})  # the latest first
    events = found.json()["events"]
    return datetime.fromisoformat(events[0]["occurred"].replace("Z", "+00:00")) if events else None


def _end_parts(client: SyncPrefectClient, run: FlowRun) -> None:
    """Ends what ran in the dead process, steps and the runs of a catalog's models: Prefect has them run for ever."""
    died: State[Any] = Crashed(message="its flow run's process died")
    parts = FlowRunFilter.model_validate({"parent_flow_run_id": {"any_": [run.id]}})
    for part in client.read_flow_runs(flow_run_filter=parts):
        if part.deployment_id is None:  # else it has a process of its own
            _end_parts(client, part)
            if part.state_type in _ALIVE:
                client.set_flow_run_state(part.id, died, force=True)
    alive = TaskRunFilter.model_validate({"state": {"type": {"any_": _ALIVE}}})
    of_it = FlowRunFilter.model_validate({"id": {"any_": [run.id]}})
    for step in client.read_task_runs(flow_run_filter=of_it, task_run_filter=alive):
        client.set_task_run_state(step.id, died, force=True)


def _told(run: FlowRun) -> str:
    return f"{run.name} ({run.id}) is {run.state_name}"
