"""The command line: `trtforge VERB [OVERRIDE …]`."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
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
            code = _fail(exit_of(error), error.what, error.next_step, as_json, debug)
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
    if not multirun:
        return _build_one(overrides, config_dirs, quiet, as_json)
    from conf.compose import compose, sweep

    combinations = sweep(overrides, config_dirs)
    for combination in combinations:
        compose(combination, config_dirs)  # a wrong one is found before the first is built
    runs = [_build_one_of_many(combination, config_dirs, quiet, as_json) for combination in combinations]
    if as_json:
        print(json.dumps([found for found, _ in runs], indent=1))
    return next((code for _, code in runs if code is not Exit.DONE), Exit.DONE)


@verbs.command()
@verb
@_with_config
@click.option("--models", metavar="NAME,NAME", help="These; else all models of your own config directories.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def rebuild(
    overrides: Sequence[str], config_dirs: Sequence[Path], models: str | None, quiet: bool, as_json: bool
) -> Exit:
    """Bring a catalog up to date, model by model; one that fails does not keep the others from it."""
    from pipelines import rebuild as catalog
    from pipelines.recording import rebuild_with_prefect

    named = None if models is None else [name.strip() for name in models.split(",") if name.strip()]
    chosen = catalog.choose(overrides, named, config_dirs)
    with _reporting(quiet) as reporter:
        _at_hard_exit.extend([_stop_server, reporter.close])
        found = rebuild_with_prefect(overrides, chosen, config_dirs, reporter, _stop)
    code = catalog.code(found)
    if as_json:
        print(json.dumps({"ok": code is Exit.DONE, "models": [each.document() for each in found]}, indent=1))
    elif not quiet:
        catalog.print_catalog(found)
    for each in found:
        if each.session is None:
            _say(f"{each.model}: {each.error}", each.next_step)
        else:
            _complain(each.session)
    return code


@verbs.command()
@verb
@_with_config
@click.option("--weights", required=True, type=click.Path(path_type=Path), metavar="FILE", help="safetensors or ONNX.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def refit(overrides: Sequence[str], config_dirs: Sequence[Path], weights: Path, quiet: bool, as_json: bool) -> Exit:
    """Build with the weights of FILE: of a structure that was built before, only the weights are put in anew."""
    from pipelines import new_weights

    try:
        swapped = new_weights.overrides(weights, overrides, config_dirs)
    except new_weights.MismatchError as error:
        if as_json:
            print(json.dumps(_error_document(error.what, error.next_step) | error.document(), indent=1))
        else:
            new_weights.print_mismatch(error)
        _say(error.what, error.next_step)
        return Exit.WRONG_CALL
    return _build_one(swapped, config_dirs, quiet, as_json)


@verbs.command()
@verb
@_with_config
@click.option("-m", "--multirun", is_flag=True, help="Sweep, a line for each run: 'model=glob(*)' flow=fp16,int8.")
@click.option("--remote", is_flag=True, help="Ask the remote too: what it has of this, and what it lacks.")
@click.option("--versions", "matrix", is_flag=True, help="Of published plans: which release built each, and when.")
def status(
    overrides: Sequence[str], config_dirs: Sequence[Path], multirun: bool, remote: bool, matrix: bool, as_json: bool
) -> Exit:
    """Say what is cached and what is missing, and why; run nothing."""
    if matrix and (multirun or remote):
        raise click.UsageError("--versions is about what is published: leave out -m and --remote")
    if multirun and remote:
        raise click.UsageError("--remote asks about one run: leave out -m, or --remote")
    if matrix:
        from pipelines import versions

        found = versions.status(overrides, config_dirs)
        print(json.dumps(found, indent=1)) if as_json else versions.print_status(found)
        return Exit.DONE
    if multirun:
        return _status_of_many(overrides, config_dirs, as_json)
    from pipelines.document import document, print_table
    from pipelines.foresight import foresee
    from pipelines.session import open_session

    session = open_session(overrides, config_dirs, _silent, _stop)
    foresee(session)
    compared = _compare(session) if remote else None
    if as_json:
        print(json.dumps(document(session) | ({"remote": compared} if compared else {}), indent=1))
        return Exit.DONE
    print_table(session)
    for outcome in session.outcomes.values():
        if outcome.reason:
            print(f"{outcome.node.id}: {outcome.state}: {outcome.reason}")
    if compared:
        from pipelines.transfer import print_comparison

        print_comparison(compared, session)
    return Exit.DONE


def _status_of_many(overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool) -> Exit:
    from collections import Counter

    from conf.compose import sweep
    from pipelines import catalog

    found: Counter[str] = Counter()
    codes = [Exit.DONE]
    with closing(catalog.standings(sweep(overrides, config_dirs), config_dirs, as_json, _stop)) as standings:
        for standing in standings:
            if as_json:  # as they come: the documents of a thousand runs are 20 MB
                print("," if found else "[", standing.document, sep="\n")
            else:
                print(standing.line())
            if standing.error:
                _say(f"{standing.title}: {standing.error}", standing.next_step)
                codes.append(Exit(standing.exit))
            found[catalog.kind(standing)] += 1
    print("]" if as_json else catalog.total(found))
    return next((code for code in codes if code is not Exit.DONE), Exit.DONE)


def _compare(session: Any) -> Any:
    from pipelines.transfer import compare

    return compare(session)


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
@click.option("--records", is_flag=True, help="List every record instead: what each step answered, latest first.")
def list_plans(overrides: Sequence[str], config_dirs: Sequence[Path], records: bool, as_json: bool) -> Exit:
    """List the plans in the store, and what they take of the disk."""
    from pipelines import inspection

    store = _store(overrides, config_dirs)
    if records:
        found = inspection.list_records(store)
        print(json.dumps({"records": found}, indent=1)) if as_json else inspection.print_records(found)
    else:
        found, saved = inspection.list_plans(store), inspection.deltas(store)
        document = {"plans": found, "deltas": saved}
        print(json.dumps(document, indent=1)) if as_json else inspection.print_plans(found, saved)
    return Exit.DONE


@verbs.command()
@verb
@click.argument("what")
@_with_config
@click.option("--ops", is_flag=True, help="List the operators of an ONNX file that the backend's parser refuses.")
def inspect(what: str, overrides: Sequence[str], config_dirs: Sequence[Path], ops: bool, as_json: bool) -> Exit:
    """Show WHAT: a plan or an ONNX file, a key or digest of the store, or the name of a plan as `ls` prints it."""
    from pipelines.inspection import inspect, print_inspection

    if ops:
        return _inspect_operators(what, overrides, config_dirs, as_json)
    found = inspect(what, _store(overrides, config_dirs))
    print(json.dumps(found, indent=1)) if as_json else print_inspection(found)
    return Exit.DONE


@verbs.command()
@verb
@click.argument("what")
@_with_config
@click.option("--time", "timed", is_flag=True, help="Time each layer, on a GPU here that executes the plan.")
def layers(what: str, overrides: Sequence[str], config_dirs: Sequence[Path], timed: bool, as_json: bool) -> Exit:
    """Show what runs in a plan, in which types: WHAT as for `inspect`, or MODEL@TARGET."""
    from pipelines.layers import layers, print_layers

    found = layers(what, _store(overrides, config_dirs), timed, _stop)
    print(json.dumps(found, indent=1)) if as_json else print_layers(found)
    return Exit.DONE


@verbs.command()
@verb
@click.argument("a")
@click.argument("b")
@_with_config
def diff(a: str, b: str, overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool) -> Exit:
    """Show what plan B has otherwise than plan A, or one ONNX file than the other: each as for `layers`."""
    from pipelines.diff import diff, print_diff

    found = diff(a, b, _store(overrides, config_dirs))
    print(json.dumps(found, indent=1)) if as_json else print_diff(found)
    return Exit.DONE


@verbs.command()
@verb
@_with_config
@click.option("--repair", is_flag=True, help="Set what is damaged aside, so that the next build makes it anew.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def verify(overrides: Sequence[str], config_dirs: Sequence[Path], repair: bool, quiet: bool, as_json: bool) -> Exit:
    """Read every file of the store and say what is damaged, and what is lost by it."""
    from pipelines import health

    with _reporting(quiet) as reporter:
        found = health.verify(_store(overrides, config_dirs), repair, reporter)
    print(json.dumps(found, indent=1)) if as_json else health.print_health(found, repair)
    return Exit.DONE if found["ok"] else Exit.STEP_FAILED


@verbs.command()
@verb
@_with_config
@click.option("--older-than", default="30d", show_default=True, help="Keep what is younger, such as 12h or 2w.")
@click.option("--pack-after", default="1d", show_default=True, help="Keep what is older, and not reached, as a delta.")
@click.option("--forget", multiple=True, metavar="PATTERN", help="Drop the refs called so first: 'plans/net/*'.")
@click.option("-n", "--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def gc(
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    older_than: str,
    pack_after: str,
    forget: Sequence[str],
    dry_run: bool,
    quiet: bool,
    as_json: bool,
) -> Exit:
    """Pack what no ref reaches, and delete it when it is old; store.budget=50GiB also limits what is kept."""
    from pipelines import health

    config = _config(overrides, config_dirs).store
    limits = health.limits(older_than, pack_after, config.budget)
    with _reporting(quiet) as reporter:
        found = health.collect(_store_of(config), limits, forget, dry_run, reporter, _stop)
    print(json.dumps(found, indent=1)) if as_json else health.print_collection(found)
    return Exit.DONE


@verbs.command()
@verb
@_with_config
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def push(overrides: Sequence[str], config_dirs: Sequence[Path], quiet: bool, as_json: bool) -> Exit:
    """Send what the remote lacks: every record of the store, with its objects, and the names of the plans."""
    from pipelines import transfer

    config = _config(overrides, config_dirs).store
    with _reporting(quiet) as reporter:
        found = transfer.push(config, _store_of(config), reporter, _stop)
    print(json.dumps(found, indent=1)) if as_json else transfer.print_transfer(found, "push")
    return Exit.DONE if found["ok"] else Exit.STEP_FAILED


@verbs.command()
@verb
@_with_config
@click.option("--all", "everything", is_flag=True, help="Fetch every record and name, whatever the config says.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def pull(overrides: Sequence[str], config_dirs: Sequence[Path], everything: bool, quiet: bool, as_json: bool) -> Exit:
    """Fetch what the flow needs and the remote has, and build nothing."""
    from pipelines import transfer
    from pipelines.session import open_session

    with _reporting(quiet) as reporter:
        if everything:
            config = _config(overrides, config_dirs).store
            found = transfer.pull_all(config, _store_of(config), reporter, _stop)
        else:
            session = open_session(overrides, config_dirs, _silent, _stop, reporter.note)
            found = transfer.pull(session, reporter, _stop)
    print(json.dumps(found, indent=1)) if as_json else transfer.print_transfer(found, "pull")
    return Exit.DONE if found["ok"] else Exit.STEP_FAILED


@verbs.command()
@verb
@_with_config
@click.option("--force", is_flag=True, help="Publish it although a gate says no; needs --reason.")
@click.option("--reason", metavar="TEXT", help="Why; kept in the manifest, the record and the history.")
@click.option("--triton", "repository", type=click.Path(path_type=Path), help="Also write this Triton repository.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def publish(
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    force: bool,
    reason: str | None,
    repository: Path | None,
    quiet: bool,
    as_json: bool,
) -> Exit:
    """Publish what the flow has built, for all targets or none; build nothing."""
    if force != bool((reason or "").strip()):
        raise click.UsageError("--force needs --reason TEXT, and --reason goes with --force")
    from pipelines import releasing

    with _reporting(quiet) as reporter:
        found = releasing.publish(overrides, config_dirs, reason, repository, reporter, _stop)
    return _print_released(found, as_json)


@verbs.command()
@verb
@click.argument("what", nargs=-1)
@click.option("--config-dir", "config_dirs", multiple=True, type=click.Path(path_type=Path), help="As for build.")
@click.option("--to", metavar="KEY", help="Go back to this one instead of the one before; its first 8 digits will do.")
@click.option("--reason", metavar="TEXT", help="Why; kept in the history.")
@click.option("--triton", "repository", type=click.Path(path_type=Path), help="Also write this Triton repository.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def rollback(
    what: Sequence[str],
    config_dirs: Sequence[Path],
    to: str | None,
    reason: str | None,
    repository: Path | None,
    quiet: bool,
    as_json: bool,
) -> Exit:
    """Publish what was published before WHAT: a model, a name of `ls`, or the plans of these overrides."""
    from pipelines import releasing

    with _reporting(quiet) as reporter:
        found = releasing.rollback(what, config_dirs, to, reason, repository, reporter, _stop)
    return _print_released(found, as_json)


@verbs.command()
@verb
@_with_config
@click.option("--against", metavar="WHAT", help="A plan (its name or key, or `published`), an ONNX file, or a .npz.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def validate(
    overrides: Sequence[str], config_dirs: Sequence[Path], against: str | None, quiet: bool, as_json: bool
) -> Exit:
    """Compare what the flow has built with the model as given, or with WHAT; build nothing."""
    from pipelines import validation

    with _reporting(quiet) as reporter:
        _at_hard_exit.append(reporter.close)
        found = validation.validate(overrides, config_dirs, against, reporter, _stop)
    print(json.dumps(found.document(), indent=1)) if as_json else validation.print_validations(found)
    _complain(found.session)
    return found.exit


@verbs.command()
@verb
@_with_config
@click.option("--again", is_flag=True, help="Measure anew what was measured before on such a machine.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def bench(overrides: Sequence[str], config_dirs: Sequence[Path], again: bool, quiet: bool, as_json: bool) -> Exit:
    """Time the plans that the flow has built; build nothing. Without their GPU it times ONNX Runtime, and says so."""
    from pipelines import bench as benchmarks

    with _reporting(quiet) as reporter:
        _at_hard_exit.append(reporter.close)
        found = benchmarks.bench(overrides, config_dirs, again, reporter, _stop)
    print(json.dumps(found.document(), indent=1)) if as_json else benchmarks.print_benchmarks(found)
    _complain(found.session)
    return Exit.DONE if found.ok else Exit.STEP_FAILED


@verbs.command()
@verb
@_with_config
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Where to write; else `reports` in the store."
)
@click.option("--open", "opened", is_flag=True, help="Show them in the browser.")
def report(
    overrides: Sequence[str], config_dirs: Sequence[Path], out: Path | None, opened: bool, as_json: bool
) -> Exit:
    """Write a page for each plan that the flow has built: how exact, how fast, made of what; build nothing."""
    from pipelines.report import verb as reports

    found = reports.write(overrides, config_dirs, out, _stop)
    if opened:
        reports.show(found)
    if as_json:
        print(json.dumps(found.document(), indent=1))
    for each in () if as_json else found.written:
        print(each.path)
    for target, reason in found.missing.items():
        _say(f"no report of {target}, which is not built: {reason}", f"trtforge build {' '.join(overrides)}", "warning")
    return Exit.DONE


@verbs.command()
@verb
@_with_config
@click.option("--emit", is_flag=True, help="Tell Prefect of each change that it was not told of before.")
def watch(overrides: Sequence[str], config_dirs: Sequence[Path], emit: bool, as_json: bool) -> Exit:
    """Compare installed and available versions with those that the published plans were built with; build nothing."""
    from pipelines import versions

    found = versions.watch(overrides, config_dirs, emit)
    print(json.dumps(found.document(), indent=1)) if as_json else versions.print_watched(found)
    return Exit.DONE


@verbs.command()
@verb
@_with_config
@click.option("--file", "path", default="prefect.yaml", show_default=True, type=click.Path(path_type=Path))
@click.option("--cron", help="When rebuild-nightly runs, in a new file: '0 2 * * *'.")
@click.option("--timezone", help="The time zone of --cron, such as Europe/Berlin; UTC by default.")
@click.option("-n", "--dry-run", is_flag=True, help="Print what would change, and change nothing.")
@click.option("--write-only", is_flag=True, help="Write the file, and ask no server.")
def deploy(
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    path: Path,
    cron: str | None,
    timezone: str | None,
    dry_run: bool,
    write_only: bool,
    as_json: bool,
) -> Exit:
    """Write prefect.yaml, and make the Prefect server what it says: pool, queues, deployments, limits."""
    from pipelines import deploying
    from pipelines.changes import apply
    from pipelines.deployments import NIGHTLY, TIMEZONE

    if not write_only:
        deploying.require_server()
    schedule = (cron or NIGHTLY, timezone or TIMEZONE) if cron or timezone else None
    wanted, new = deploying.asked(path, overrides, config_dirs, schedule, write=not dry_run)
    say = _silent_line if as_json else print
    if new:
        say(f"{path}: {'would be written' if dry_run else 'written'}, {len(wanted.deployments)} deployments")
    found = []
    if not write_only:
        with deploying.server() as client:
            found = deploying.changes(client, wanted)
            if dry_run:
                say("\n".join(line for change in found for line in change.lines()))
            else:
                apply(found, say)
        if all(change.state == "left" for change in found):
            say("nothing to change")
    if as_json:
        document = {"file": str(path), "new": new, "applied": not (dry_run or write_only)}
        print(json.dumps({**document, "changes": [change.document() for change in found]}, indent=1, default=str))
    return Exit.DONE


@verbs.command()
@verb
@_with_config
@click.option("--file", "path", default="prefect.yaml", show_default=True, type=click.Path(path_type=Path))
@click.option("--limit", default=1, show_default=True, type=click.IntRange(1), help="How many runs at once.")
def serve(overrides: Sequence[str], config_dirs: Sequence[Path], path: Path, limit: int, as_json: bool) -> Exit:
    """Serve the deployments from this machine, without a work pool, until Ctrl-C."""
    from pipelines import deploying

    deploying.require_server()
    wanted, _ = deploying.asked(path, overrides, config_dirs, write=False)
    if as_json:
        print(json.dumps({"serving": [each.name for each in wanted.deployments], "limit": limit}), flush=True)
    else:
        print(f"serving {', '.join(each.name for each in wanted.deployments)}: Ctrl-C ends it", flush=True)
    deploying.serve_here(wanted, limit)
    return Exit.DONE


@verbs.command()
@verb
@click.option("--pool", default="trtforge", show_default=True, help="The work pool.")
@click.option("--cpu-runs", default=1, show_default=True, type=click.IntRange(0), help="Runs of the queue cpu at once.")
@click.option("--run-once", is_flag=True, help="Take the runs that wait now, and end with them.")
def worker(pool: str, cpu_runs: int, run_once: bool, as_json: bool) -> Exit:
    """Take the runs of the queues of this machine's GPUs, one per GPU, and those of the queue cpu."""
    from pipelines import worker as workers
    from pipelines.deploying import require_pool
    from pipelines.targets import gpus_here

    here = gpus_here()
    made = workers.Workers(workers.places(here, cpu_runs), workers.installed(), pool, run_once)
    if not made.places:
        raise click.UsageError("there is no GPU here, and --cpu-runs is 0: nothing is left to serve")
    require_pool(pool)
    for line in workers.report(made, here):
        print(line, file=sys.stderr)
    if as_json:
        told = {"pool": pool, "versions": made.versions, "queues": [place.document() for place in made.places]}
        print(json.dumps(told, indent=1), flush=True)
    made.run()
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


