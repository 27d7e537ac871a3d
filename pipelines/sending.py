"""Has the steps of a target run on its queue: a job goes into the remote, a run to the queue, the answers come back.

One run does all of a target's steps that can be done by then. A run whose worker is lost is sent again; one that fails
is not. Nothing is lost with the sender: what a worker has built is in the remote, where the next build finds it.
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pipelines.prefect_settings  # noqa: F401 - Prefect reads them on import

# isort: split
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling, Crashed

from artifacts.errors import StoreError
from conf.errors import ConfigError
from pipelines import job, labels
from pipelines.announced import serves
from pipelines.deploying import server, workers_of
from pipelines.deployments import POOL, TARGET
from pipelines.errors import CannotBuildError, EngineError, InterruptedBuildError
from pipelines.execute import Outcome
from pipelines.graph import Node, is_sent
from pipelines.routing import queue_of
from pipelines.session import Session
from pipelines.targets import BuildTarget
from stages.stage import Progress

TRIES = 3
"""So often is a job sent whose worker is lost."""

POLL_SECONDS = 1.0
"""How often the server is asked how a run is."""

LOST_SECONDS = 60.0
"""A run that nobody takes, or that runs, is given up after so long without a worker of its queue that lives; the
server takes a worker for dead 90 s after its last heartbeat."""

_LOOK_FOR_WORKERS_SECONDS = 10.0


_OWN_CODE = ("metric", "passes", "source", "torch_source", "calibration_source", "holdout_source")
"""Inputs that are Python of the user's own, which is imported by its name: a worker has none of it."""


def refuse_own_code(nodes: Sequence[Node]) -> None:
    """Refuses steps for queues that import the user's own Python: it does not travel.

    Raises:
        CannotBuildError: There are such steps.
    """
    for node in filter(is_sent, nodes):
        if own := [name for name in _OWN_CODE if name in node.files]:
            files = ", ".join(path.name for path in node.files[own[0]])
            raise CannotBuildError(
                f"{node.id} is for the queue of {node.target and node.target.architecture}, and runs Python of yours "
                f"({own[0].removesuffix('_source')}: {files}), which is not sent to workers",
                "build on the machine with that GPU, or leave that out of the flow of this target",
            )


class _LostError(Exception):
    """The worker of a run is gone."""


class _NobodyError(Exception):
    """No worker of the queue lives that could take a run."""


