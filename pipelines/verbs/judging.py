"""Verbs that judge plans and publish them: `validate`, `bench`, `report`, `publish`, `rollback`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from pipelines.command import at_hard_exit, complain, reporter_of, stop, tell, verb, verbs, with_config
from pipelines.errors import Exit


@verbs.command()
@verb
@with_config
@click.option("--against", metavar="WHAT", help="A plan (its name or key, or `published`), an ONNX file, or a .npz.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def validate(
    overrides: Sequence[str], config_dirs: Sequence[Path], against: str | None, quiet: bool, as_json: bool
) -> Exit:
    """Compare what the flow has built with the model as given, or with WHAT; build nothing."""
    from pipelines import validation

    with reporter_of(quiet) as reporter:
        at_hard_exit.append(reporter.close)
        found = validation.validate(overrides, config_dirs, against, reporter, stop)
    print(json.dumps(found.document(), indent=1)) if as_json else validation.print_validations(found)
    complain(found.session)
    return found.exit


@verbs.command()
@verb
@with_config
@click.option("--again", is_flag=True, help="Measure anew what was measured before on such a machine.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def bench(overrides: Sequence[str], config_dirs: Sequence[Path], again: bool, quiet: bool, as_json: bool) -> Exit:
    """Time the plans that the flow has built; build nothing. Without their GPU it times ONNX Runtime, and says so."""
    from pipelines import bench as benchmarks

    with reporter_of(quiet) as reporter:
        at_hard_exit.append(reporter.close)
        found = benchmarks.bench(overrides, config_dirs, again, reporter, stop)
    print(json.dumps(found.document(), indent=1)) if as_json else benchmarks.print_benchmarks(found)
    complain(found.session)
    return Exit.DONE if found.ok else Exit.STEP_FAILED


@verbs.command()
@verb
@with_config
@click.option(
    "--out", type=click.Path(path_type=Path), metavar="DIR", help="Where to write; else `reports` in the store."
)
@click.option("--open", "opened", is_flag=True, help="Show them in the browser.")
def report(
    overrides: Sequence[str], config_dirs: Sequence[Path], out: Path | None, opened: bool, as_json: bool
) -> Exit:
    """Write a page for each plan that the flow has built: how exact, how fast, made of what; build nothing."""
    from pipelines.report import verb as reports

    found = reports.write(overrides, config_dirs, out, stop)
    if opened:
        reports.show(found)
    if as_json:
        print(json.dumps(found.document(), indent=1))
    for each in () if as_json else found.written:
        print(each.path)
    for target, reason in found.missing.items():
        tell(f"no report of {target}, which is not built: {reason}", f"trtforge build {' '.join(overrides)}", "warning")
    return Exit.DONE


@verbs.command()
@verb
@with_config
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

    with reporter_of(quiet) as reporter:
        found = releasing.publish(overrides, config_dirs, reason, repository, reporter, stop)
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

    with reporter_of(quiet) as reporter:
        found = releasing.rollback(what, config_dirs, to, reason, repository, reporter, stop)
    return _print_released(found, as_json)


def _print_released(found: Any, as_json: bool) -> Exit:
    if as_json:
        print(json.dumps(found.document(), indent=1))
    for release in () if as_json else found.releases:
        print(release.line())
    for path in () if as_json else found.triton:
        print(path)
    for name, refusals in (found.refused or {}).items():
        for refusal in refusals:
            tell(f"{name}: the gate says no: {refusal}", "nothing was published: --force --reason TEXT publishes it")
    return Exit.GATE_SAID_NO if found.refused else Exit.DONE