def _print_released(found: Any, as_json: bool) -> Exit:
    if as_json:
        print(json.dumps(found.document(), indent=1))
    for release in () if as_json else found.releases:
        print(release.line())
    for path in () if as_json else found.triton:
        print(path)
    for name, refusals in (found.refused or {}).items():
        for refusal in refusals:
            _say(f"{name}: the gate says no: {refusal}", "nothing was published: --force --reason TEXT publishes it")
    return Exit.GATE_SAID_NO if found.refused else Exit.DONE


def _inspect_operators(what: str, overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool) -> Exit:
    from pipelines.inspection import operators, print_operators

    found = operators(what, _config(overrides, config_dirs), _stop)
    print(json.dumps(found, indent=1)) if as_json else print_operators(found)
    return Exit.STEP_FAILED if found["refused"] else Exit.DONE


def _build_one(overrides: Sequence[str], config_dirs: Sequence[Path], quiet: bool, as_json: bool) -> Exit:
    found, code = _build(overrides, config_dirs, quiet, as_json)
    if as_json:
        print(json.dumps(found, indent=1))
    return code


def _build_one_of_many(
    overrides: Sequence[str], config_dirs: Sequence[Path], quiet: bool, as_json: bool
) -> tuple[dict[str, Any], Exit]:
    try:
        return _build(overrides, config_dirs, quiet, as_json, title=True)
    except WORDED as error:  # the others of the sweep go on
        what, next_step, code = error.what, error.next_step, exit_of(error)
    except OSError as error:  # such as a name that is too long
        what, next_step, code = str(error), "check the paths of its config", Exit.WRONG_CALL
    _say(what, next_step)
    return _error_document(what, next_step), code


