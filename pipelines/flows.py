"""The Prefect flow: one flow run per build that has work to do, one task run per step.

The store is the one authority on what is cached: Prefect's own cache is off, and a hit shows as a state named `Cached`.
Only this module imports Prefect, and nobody imports this module while nothing has to run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

OFFLINE = {
    # Client and server each have a switch of their own: DO_NOT_TRACK alone does not stop the server.
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The temporary server took 13.8 to 18.2 s on a fresh database; Prefect gives up after 20 s by default.
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # Steps are told on stderr by `pipelines.reporting`; Prefect's own lines go to its API.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_CLI_PROMPT": "false",
}
"""Defaults for Prefect's settings; a variable that the user has set wins."""

for _name, _value in OFFLINE.items():
    os.environ.setdefault(_name, _value)

from prefect import flow, task  # noqa: E402 - the settings above are read on import
from prefect.cache_policies import NO_CACHE  # noqa: E402
from prefect.client.schemas import State  # noqa: E402
from prefect.events.worker import EventsWorker  # noqa: E402
from prefect.futures import PrefectFuture  # noqa: E402
from prefect.logging.handlers import APILogWorker  # noqa: E402
from prefect.settings.context import get_current_settings  # noqa: E402
from prefect.states import Completed, Failed  # noqa: E402
from prefect.task_runners import ThreadPoolTaskRunner  # noqa: E402

from pipelines import schedule  # noqa: E402
from pipelines.errors import EngineError, Exit  # noqa: E402
from pipelines.execute import Outcome  # noqa: E402
from pipelines.graph import Node  # noqa: E402
from pipelines.reporting import Lines, Reporter  # noqa: E402
from pipelines.session import Session, open_session  # noqa: E402

DRAIN_SECONDS = 10.0
"""How long to wait at the end until the server has heard everything; usually it is milliseconds."""

if TYPE_CHECKING:
    from prefect.server.api.server import SubprocessASGIServer

_prepared: ContextVar[tuple[Session, Reporter] | None] = ContextVar("prepared", default=None)


def run_with_prefect(
    session: Session, reporter: Reporter, overrides: Sequence[str], config_dirs: Sequence[Path]
) -> None:
    """Runs a session that is planned already as one flow run.

    Raises:
        EngineError: Prefect's server cannot be reached or started.
        InterruptedBuildError: The user asked to stop.
    """
    token = _prepared.set((session, reporter))
    try:
        if not get_current_settings().api.url:
            reporter.note("starting a temporary Prefect server, some seconds; PREFECT_API_URL names a lasting one")
            _start_server()
        named = build.with_options(flow_run_name=f"{session.config.model.name}-{session.config.flow}")
        named(list(overrides), [str(path) for path in config_dirs], return_state=True)
        # Task runs reach the server as events, from a queue that is emptied in the background.
        EventsWorker.drain_all(timeout=DRAIN_SECONDS)
        APILogWorker.drain_all(timeout=DRAIN_SECONDS)
    except Exception as error:
        schedule.raise_bugs(session)
        what = (str(error).splitlines() or [type(error).__name__])[0]
        raise EngineError(
            f"Prefect cannot run the flow: {what}",
            "check PREFECT_API_URL and that its server runs; runner=local runs the same steps without Prefect",
        ) from error
    finally:
        _prepared.reset(token)
    schedule.raise_bugs(session)


def _start_server() -> None:
    """Starts the temporary server that Prefect would start, and somebody who ends it should this process be killed."""
    from prefect.server.api.server import SubprocessASGIServer

    server = SubprocessASGIServer()
    threading.Thread(target=_guard, args=(server,), daemon=True).start()
    server.start()


def _guard(server: SubprocessASGIServer) -> None:
    while server.server_process is None:  # it is there long before it answers, which `start` waits for
        time.sleep(0.01)
    # The shell reads until the pipe's other end is gone, which the kernel sees to when this process dies.
    watch = ["/bin/sh", "-c", 'read -r line; kill "$0"', str(server.server_process.pid)]
    subprocess.Popen(watch, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)


def stop_server() -> None:
    """Ends the temporary server that Prefect started, if it did; nothing of the run is lost, it is written through."""
    # Looked up, not imported: importing Prefect's server takes a second, of the two in which Ctrl-C must end.
    module = sys.modules.get("prefect.server.api.server")
    if module is not None:
        server = module.SubprocessASGIServer()  # the one there is
        if server.server_process is not None:
            server.server_process.terminate()


@task(name="step", task_run_name="{node}", cache_policy=NO_CACHE, persist_result=False)
def step(node: str) -> Any:
    """One node of the step graph; `node` is its id, such as `build[l4]`."""
    prepared = _prepared.get()
    assert prepared is not None, "a step runs inside a flow run only"  # noqa: S101
    session, reporter = prepared
    chosen = next(candidate for candidate in session.nodes if candidate.id == node)
    return _state(schedule.work(session, chosen, reporter))


@flow(
    name="trtforge-build",
    task_runner=ThreadPoolTaskRunner(max_workers=schedule.AT_ONCE),  # type: ignore[arg-type]
    persist_result=False,
)
def build(overrides: list[str], config_dirs: list[str] | None = None) -> Any:
    """Brings a flow's outputs up to date, as `trtforge build` does.

    Args:
        overrides: Hydra overrides, such as `["flow=int8", "targets=[l4]"]`.
        config_dirs: Directories of own config groups.
    """
    prepared = _prepared.get()
    if prepared is not None:
        return _run(*prepared)
    reporter = Lines()
    session = open_session(overrides, [Path(path) for path in config_dirs or []], _silent, note=reporter.note)
    token = _prepared.set((session, reporter))
    try:
        session.claim()
        verdict = _run(session, reporter)
        session.settle()
        return verdict
    finally:
        _prepared.reset(token)


def _run(session: Session, reporter: Reporter) -> State[Any]:
    futures: dict[str, PrefectFuture[Any]] = {}

    def submit(node: Node) -> PrefectFuture[Any]:
        before = [futures[name] for name in node.before if name in futures]
        futures[node.id] = step.submit(node.id, return_state=False, wait_for=before)
        return futures[node.id]

    schedule.run(session, reporter, submit)
    return _verdict(session)


def _state(outcome: Outcome) -> State[Any]:
    if outcome.record is None:
        return Failed(message=outcome.error)
    outputs = {name: blob.digest for name, blob in outcome.record.outputs.items()}
    reference = {"key": outcome.key, "outputs": outputs}
    name = "Cached" if outcome.state == "cached" else "Completed"
    return Completed(name=name, message=outcome.key, data=reference)


def _verdict(session: Session) -> State[Any]:
    if session.exit is Exit.DONE:
        return Completed(message="all plans are up to date")
    bad = [name for name, o in session.outcomes.items() if o.state in ("failed", "skipped") or session.refusals(o)]
    return Failed(message=f"not up to date: {', '.join(bad)}")


def _silent(phase: str, fraction: float | None) -> None: ...