@dataclass
class Sender:
    """What sends the steps of one session's targets.

    Attributes:
        session: The run whose steps they are.
    """

    session: Session
    _turns: dict[str, threading.Lock] = field(default_factory=dict)
    _told: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def execute(self, node: Node, progress: Progress) -> Outcome:
        """Brings a step up to date by a worker of its target's queue, with all others of the target that can be.

        Raises:
            InterruptedBuildError: The user asked to stop; the run is cancelled.
        """
        target = node.target
        assert target is not None  # noqa: S101 - `graph.is_sent`
        started = time.monotonic()
        try:
            with self._turns.setdefault(target.name, threading.Lock()):
                looked = self.session.workshop.look(node, self.session.upstream(node))
                if node.id in self.session.workshop.again:
                    raise EngineError(
                        f"it runs on the queue {queue_of(target)}, where nothing is measured a second time",
                        "ask for it again on that machine",
                    )
                if looked.state == "cached" and node.id not in self._told:
                    return looked
                if node.id not in self._told:
                    self._told |= self._run(target, node, progress)
            return self._outcome(node, self._told[node.id])
        except (StoreError, EngineError, ConfigError) as error:
            what, next_step = error.what, error.next_step
        except OSError as error:
            what, next_step = str(error), "check the files of the model"
        return Outcome(
            node, "failed", error=f"{node.id}: {what}", next_step=next_step, seconds=time.monotonic() - started
        )

    def _outcome(self, node: Node, told: Mapping[str, Any]) -> Outcome:
        if told["state"] not in ("built", "cached"):
            what = f"{told['error'] or node.id + ': ' + str(told['reason'])} (on {told['host']})"
            return Outcome(node, "failed", told["key"], None, told["seconds"], None, what, told["next_step"])
        sharing, key = self.session.workshop.sharing, str(told["key"])
        looked = self.session.workshop.look(node, self.session.upstream(node))
        if looked.key != key:
            raise EngineError(
                f"the worker answered another question than was asked: its key is {key}, and here it is {looked.key}",
                "report this bug",
            )
        record = looked.record
        if record is None and sharing is not None:
            record = sharing.fetch(key, lambda holder: None)
        if record is None:
            raise StoreError(
                f"the worker says it has built {key}, and the remote does not have it",
                "see what its log says of the remote: trtforge's lines, where the worker runs",
            )
        self.session.store.claim([key])
        return Outcome(node, told["state"], key, record, told["seconds"])

    def _run(self, target: BuildTarget, asked: Node, progress: Progress) -> Mapping[str, Any]:
        """How the steps ended that a worker could run by now."""
        nodes = self._ready(target)
        remote = self._exchange.remote
        made = job.made(self.session, target, nodes)
        self._exchange.send_objects(made.blobs)
        for key in made.before:
            self._send_record(key)
        name = secrets.token_hex(16)
        remote.write(job.name_of_job(name), json.dumps(made.document).encode())
        try:
            for left in reversed(range(TRIES)):
                try:
                    run = self._follow(target, name, progress)
                    break
                except _LostError as error:
                    if not left:
                        raise EngineError(
                            f"{error}, {TRIES} times", f"see what became of the workers of {queue_of(target)}"
                        ) from None
                    self.session.workshop.note(f"{asked.id}: {error}; it is sent again")
            content = remote.read(job.name_of_outcomes(name))
        finally:
            remote.delete(job.name_of_job(name))
            remote.delete(job.name_of_outcomes(name))
        if content is None:
            said = run.state.message if run.state else None
            raise EngineError(
                f"the run {run.name} on the queue {queue_of(target)} ended as {run.state_name}: {said}",
                f"prefect flow-run logs {run.id}",
            )
        told: dict[str, Mapping[str, Any]] = json.loads(content)
        return told

    @property
    def _exchange(self) -> Any:
        assert self.session.workshop.sharing is not None  # noqa: S101 - `routing` refuses a run without
        return self.session.workshop.sharing.exchange

    def _send_record(self, key: str) -> None:
        record = self.session.store.record(key)
        if record is not None:  # one that this run has just built is there already, of older ones nobody knows
            self._exchange.send(record)

    def _ready(self, target: BuildTarget) -> list[Node]:
        """The steps of a target that are not done, and wait for nothing but each other."""
        outcomes, found = self.session.outcomes, dict[str, Node]()
        for node in self.session.nodes:  # in order
            wanted = node.target == target and is_sent(node) and not outcomes[node.id].done
            if wanted and all(name in found or outcomes[name].done for name in node.before):
                found[node.id] = node
        return list(found.values())

    def _follow(self, target: BuildTarget, name: str, progress: Progress) -> FlowRun:
        """Sends the run, and waits for its end.

        Raises:
            _LostError: Its worker is gone.
            EngineError: The server cannot be reached, or nobody takes the run.
            InterruptedBuildError: The user asked to stop.
        """
        queue = queue_of(target)
        with server() as client:
            try:
                deployment = client.read_deployment_by_name(TARGET)
            except ObjectNotFound as error:
                raise EngineError(
                    f"the server has no deployment {TARGET}, by which steps go to queues",
                    "add it to prefect.yaml as a new one has it (delete the old file), and `trtforge deploy`",
                ) from error
            run = client.create_flow_run_from_deployment(
                deployment.id,
                parameters={"job": name},
                name=f"{labels.name(self.session)} for {target.name}",
                tags=[labels.OURS, target.architecture],
                work_queue_name=queue,
            )
        try:
            return _Watch(run.id, queue, progress, self.session.workshop.stop.is_set).until_it_ends()
        except _NobodyError as error:
            raise EngineError(str(error), "start `trtforge worker` there") from None


@dataclass
class _Watch:
    """What is known of a run that was sent.

    Attributes:
        run: Its id.
        queue: Its work queue.
        progress: Told where it is.
        stopped: Whether the user asked to stop.
    """

    run: UUID
    queue: str
    progress: Progress
    stopped: Callable[[], bool]
    _seen_worker: float = field(default_factory=time.monotonic)
    _looked: float = 0.0
    _answered: float = field(default_factory=time.monotonic)

    def until_it_ends(self) -> FlowRun:
        """Waits; a server that is away for less than `LOST_SECONDS` is waited for."""
        while True:
            try:
                with server() as client:
                    while True:
                        if (found := self._look(client)) is not None:
                            return found
                        self._wait(client)
            except EngineError:
                if time.monotonic() > self._answered + LOST_SECONDS:
                    raise
                self._wait(None)

    def _look(self, client: SyncPrefectClient) -> FlowRun | None:
        """The run, where it has ended."""
        run = client.read_flow_run(self.run)
        self._answered = now = time.monotonic()
        state = run.state
        if state is None or state.is_crashed():
            raise _LostError(f"the run {run.name} crashed: {state and state.message}")
        if state.is_final():
            return run
        self.progress(f"{run.state_name} on {self.queue}", None)
        if now > self._looked + _LOOK_FOR_WORKERS_SECONDS:
            self._looked = now
            if any(serves(name, self.queue) for name in workers_of(client, POOL)):
                self._seen_worker = now
        if now > self._seen_worker + LOST_SECONDS:
            what = f"no worker of the queue {self.queue} lives"
            if run.state_type is StateType.RUNNING:
                client.set_flow_run_state(self.run, Crashed(message=what), force=True)
                raise _LostError(f"{what}, and the run {run.name} was Running")
            self._cancel(client)
            raise _NobodyError(f"{what}: nobody takes the run {run.name}")
        return None

    def _wait(self, client: SyncPrefectClient | None) -> None:
        deadline = time.monotonic() + POLL_SECONDS
        while time.monotonic() < deadline:
            if self.stopped():
                if client is not None:
                    self._cancel(client)
                raise InterruptedBuildError
            time.sleep(0.05)

    def _cancel(self, client: SyncPrefectClient) -> None:
        client.set_flow_run_state(self.run, Cancelling(message="whoever sent it was stopped"))