def _build(
    overrides: Sequence[str], config_dirs: Sequence[Path], quiet: bool, as_json: bool, title: bool = False
) -> tuple[dict[str, Any], Exit]:
    from pipelines.updating import run, update

    with _reporting(quiet) as reporter:
        _at_hard_exit.extend([_stop_server, reporter.close])
        session = update(overrides, config_dirs, reporter, _stop, run)
    from pipelines.document import document

    if not as_json and not quiet:
        _show(session, " ".join(overrides) if title else "")
    _complain(session)
    return document(session), session.exit


@contextmanager
def _reporting(quiet: bool) -> Iterator[Any]:
    """What tells the user how it goes, until the block ends."""
    from pipelines import reporting

    reporter = reporting.choose(quiet)
    try:
        yield reporter
    finally:
        reporter.close()


def _stop_server() -> None:
    """Ends the temporary Prefect server, where one was started."""
    server = sys.modules.get("pipelines.prefect_server")  # else nothing had to run
    if server is not None:
        server.stop()


def _show(session: Any, title: str) -> None:
    from pipelines.document import print_table

    if title:
        print(f"\n{title}")
    print_table(session)


def _complain(session: Any) -> None:
    from pipelines.evidence import overlaps

    for what, next_step in overlaps(session):
        _say(what, next_step, "warning")
    for outcome in session.outcomes.values():
        if outcome.error:
            _say(outcome.error, outcome.next_step)
        for refusal in session.refusals(outcome):
            _say(f"{outcome.node.id}: the gate says no: {refusal}", session.way_past(outcome))


def _config(overrides: Sequence[str], config_dirs: Sequence[Path]) -> Any:
    from conf.compose import compose

    return compose(overrides, config_dirs)


def _store(overrides: Sequence[str], config_dirs: Sequence[Path]) -> Any:
    return _store_of(_config(overrides, config_dirs).store)


def _store_of(config: Any) -> Any:
    from artifacts.store import Store

    return Store(Path(config.root))


def _fail(code: Exit, what: str, next_step: str, as_json: bool, debug: bool = False) -> Exit:
    if debug:
        traceback.print_exc()
    if as_json:
        print(json.dumps(_error_document(what, next_step), indent=1))
    _say(what, next_step)
    return code


def _error_document(what: str, next_step: str) -> dict[str, Any]:
    return {"ok": False, "error": what, "next": next_step or None}


def _say(what: str, next_step: str, kind: str = "error") -> None:
    print(f"{kind}: {' '.join(what.split())}", file=sys.stderr)
    if next_step:
        print(f"next: {' '.join(next_step.split())}", file=sys.stderr)


def _silent(phase: str, fraction: float | None) -> None: ...


def _silent_line(line: str) -> None: ...


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
