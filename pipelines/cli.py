"""The command line: `trtforge VERB [OVERRIDE …]`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from artifacts.errors import StoreError
from conf.errors import ConfigError
from pipelines.errors import CannotBuildError, EngineError, Exit, InterruptedBuildError
from stages.stage import StageError

INTERRUPT_SECONDS = 1.0
"""After Ctrl-C, what has not ended in good order by then is ended; promised are two seconds, on a loaded machine."""

F = TypeVar("F", bound=Callable[..., Any])

_stop = threading.Event()
_at_hard_exit: list[Callable[[], None]] = []


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="trtforge")
def main() -> None:
    """Turns models into TensorRT plans: declared in configs, built in steps, kept by content.

    OVERRIDES are Hydra's: flow=fp16 targets=[l4,rtx5090] steps.build.config.optimization_level=5
    """
    for number in (signal.SIGINT, signal.SIGTERM):
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
            code = _fail(
                Exit.INTERRUPTED, "interrupted", "run the same command again: it goes on where it stopped", False
            )
        except ConfigError as error:
            code = _fail(Exit.WRONG_CALL, error.what, error.next_step, as_json, debug)
        except CannotBuildError as error:
            code = _fail(Exit.NOBODY_CAN_BUILD, error.what, error.next_step, as_json, debug)
        except (StoreError, StageError, EngineError) as error:
            code = _fail(Exit.STEP_FAILED, error.what, error.next_step, as_json, debug)
        _end(code)

    return guarded  # type: ignore[return-value]


def _with_config(function: F) -> F:
    directory = click.Path(path_type=Path)
    function = click.argument("overrides", nargs=-1)(function)
    return click.option(
        "--config-dir", "config_dirs", multiple=True, type=directory, help="A directory of your own config groups."
    )(function)


@main.command()
@verb
@_with_config
@click.option("-m", "--multirun", is_flag=True, help="Sweep: overrides with several values, such as flow=fp16,int8.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def build(overrides: Sequence[str], config_dirs: Sequence[Path], multirun: bool, quiet: bool, as_json: bool) -> Exit:
    """Bring the flow's outputs up to date."""
    from conf.compose import sweep

    if not multirun:
        found, code = _build(overrides, config_dirs, quiet, as_json)
        if as_json:
            print(json.dumps(found, indent=1))
        return code
    runs = [_build(combination, config_dirs, quiet, as_json, title=True) for combination in sweep(overrides)]
    if as_json:
        print(json.dumps([found for found, _ in runs], indent=1))
    return next((code for _, code in runs if code is not Exit.DONE), Exit.DONE)


@main.command()
@verb
@_with_config
def status(overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool) -> Exit:
    """Say what is cached and what is missing, and why; run nothing."""
    from pipelines.document import document, print_table
    from pipelines.session import open_session

    session = open_session(overrides, config_dirs, _silent, _stop)
    if as_json:
        print(json.dumps(document(session), indent=1))
        return Exit.DONE
    print_table(session)
    for outcome in session.outcomes.values():
        if outcome.reason:
            print(f"{outcome.node.id}: {outcome.state}: {outcome.reason}")
    return Exit.DONE


@main.command("ls")
@verb
@_with_config
def list_plans(overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool) -> Exit:
    """List the plans in the store."""
    from pipelines.inspection import list_plans, print_plans

    found = list_plans(_store(overrides, config_dirs))
    print(json.dumps({"plans": found}, indent=1)) if as_json else print_plans(found)
    return Exit.DONE


@main.command()
@verb
@click.argument("what")
@_with_config
def inspect(what: str, overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool) -> Exit:
    """Show WHAT: a plan or an ONNX file, a key or digest of the store, or the name of a plan as `ls` prints it."""
    from pipelines.inspection import inspect, print_inspection

    found = inspect(what, _store(overrides, config_dirs))
    print(json.dumps(found, indent=1)) if as_json else print_inspection(found)
    return Exit.DONE


@main.command()
@verb
@_with_config
def doctor(overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool) -> Exit:
    """Say what this machine can build and run, and what is missing."""
    from pipelines.doctor import examine, print_examination

    found = examine(_store(overrides, config_dirs), config_dirs)
    print(json.dumps(found, indent=1)) if as_json else print_examination(found)
    return Exit.DONE


def _build(
    overrides: Sequence[str], config_dirs: Sequence[Path], quiet: bool, as_json: bool, title: bool = False
) -> tuple[dict[str, Any], Exit]:
    from pipelines import reporting
    from pipelines.session import open_session

    reporter = reporting.choose(quiet)
    _at_hard_exit.append(reporter.close)
    try:
        session = open_session(overrides, config_dirs, lambda phase, fraction: None, _stop)
        if not session.up_to_date:
            _run(session, reporter, overrides, config_dirs)
        session.settle()
    finally:
        reporter.close()
    from pipelines.document import document

    if not as_json and not quiet:
        _show(session, " ".join(overrides) if title else "")
    _complain(session)
    return document(session), session.exit


def _run(session: Any, reporter: Any, overrides: Sequence[str], config_dirs: Sequence[Path]) -> None:
    if session.config.runner.value == "local":
        from pipelines.schedule import run_local

        run_local(session, reporter)
    else:
        from pipelines.flows import run_with_prefect, stop_server

        _at_hard_exit.append(stop_server)
        run_with_prefect(session, reporter, overrides, config_dirs)


def _show(session: Any, title: str) -> None:
    from pipelines.document import print_table

    if title:
        print(f"\n{title}")
    print_table(session)


def _complain(session: Any) -> None:
    for outcome in session.outcomes.values():
        if outcome.error:
            _say(outcome.error, outcome.next_step)
        for refusal in session.refusals(outcome):
            _say(f"{outcome.node.id}: the gate says no: {refusal}", "the plan is kept, and not published")


def _store(overrides: Sequence[str], config_dirs: Sequence[Path]) -> Any:
    from artifacts.store import Store
    from conf.compose import compose

    return Store(Path(compose(overrides, config_dirs).store.root))


def _fail(code: Exit, what: str, next_step: str, as_json: bool, debug: bool = False) -> Exit:
    if debug:
        traceback.print_exc()
    if as_json:
        print(json.dumps({"ok": False, "error": what, "next": next_step or None}, indent=1))
    _say(what, next_step)
    return code


def _say(what: str, next_step: str) -> None:
    print(f"error: {' '.join(what.split())}", file=sys.stderr)
    if next_step:
        print(f"next: {' '.join(next_step.split())}", file=sys.stderr)


def _silent(phase: str, fraction: float | None) -> None: ...


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """Ends the run: children first, then the flow; whatever hangs after `INTERRUPT_SECONDS` is not waited for."""
    if not _stop.is_set():
        _stop.set()
        threading.Thread(target=_end_hard, daemon=True).start()
    raise KeyboardInterrupt


def _end_hard() -> NoReturn:
    time.sleep(INTERRUPT_SECONDS)
    _say("interrupted", "run the same command again: it goes on where it stopped")
    _end(Exit.INTERRUPTED)


def _end(code: Exit) -> NoReturn:
    """Ends the process at once: Prefect's own ending takes a second or more, in which Ctrl-C would change the code."""
    for action in _at_hard_exit:
        action()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
