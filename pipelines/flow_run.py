"""A flow run as its server knows it: opened, named, told of its task runs, its artifacts and events, and ended.

Task runs reach a server as the events that Prefect's own task engine sends (`emit_task_run_state_change_event` of
Prefect 3.8): the server's recorder makes rows of them. Events are posted as batches, one request for all that happened
meanwhile.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timezone
from threading import Event, Thread
from typing import Any
from uuid import uuid4

from pipelines import prefect_settings
from pipelines.server_api import Api, RefusedError

FINAL = ("COMPLETED", "FAILED", "CANCELLED", "CRASHED")
"""The types of states after which nothing comes."""

HEARTBEAT = "prefect.flow-run.heartbeat"

Json = dict[str, Any]


@dataclass(frozen=True)
class State:
    """A state of a run, as Prefect knows it.

    Attributes:
        type: Prefect's type of it: `COMPLETED`.
        message: What it says of itself.
        name: Its name; that of its type where none is given: `Completed`.
    """

    type: str
    message: str = ""
    name: str = ""

    @property
    def line(self) -> str:
        """What a log says of it."""
        return self.message or self.type.lower()

    @property
    def level(self) -> int:
        """How loud."""
        return logging.ERROR if self.type == "FAILED" else logging.INFO

    def document(self) -> Json:
        """As a server takes it."""
        return {"type": self.type, "name": self.name or self.type.capitalize(), "message": self.message}


@dataclass
class TaskRun:
    """A task run of an open flow run.

    Attributes:
        name: Its name: `build[l4]`.
        began: When what it shows began.
        after: The ids of the task runs that it waited for.
        id: Its id.
        state: In which it is; None before its first.
    """

    name: str
    began: datetime
    after: Sequence[str] = ()
    id: str = field(default_factory=lambda: str(uuid4()))
    state: State | None = None
    _last: str | None = None

    def enter(self, state: State, at: datetime, key: str, run_count: int) -> Json:
        """The event that it is now in a state, which it has been since `at`."""
        before, now = self.state, state.document()
        event = {
            "id": str(uuid4()),
            "occurred": at.isoformat(),
            "event": f"prefect.task-run.{now['name']}",
            "resource": {
                "prefect.resource.id": f"prefect.task-run.{self.id}",
                "prefect.resource.name": self.name,
                "prefect.run-count": "1",
                "prefect.state-message": state.message,
                "prefect.state-name": now["name"],
                "prefect.state-timestamp": at.isoformat(),
                "prefect.state-type": state.type,
                "prefect.orchestration": "client",
            },
            "payload": {
                "intended": {"from": before.type if before else None, "to": state.type},
                "initial_state": {**before.document(), "state_details": {}} if before else None,
                "validated_state": {**now, "state_details": {}, "data": None},
                "task_run": self._document(state, at, key, run_count),
            },
        }
        if self._last is not None:
            event["follows"] = self._last
        self.state, self._last = state, str(event["id"])
        return event

    def _document(self, state: State, at: datetime, key: str, run_count: int) -> Json:
        began = self.began.isoformat()
        ended = {"end_time": at.isoformat(), "total_run_time": (at - self.began).total_seconds()}
        return {
            "name": self.name,
            "task_key": key,
            "dynamic_key": self.id,
            "empirical_policy": {"max_retries": 0, "retry_delay_seconds": 0.0, "retries": 0, "retry_delay": 0},
            "tags": [],
            "labels": {},
            "task_inputs": {"wait_for": [{"input_type": "task_run", "id": each} for each in self.after]},
            "run_count": 1,
            "flow_run_run_count": run_count,
            "expected_start_time": began,
            "start_time": began,
            **(ended if state.type in FINAL else {"total_run_time": 0.0}),
        }


@dataclass
class FlowRun:
    """A flow run that this process runs.

    Attributes:
        api: Its server.
        id: Its id.
        flow: The name of its flow: `trtforge-build`.
        flow_id: The id of that.
        name: Its own name.
        tags: Those that it began with.
        parameters: What the flow was called with.
        deployment: The id of the deployment that it is of, if it is of one.
        run_count: The how-manieth time it runs.
        task_runs: The ids of its task runs.
        is_final: Whether the server knows how it ended.
    """

    api: Api
    id: str
    flow: str
    flow_id: str
    name: str
    tags: Sequence[str]
    parameters: Mapping[str, Any]
    deployment: str | None = None
    run_count: int = 1
    task_runs: list[str] = field(default_factory=list)
    is_final: bool = False
    _events: list[Json] = field(default_factory=list)
    _lines: list[Json] = field(default_factory=list)

    def rename(self, name: str, tags: Iterable[str]) -> None:
        """Gives it a name, and tags beside those that it has.

        Raises:
            ConnectionError: The server does not answer.
            RefusedError: It does not take them.
        """
        given = sorted({*self.tags, *tags})
        self.api("PATCH", f"/flow_runs/{self.id}", {"name": name, "tags": given})
        self.name = name

    def artifact(self, kind: str, data: object, told: str, key: str | None = None, task_run: str | None = None) -> str:
        """Makes an artifact of it, and gives its id.

        Args:
            kind: `markdown`, `table` or `progress`.
            data: Text, rows as JSON text, or percent.
            told: One line of what it is.
            key: By which it is found: lower case, digits and dashes.
            task_run: The id of the task run that it belongs to.

        Raises:
            ConnectionError: The server does not answer.
            RefusedError: It does not take it.
        """
        own = {"flow_run_id": self.id, "task_run_id": task_run}
        found = self.api("POST", "/artifacts/", {"type": kind, "key": key, "data": data, "description": told, **own})
        return str(found["id"])

    def change(self, artifact: str, data: object, told: str) -> None:
        """Gives an artifact other data, and another line.

        Raises:
            ConnectionError: The server does not answer.
            RefusedError: It does not take it.
        """
        self.api("PATCH", f"/artifacts/{artifact}", {"data": data, "description": told})

    def remove(self, artifact: str) -> None:
        """Deletes an artifact.

        Raises:
            ConnectionError: The server does not answer.
            RefusedError: It does not do it.
        """
        self.api("DELETE", f"/artifacts/{artifact}")

    def emit(self, event: Json) -> None:
        """Takes an event that is about something which this run has made."""
        related = [*event.get("related", ()), _resource("flow-run", self.id, self.name), *self._above()]
        self._events.append({**_stamp(), **event, "related": related})

    def begin(self, name: str, at: datetime | None = None, after: Iterable[str] = ()) -> TaskRun:
        """Begins a task run, which runs since `at`, and waited for those with the ids `after`."""
        task_run = TaskRun(name, at or _now(), [*after])
        self.task_runs.append(task_run.id)
        self._enter(task_run, State("RUNNING"), task_run.began)
        return task_run

    def end(self, task_run: TaskRun, state: State, at: datetime | None = None) -> None:
        """Ends a task run."""
        self._enter(task_run, state, at or _now())
        where = f"{task_run.name}: "  # with which errors begin
        self.log(where + state.line.removeprefix(where), state.level, task_run.id)

    def log(self, line: str, level: int = logging.INFO, task_run: str | None = None) -> None:
        """Takes a line of its log."""
        own = {"flow_run_id": self.id, "task_run_id": task_run}
        self._lines.append(
            {"name": "trtforge", "level": level, "message": line, "timestamp": _now().isoformat(), **own}
        )

    def flush(self) -> None:
        """Sends the events and the lines that it has taken.

        Raises:
            ConnectionError: The server does not answer.
            RefusedError: It does not take them.
        """
        for path, kept in (("/events", self._events), ("/logs/", self._lines)):
            if kept:
                self.api("POST", path, kept)
                kept.clear()

    def close(self, state: State) -> None:
        """Ends it, after all that it has taken.

        Raises:
            ConnectionError: The server does not answer.
            RefusedError: It does not take it.
        """
        self.log(state.line, state.level)
        self.flush()
        self._set(state)
        self.is_final = True

    @contextmanager
    def beating(self) -> Iterator[None]:
        """Says again and again that it lives, until the block ends."""
        over = Event()
        thread = Thread(target=self._beat, args=(over,), daemon=True, name="heartbeat")
        thread.start()
        try:
            yield
        finally:
            over.set()

    def _beat(self, over: Event) -> None:
        while not self.is_final:
            about = {"prefect.resource.id": f"prefect.flow-run.{self.id}", "prefect.resource.name": self.name}
            event = {**_stamp(), "event": HEARTBEAT, "resource": about, "related": self._above()}
            with suppress(ConnectionError, RefusedError):  # it lives, whoever hears it
                self.api("POST", "/events", [event])
            if over.wait(prefect_settings.heartbeat_seconds()):
                return

    def _enter(self, task_run: TaskRun, state: State, at: datetime) -> None:
        self.emit(task_run.enter(state, at, f"{self.flow}.step", self.run_count))

    def _above(self) -> list[Json]:
        """What it is a run of."""
        deployment = [_resource("deployment", self.deployment, "")] if self.deployment else []
        return [_resource("flow", self.flow_id, self.flow), *deployment]

    def _set(self, state: State, force: bool = False) -> None:
        answer = self.api("POST", f"/flow_runs/{self.id}/set_state", {"state": state.document(), "force": force})
        if answer["status"] != "ACCEPT" and (answer["state"] or {}).get("type") != state.type:
            why = (answer.get("details") or {}).get("reason") or answer["status"]
            raise RefusedError(409, f"the server does not have the run {state.type.lower()}: {why}")


def opened(
    api: Api, flow: str, name: str, tags: Sequence[str], parameters: Mapping[str, Any], parent: FlowRun | None = None
) -> FlowRun:
    """A new flow run, which runs; of a parent's it is a subflow run.

    Raises:
        ConnectionError: The server does not answer.
        RefusedError: It does not take it.
    """
    flow_id = api("POST", "/flows/", {"name": flow})["id"]
    asked = {"flow_id": flow_id, "name": name, "tags": tags, "parameters": parameters, "state": {"type": "PENDING"}}
    if parent is not None:
        # A task run that stands for it, and that the server has end as it does.
        stands = {"flow_run_id": parent.id, "task_key": flow, "dynamic_key": str(uuid4()), "name": name}
        asked["parent_task_run_id"] = api("POST", "/task_runs/", {**stands, "state": {"type": "PENDING"}})["id"]
    # Who is asked again after an answer that was lost makes no second one.
    run_id = api("POST", "/flow_runs/", {**asked, "idempotency_key": str(uuid4())})["id"]
    run = FlowRun(api, run_id, flow, flow_id, name, tags, parameters)
    run._set(State("RUNNING"))
    run.log(f"trtforge runs {name}")
    return run


def reopened(api: Api, run_id: str, flow: str) -> FlowRun:
    """A flow run that has ended, which runs again.

    Raises:
        ConnectionError: The server does not answer.
        RefusedError: It does not take it.
    """
    found = api("GET", f"/flow_runs/{run_id}")
    run = FlowRun(api, run_id, flow, found["flow_id"], found["name"], found["tags"], found["parameters"])
    run._set(State("PENDING", "trtforge resume"), force=True)  # what has ended does not run again; what is pending may
    run._set(State("RUNNING"))
    run.run_count = found["run_count"] + 1
    run.log(f"trtforge resumes {run.name}")
    return run


def _resource(kind: str, name: str, told: str) -> Json:
    return {
        "prefect.resource.id": f"prefect.{kind}.{name}",
        "prefect.resource.role": kind,
        "prefect.resource.name": told,
    }


def _stamp() -> Json:
    return {"id": str(uuid4()), "occurred": _now().isoformat()}


def _now() -> datetime:
    return datetime.now(timezone.utc)
