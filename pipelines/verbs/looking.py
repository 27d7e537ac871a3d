"""Verbs that look and change nothing: `status`, `why`, `ls`, `inspect`, `layers`, `diff`, `doctor`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from pipelines.command import composed, silent, stop, store_at, tell, verb, verbs, with_config
from pipelines.errors import Exit


@verbs.command()
@verb
@with_config
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

    session = open_session(overrides, config_dirs, silent, stop)
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
    with closing(catalog.standings(sweep(overrides, config_dirs), config_dirs, as_json, stop)) as standings:
        for standing in standings:
            if as_json:  # as they come: the documents of a thousand runs are 20 MB
                print("," if found else "[", standing.document, sep="\n")
            else:
                print(standing.line())
            if standing.error:
                tell(f"{standing.title}: {standing.error}", standing.next_step)
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
@with_config
def why(what: str, overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool) -> Exit:
    """Say why WHAT must be run, or had to be: a step (`surgery`, `build@l4`), a key, or two keys."""
    from pipelines.why import print_explanation, why

    explained = why(what, overrides, config_dirs, silent, stop)
    print(json.dumps(explained.document(), indent=1)) if as_json else print_explanation(explained)
    return Exit.DONE


@verbs.command("ls")
@verb
@with_config
@click.option("--records", is_flag=True, help="List every record instead: what each step answered, latest first.")
def list_plans(overrides: Sequence[str], config_dirs: Sequence[Path], records: bool, as_json: bool) -> Exit:
    """List the plans in the store, and what they take of the disk."""
    from pipelines import inspection

    store = store_at(overrides, config_dirs)
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
@with_config
@click.option("--ops", is_flag=True, help="List the operators of an ONNX file that the backend's parser refuses.")
def inspect(what: str, overrides: Sequence[str], config_dirs: Sequence[Path], ops: bool, as_json: bool) -> Exit:
    """Show WHAT: a plan or an ONNX file, a key or digest of the store, or the name of a plan as `ls` prints it."""
    from pipelines.inspection import inspect, print_inspection

    if ops:
        return _inspect_operators(what, overrides, config_dirs, as_json)
    found = inspect(what, store_at(overrides, config_dirs))
    print(json.dumps(found, indent=1)) if as_json else print_inspection(found)
    return Exit.DONE


def _inspect_operators(what: str, overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool) -> Exit:
    from pipelines.inspection import operators, print_operators

    found = operators(what, composed(overrides, config_dirs), stop)
    print(json.dumps(found, indent=1)) if as_json else print_operators(found)
    return Exit.STEP_FAILED if found["refused"] else Exit.DONE


@verbs.command()
@verb
@click.argument("what")
@with_config
@click.option("--time", "timed", is_flag=True, help="Time each layer, on a GPU here that executes the plan.")
def layers(what: str, overrides: Sequence[str], config_dirs: Sequence[Path], timed: bool, as_json: bool) -> Exit:
    """Show what runs in a plan, in which types: WHAT as for `inspect`, or MODEL@TARGET."""
    from pipelines.layers import layers, print_layers

    found = layers(what, store_at(overrides, config_dirs), timed, stop)
    print(json.dumps(found, indent=1)) if as_json else print_layers(found)
    return Exit.DONE


@verbs.command()
@verb
@click.argument("a")
@click.argument("b")
@with_config
def diff(a: str, b: str, overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool) -> Exit:
    """Show what plan B has otherwise than plan A, or one ONNX file than the other: each as for `layers`."""
    from pipelines.diff import diff, print_diff

    found = diff(a, b, store_at(overrides, config_dirs))
    print(json.dumps(found, indent=1)) if as_json else print_diff(found)
    return Exit.DONE


@verbs.command()
@verb
@with_config
def doctor(overrides: Sequence[str], config_dirs: Sequence[Path], as_json: bool) -> Exit:
    """Say what this machine can build and run, and what is missing."""
    from pipelines.doctor import examine, print_examination

    found = examine(store_at(overrides, config_dirs), overrides, config_dirs)
    print(json.dumps(found, indent=1)) if as_json else print_examination(found)
    return Exit.DONE
