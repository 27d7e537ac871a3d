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
from contextlib import suppress
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

WORDED = (ConfigError, CannotBuildError, StoreError, StageError, EngineError)
"""The errors that have words for the user."""

_INTERRUPTED = ("interrupted", "run the same command again: it goes on where it stopped")

_stop = threading.Event()
_at_hard_exit: list[Callable[[], None]] = []


def main() -> NoReturn:
    """Runs the command line and ends the process."""
    for stream in ("stdout", "stderr"):
        if getattr(sys, stream) is None:  # closed by the caller: what is said goes nowhere
            setattr(sys, stream, Path(os.devnull).open("w"))  # noqa: SIM115 - open until the end
    as_json = "--json" in sys.argv
    try:
        verbs(standalone_mode=False)
        code = Exit.DONE
    except click.UsageError as error:
        usage = error.ctx.get_usage() if error.ctx else "trtforge --help"
        code = _fail(Exit.WRONG_CALL, error.format_message(), usage, as_json)
    except (click.Abort, KeyboardInterrupt):
        code = _fail(Exit.INTERRUPTED, *_INTERRUPTED, as_json)
    except BrokenPipeError:  # the reader of a pipe has read enough
        os._exit(Exit.DONE)
    except OSError as error:
        code = _fail(Exit.WRONG_CALL, str(error), "check the paths of the call", as_json)
    _end(code)


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
            code = _fail(Exit.INTERRUPTED, *_INTERRUPTED, as_json)
        except WORDED as error:
            code = _fail(_code(error), error.what, error.next_step, as_json, debug)
        sys.stdout.flush()
        _end(code)

    return guarded  # type: ignore[return-value]


def _with_config(function: F) -> F:
    directory = click.Path(path_type=Path)
    function = click.argument("overrides", nargs=-1)(function)
    return click.option(
        "--config-dir", "config_dirs", multiple=True, type=directory, help="A directory of your own config groups."
    )(function)


