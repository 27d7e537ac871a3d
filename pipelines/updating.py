"""Brings one run up to date: what `trtforge build` does, and the flows `build`, `refit` and `rebuild`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event

from pipelines.configs import Configs
from pipelines.reporting import Reporter
from pipelines.session import Session, open_session

Run = Callable[[Session, Reporter, Sequence[str], Sequence[Path]], None]
"""Runs the steps of a session, whose overrides and config directories it is told."""


def update(
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    reporter: Reporter,
    stop: Event,
    run: Run,
    configs: Configs | None = None,
) -> Session:
    """Plans a run, fetches what others have built, has `run` do the rest and publishes it.

    Args:
        overrides: Hydra overrides.
        config_dirs: The user's own config directories.
        reporter: What tells the user.
        stop: Set when the user wants to stop.
        run: Called only where something is left to run.
        configs: What composes; many runs have one for all.

    Raises:
        ConfigError: The config, or a file it names, is wrong.
        CannotBuildError: No one can build a target.
        StoreError: The store cannot be written.
    """
    session = open_session(overrides, config_dirs, lambda phase, fraction: None, stop, reporter.note, configs)
    if not session.up_to_date:
        session.claim()
        if session.workshop.sharing is not None:
            from pipelines.transfer import fetch_first

            fetch_first(session, reporter, stop)
    if not session.up_to_date:
        run(session, reporter, overrides, config_dirs)
    session.settle()
    return session


def run(
    session: Session,
    reporter: Reporter,
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    resumes: str | None = None,
) -> None:
    """Runs the steps with the runner that the config names; Prefect's has a new flow run or goes on with `resumes`.

    Raises:
        EngineError: The server that the user named cannot be reached.
        InterruptedBuildError: The user asked to stop.
    """
    if session.config.runner.value == "local":
        from pipelines.schedule import run_local

        run_local(session, reporter)
    else:
        from pipelines.recording import run_with_prefect

        run_with_prefect(session, reporter, overrides, config_dirs, resumes)
