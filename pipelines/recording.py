"""A run of the command line, told to Prefect while it goes on: no step waits for a server.

The steps run as with `runner=local`, from the first moment on. Beside them a thread waits for the server and has a flow
run follow them (`pipelines.following`).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event

from pipelines import following, prefect_server, prefect_settings, schedule, server_api
from pipelines.errors import EngineError, InterruptedBuildError
from pipelines.execute import Outcome
from pipelines.following import Followed, FollowedCatalog
from pipelines.graph import Node
from pipelines.progress import Progress
from pipelines.rebuild import Rebuilt, rebuild
from pipelines.reporting import Reporter
from pipelines.server_api import Api
from pipelines.session import Session

RECORD_SECONDS = 30.0
"""How long a build that is over waits to be recorded; a temporary server takes 6 to 18 s from its start."""

WRITTEN_SECONDS = 10.0
"""How long to wait at the end until a temporary server has written everything; usually it is milliseconds."""

INTERRUPTED_SECONDS = 0.6
"""How long an interrupted one waits: two seconds after Ctrl-C everything has ended."""

SLOW_SECONDS = 1.0
"""A user who waits longer than this for a build that is over is told what for."""

_RUN_LOCAL = "check PREFECT_API_URL and that its server runs; runner=local runs the same steps without Prefect"


def run_with_prefect(
    session: Session,
    reporter: Reporter,
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    resumes: str | None = None,
) -> None:
    """Runs a session that is planned already as one flow run: a new one, or the one with the id `resumes`.

    A build does not fail for want of the temporary server; one whose user has named a server does.

    Raises:
        EngineError: The server that the user named cannot be reached.
        InterruptedBuildError: The user asked to stop.
    """
    followed = _followed(session, reporter, overrides, config_dirs)
    followed.resumes = resumes
    recording = Recording(followed)
    with recording.breaking_off():
        _run(followed, recording)
    recording.finish()


def rebuild_with_prefect(
    overrides: Sequence[str],
    models: Sequence[str],
    config_dirs: Sequence[Path],
    reporter: Reporter,
    stop: Event,
    resumes: str | None = None,
) -> list[Rebuilt]:
    """Brings a catalog up to date as one flow run, a new one or that with the id `resumes`; none with nothing to do.

    Raises:
        EngineError: The server that the user named cannot be reached.
        InterruptedBuildError: The user asked to stop.
    """
    catalog = FollowedCatalog(reporter, overrides, models, config_dirs, resumes)
    recordings: list[Recording] = []
    breaking_off = ExitStack()

    def run(session: Session, reporter: Reporter, overrides: Sequence[str], config_dirs: Sequence[Path]) -> None:
        if session.config.runner.value == "local":
            schedule.run_local(session, reporter)
            return
        if not recordings:
            recordings.append(Recording(catalog))
            breaking_off.enter_context(recordings[0].breaking_off())
        followed = _followed(session, reporter, overrides, config_dirs)
        catalog.begin(followed)
        _run(followed, recordings[0])

    with breaking_off:
        found = rebuild(overrides, models, config_dirs, reporter, stop, run, catalog.rows.append)
    for recording in recordings:
        recording.finish()
    return found


def _followed(session: Session, reporter: Reporter, overrides: Sequence[str], config_dirs: Sequence[Path]) -> Followed:
    cached = [name for name, outcome in session.outcomes.items() if outcome.done]
    return Followed(session, Progress(reporter), overrides, config_dirs, cached)


def _run(followed: Followed, recording: Recording) -> None:
    """Runs the steps, and tells `followed` of each, of the last, and of an interruption."""
    session, reporter = followed.session, followed.reporter

    def submit(node: Node) -> Future[Outcome]:
        recording.require_server()
        future = pool.submit(schedule.work, session, node, reporter)
        if node.id not in followed.cached:
            followed.begin(node, future)
        return future

    try:
        with schedule.threads(session) as pool:
            schedule.run(session, reporter, submit)
    except (KeyboardInterrupt, InterruptedBuildError):
        followed.interrupted = True
        raise
    finally:
        followed.end()


class Recording:
    """A thread that has Prefect follow a run, or a catalog of them.

    Args:
        followed: The run.
    """

    def __init__(self, followed: Followed | FollowedCatalog) -> None:
        self._followed = followed
        self._error: Exception | None = None
        self._over = threading.Event()
        self._opens = False
        self._is_named = prefect_settings.may_name_server()
        try:
            if not self._is_named:
                prefect_server.start()  # at once: it takes seconds
        except OSError as error:
            self._fail(error)
        else:
            threading.Thread(target=self._record, daemon=True, name="recording").start()

    def require_server(self) -> None:
        """Does nothing while all is well.

        Raises:
            EngineError: The server that the user named cannot be reached.
        """
        if self._is_named and self._error is not None and self._followed.flow_run is None:
            raise EngineError(f"Prefect cannot run the flow: {_first_line(self._error)}", _RUN_LOCAL) from self._error

    def finish(self) -> None:
        """The run is over: waits until it is recorded, and says so where it is not.

        Raises:
            EngineError: The server that the user named cannot be reached.
        """
        self._followed.end()
        if not self._over.wait(SLOW_SECONDS):
            self._followed.reporter.note(f"all steps are over; {self._holdup()}")
            self._over.wait(RECORD_SECONDS)
        is_written = self._is_written()
        self.require_server()
        if self._error is not None:
            self._followed.reporter.note(f"the run is not recorded in Prefect: {_first_line(self._error)}")
        elif not is_written:
            what = "the last steps are not recorded in Prefect"
            self._followed.reporter.note(f"{what}: they were not written in {WRITTEN_SECONDS:g} s")
        elif not self._is_recorded():
            after = f"no end after {RECORD_SECONDS:g} s"
            if self._followed.flow_run is not None:
                after += f"; when its server is back: trtforge resume {self._followed.flow_run.id}"
            self._followed.reporter.note(f"the run is not recorded in Prefect: {after}")

    @contextmanager
    def breaking_off(self) -> Iterator[None]:
        """Tells an open flow run where its steps are broken off."""
        try:
            yield
        except BaseException as error:
            self._followed.interrupted = isinstance(error, (KeyboardInterrupt, InterruptedBuildError))
            self._followed.end()
            if self._opens:
                self._over.wait(INTERRUPTED_SECONDS)
            raise

    def _record(self) -> None:
        try:
            api = server_api.named() if self._is_named else None
            if api is None:
                self._is_named, api = False, self._temporary_server()
            self._opens = True
            following.follow(self._followed, api)
        except Exception as error:  # a server has many ways to fail, and the steps need none
            self._fail(error)
        finally:
            self._over.set()

    def _temporary_server(self) -> Api:
        server = prefect_server.start()
        server.wait()
        return server.api

    def _fail(self, error: Exception) -> None:
        self._error = error
        self._over.set()

    def _is_recorded(self) -> bool:
        return self._followed.flow_run is not None and self._followed.flow_run.is_final

    def _is_written(self) -> bool:
        """False where a temporary server, which ends with this process, has not written what it heard."""
        flow_run = self._followed.flow_run
        if self._is_named or flow_run is None or not self._is_recorded():
            return True
        return prefect_server.has_recorded(flow_run.task_runs, WRITTEN_SECONDS)

    def _holdup(self) -> str:
        if self._followed.flow_run is None and not self._is_named:
            return "a temporary Prefect server still starts, to record the run; PREFECT_API_URL names a lasting one"
        return "Prefect is recording the run"


def _first_line(error: Exception) -> str:
    what = error.what if isinstance(error, EngineError) else str(error)
    return (what.splitlines() or [type(error).__name__])[0]