@verbs.command()
@verb
@_with_config
@click.option("-m", "--multirun", is_flag=True, help="Sweep: overrides with several values, such as flow=fp16,int8.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def build(overrides: Sequence[str], config_dirs: Sequence[Path], multirun: bool, quiet: bool, as_json: bool) -> Exit:
    """Bring the flow's outputs up to date."""
    from conf.compose import compose, sweep

    if not multirun:
        found, code = _build(overrides, config_dirs, quiet, as_json)
        if as_json:
            print(json.dumps(found, indent=1))
        return code
    combinations = sweep(overrides)
    for combination in combinations:
        compose(combination, config_dirs)  # a wrong one is found before the first is built
    runs = [_build_one_of_many(combination, config_dirs, quiet, as_json) for combination in combinations]
    if as_json:
        print(json.dumps([found for found, _ in runs], indent=1))
    return next((code for _, code in runs if code is not Exit.DONE), Exit.DONE)


@verbs.command()
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


@verbs.command()
@verb
@click.argument("what")
@_with_config
def why(what: str, overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool) -> Exit:
    """Say why WHAT must be run, or had to be: a step (`surgery`, `build@l4`), a key, or two keys."""
    from pipelines.why import print_explanation, why

    explained = why(what, overrides, config_dirs, _silent, _stop)
    print(json.dumps(explained.document(), indent=1)) if as_json else print_explanation(explained)
    return Exit.DONE


@verbs.command("ls")
@verb
@_with_config
def list_plans(overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool) -> Exit:
    """List the plans in the store."""
    from pipelines.inspection import list_plans, print_plans

    found = list_plans(_store(overrides, config_dirs))
    print(json.dumps({"plans": found}, indent=1)) if as_json else print_plans(found)
    return Exit.DONE


@verbs.command()
@verb
@click.argument("what")
@_with_config
def inspect(what: str, overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool) -> Exit:
    """Show WHAT: a plan or an ONNX file, a key or digest of the store, or the name of a plan as `ls` prints it."""
    from pipelines.inspection import inspect, print_inspection

    found = inspect(what, _store(overrides, config_dirs))
    print(json.dumps(found, indent=1)) if as_json else print_inspection(found)
    return Exit.DONE


@verbs.command()
@verb
@_with_config
@click.option("--repair", is_flag=True, help="Set what is damaged aside, so that the next build makes it anew.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def verify(overrides: Sequence[str], config_dirs: Sequence[Path], repair: bool, quiet: bool, as_json: bool) -> Exit:
    """Read every file of the store and say what is damaged, and what is lost by it."""
    from pipelines import health, reporting

    reporter = reporting.choose(quiet)
    try:
        found = health.verify(_store(overrides, config_dirs), repair, reporter)
    finally:
        reporter.close()
    print(json.dumps(found, indent=1)) if as_json else health.print_health(found, repair)
    return Exit.DONE if found["ok"] else Exit.STEP_FAILED


@verbs.command()
@verb
@_with_config
@click.option("--older-than", default="30d", show_default=True, help="Keep what is younger, such as 12h or 2w.")
@click.option("--forget", multiple=True, metavar="PATTERN", help="Drop the refs called so first: 'plans/net/*'.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def gc(
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    older_than: str,
    forget: Sequence[str],
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> Exit:
    """Delete what no ref reaches, oldest first; store.budget=50GiB also limits what is kept."""
    from artifacts.store import Store
    from conf.compose import compose
    from pipelines import health, reporting

    config = compose(overrides, config_dirs).store
    limits = health.limits(older_than, config.budget)
    reporter = reporting.choose(quiet)
    try:
        found = health.collect(Store(Path(config.root)), limits, forget, dry_run, reporter, _stop)
    finally:
        reporter.close()
    print(json.dumps(found, indent=1)) if as_json else health.print_collection(found)
    return Exit.DONE


@verbs.command()
@verb
@_with_config
def doctor(overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool) -> Exit:
    """Say what this machine can build and run, and what is missing."""
    from pipelines.doctor import examine, print_examination

    found = examine(_store(overrides, config_dirs), overrides, config_dirs)
    print(json.dumps(found, indent=1)) if as_json else print_examination(found)
    return Exit.DONE


def _build_one_of_many(
    overrides: Sequence[str], config_dirs: Sequence[Path], quiet: bool, as_json: bool
) -> tuple[dict[str, Any], Exit]:
    try:
        return _build(overrides, config_dirs, quiet, as_json, title=True)
    except WORDED as error:  # the others of the sweep go on
        _say(error.what, error.next_step)
        return _error_document(error.what, error.next_step), _code(error)


def _build(
    overrides: Sequence[str], config_dirs: Sequence[Path], quiet: bool, as_json: bool, title: bool = False
) -> tuple[dict[str, Any], Exit]:
    from pipelines import reporting
    from pipelines.session import open_session

    reporter = reporting.choose(quiet)
    _at_hard_exit.append(reporter.close)
    try:
        session = open_session(overrides, config_dirs, _silent, _stop)
        if not session.up_to_date:
            session.claim()
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
        print(json.dumps(_error_document(what, next_step), indent=1))
    _say(what, next_step)
    return code


def _code(error: Exception) -> Exit:
    match error:
        case ConfigError():
            return Exit.WRONG_CALL
        case CannotBuildError():
            return Exit.NOBODY_CAN_BUILD
        case _:
            return Exit.STEP_FAILED


def _error_document(what: str, next_step: str) -> dict[str, Any]:
    return {"ok": False, "error": what, "next": next_step or None}


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
    while _at_hard_exit:
        _at_hard_exit.pop()()
    _say(*_INTERRUPTED)
    _end(Exit.INTERRUPTED)


def _end(code: Exit) -> NoReturn:
    """Ends the process at once: Prefect's own ending takes a second or more, in which Ctrl-C would change the code."""
    while _at_hard_exit:
        _at_hard_exit.pop()()
    with suppress(OSError):  # the reader may be gone
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)
