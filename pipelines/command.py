"""What every verb of the command line has: options, how it tells, how it is interrupted, how it ends."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from artifacts.errors import StoreError
from conf.errors import ConfigError
from pipelines.errors import CannotBuildError, EngineError, Exit, InterruptedBuildError, exit_of
from stages.stage import StageError

INTERRUPT_SECONDS = 1.0
"""After Ctrl-C, what has not ended in good order by then is ended; promised are two seconds, on a loaded machine."""


F = TypeVar("F", bound=Callable[..., Any])


WORDED = (ConfigError, CannotBuildError, StoreError, StageError, EngineError)
"""The errors that have words for the user."""


INTERRUPTED = ("interrupted", "run the same command again: it goes on where it stopped")


stop = threading.Event()
"""Set by Ctrl-C: whatever runs ends as soon as it can."""


at_hard_exit: list[Callable[[], None]] = []
"""What is called, the last first, when the process ends without waiting for anything."""


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="trtforge")
def verbs() -> None:
    """Turns models into TensorRT plans: declared in configs, built in steps, kept by content.

    OVERRIDES are Hydra's: flow=fp16 targets=[l4,rtx5090] steps.build.config.optimization_level=5
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def verb(function: F) -> F:
    """The options that every verb has, and how its errors end."""

    @click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout and nothing else.")
    @click.option("--debug", is_flag=True, help="Print the traceback of an error.")
    @wraps(function)
    def guarded(*args: Any, debug: bool, as_json: bool, **kwargs: Any) -> NoReturn:
        if debug:
            os.environ["TRTFORGE_DEBUG"] = "1"
        try:
            code = function(*args, as_json=as_json, **kwargs)
        except (KeyboardInterrupt, InterruptedBuildError):
            code = fail(Exit.INTERRUPTED, *INTERRUPTED, as_json)
        except Exception as error:
            if stop.is_set():  # a library that is interrupted in its `finally` raises whatever then goes wrong there
                code = fail(Exit.INTERRUPTED, *INTERRUPTED, as_json, debug)
            elif isinstance(error, WORDED):
                code = fail(exit_of(error), error.what, error.next_step, as_json, debug)
            else:
                raise
        sys.stdout.flush()
        end(code)

    return guarded  # type: ignore[return-value]


def with_config(function: F) -> F:
    """The overrides, and the directories of the user's own config groups."""
    directory = click.Path(path_type=Path)
    function = click.argument("overrides", nargs=-1)(function)
    return click.option(
        "--config-dir", "config_dirs", multiple=True, type=directory, help="A directory of your own config groups."
    )(function)


@contextmanager
def reporter_of(quiet: bool) -> Iterator[Any]:
    """What tells the user how it goes, until the block ends."""
    from pipelines import reporting

    reporter = reporting.choose(quiet)
    try:
        yield reporter
    finally:
        reporter.close()


def stop_server() -> None:
    """Ends the temporary Prefect server, where one was started."""
    server = sys.modules.get("pipelines.prefect_server")  # else nothing had to run
    if server is not None:
        server.stop()


def complain(session: Any) -> None:
    """Tells what a run has failed in, what gates have against it, and what is odd about its data."""
    from pipelines.evidence import overlaps

    for what, next_step in overlaps(session):
        tell(what, next_step, "warning")
    for outcome in session.outcomes.values():
        if outcome.error:
            tell(outcome.error, outcome.next_step)
        for refusal in session.refusals(outcome):
            tell(f"{outcome.node.id}: the gate says no: {refusal}", session.way_past(outcome))


def composed(overrides: Sequence[str], config_dirs: Sequence[Path]) -> Any:
    """The config of a run; Hydra is imported here."""
    from conf.compose import compose

    return compose(overrides, config_dirs)


def store_at(overrides: Sequence[str], config_dirs: Sequence[Path]) -> Any:
    """The store of a run."""
    return store_of(composed(overrides, config_dirs).store)


def store_of(config: Any) -> Any:
    """The store that a config's `store` names."""
    from artifacts.store import Store

    return Store(Path(config.root))


def fail(code: Exit, what: str, next_step: str, as_json: bool, debug: bool = False) -> Exit:
    """Tells an error, and gives back the exit code that it ends with."""
    if debug:
        traceback.print_exc()
    if as_json:
        print(json.dumps(error_document(what, next_step), indent=1))
    tell(what, next_step)
    return code


def error_document(what: str, next_step: str) -> dict[str, Any]:
    """What `--json` prints of an error."""
    return {"ok": False, "error": what, "next": next_step or None}


def tell(what: str, next_step: str, kind: str = "error") -> None:
    """Two lines on stderr: what is wrong, and what the user can do about it."""
    print(f"{kind}: {' '.join(what.split())}", file=sys.stderr)
    if next_step:
        print(f"next: {' '.join(next_step.split())}", file=sys.stderr)


def silent(phase: str, fraction: float | None) -> None:
    """Takes the progress that nobody is shown."""


def silent_line(line: str) -> None:
    """Takes the lines that nobody is shown."""


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the run: children first, then the flow; whatever hangs after `INTERRUPT_SECONDS` is not waited for."""
    if not stop.is_set():
        stop.set()
        threading.Thread(target=_end_hard, daemon=True).start()
    raise KeyboardInterrupt


def _end_hard() -> NoReturn:
    time.sleep(INTERRUPT_SECONDS)
    while at_hard_exit:
        at_hard_exit.pop()()
    tell(*INTERRUPTED)
    end(Exit.INTERRUPTED)


def end(code: Exit) -> NoReturn:
    """Ends the process at once: Prefect's own ending takes a second or more, in which Ctrl-C would change the code."""
    while at_hard_exit:
        at_hard_exit.pop()()
    with suppress(OSError):  # the reader may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
