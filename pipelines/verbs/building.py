"""Verbs that build: `build`, `rebuild`, `refit`, and `resume`, which goes on with one of these."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from pipelines.command import (
    WORDED,
    at_hard_exit,
    complain,
    error_document,
    reporter_of,
    stop,
    stop_server,
    tell,
    verb,
    verbs,
    with_config,
)
from pipelines.errors import Exit, exit_of


@verbs.command()
@verb
@with_config
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
@with_config
@click.option("--models", metavar="NAME,NAME", help="These; else all models of your own config directories.")
@click.option("--architecture", metavar="SM", help="Only for targets of that: sm_89.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def rebuild(
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    models: str | None,
    architecture: str | None,
    quiet: bool,
    as_json: bool,
) -> Exit:
    """Bring a catalog up to date, model by model; one that fails does not keep the others from it."""
    from pipelines import rebuild as catalog

    named = None if models is None else [name.strip() for name in models.split(",") if name.strip()]
    chosen = catalog.choose(overrides, named, config_dirs)
    overrides = catalog.of_architecture(architecture, overrides, config_dirs)
    found, code = _rebuild(overrides, config_dirs, chosen, quiet, as_json)
    if as_json:
        print(json.dumps(found, indent=1))
    return code


@verbs.command()
@verb
@with_config
@click.option("--weights", required=True, type=click.Path(path_type=Path), metavar="FILE", help="safetensors or ONNX.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def refit(overrides: Sequence[str], config_dirs: Sequence[Path], weights: Path, quiet: bool, as_json: bool) -> Exit:
    """Build with the weights of FILE: of a structure that was built before, only the weights are put in anew."""
    from pipelines import new_weights

    try:
        swapped = new_weights.overrides(weights, overrides, config_dirs)
    except new_weights.MismatchError as error:
        if as_json:
            print(json.dumps(error_document(error.what, error.next_step) | error.document(), indent=1))
        else:
            new_weights.print_mismatch(error)
        tell(error.what, error.next_step)
        return Exit.WRONG_CALL
    return _build_one(swapped, config_dirs, quiet, as_json)


@verbs.command()
@verb
@click.argument("run")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def resume(run: str, quiet: bool, as_json: bool) -> Exit:
    """Go on with RUN, a flow run that crashed, failed or was cancelled: its id, the beginning of it, or its name."""
    from pipelines import resuming
    from pipelines.following import REBUILD

    found = resuming.resume(run)
    told: dict[str, Any] = {"resumed": found.document()}
    if not as_json:
        print("\n".join(found.lines()), flush=True)
    if found.next != "here":
        if as_json:
            print(json.dumps({"ok": True, **told}, indent=1))
        return Exit.DONE
    if found.flow == REBUILD:
        from pipelines import rebuild as catalog

        directories, parameters = found.config_dirs, found.parameters
        models = catalog.choose(found.overrides, parameters.get("models"), directories)
        overrides = catalog.of_architecture(parameters.get("architecture"), found.overrides, directories)
        document, code = _rebuild(overrides, directories, models, quiet, as_json, found.id)
    else:
        document, code = _build(found.overrides, found.config_dirs, quiet, as_json, resumes=found.id)
    if code is Exit.DONE:
        resuming.conclude(found)
    if as_json:
        print(json.dumps({**document, **told}, indent=1))
    return code


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
    tell(what, next_step)
    return error_document(what, next_step), code


def _build(
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    quiet: bool,
    as_json: bool,
    title: bool = False,
    resumes: str | None = None,
) -> tuple[dict[str, Any], Exit]:
    from pipelines.updating import run, update

    with reporter_of(quiet) as reporter:
        at_hard_exit.extend([stop_server, reporter.close])
        session = update(overrides, config_dirs, reporter, stop, partial(run, resumes=resumes))
    from pipelines.document import document

    if not as_json and not quiet:
        _show(session, " ".join(overrides) if title else "")
    complain(session)
    return document(session), session.exit


def _rebuild(
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    models: Sequence[str],
    quiet: bool,
    as_json: bool,
    resumes: str | None = None,
) -> tuple[dict[str, Any], Exit]:
    from pipelines import rebuild as catalog
    from pipelines.recording import rebuild_with_prefect

    with reporter_of(quiet) as reporter:
        at_hard_exit.extend([stop_server, reporter.close])
        found = rebuild_with_prefect(overrides, models, config_dirs, reporter, stop, resumes)
    if not as_json and not quiet:
        catalog.print_catalog(found)
    for each in found:
        if each.session is None:
            tell(f"{each.model}: {each.error}", each.next_step)
        else:
            complain(each.session)
    code = catalog.code(found)
    return {"ok": code is Exit.DONE, "models": [each.document() for each in found]}, code


def _show(session: Any, title: str) -> None:
    from pipelines.document import print_table

    if title:
        print(f"\n{title}")
    print_table(session)
