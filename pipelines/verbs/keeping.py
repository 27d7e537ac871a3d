"""Verbs that look after the store and its remote: `verify`, `gc`, `push`, `pull`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click

from pipelines.command import composed, reporter_of, silent, stop, store_at, store_of, verb, verbs, with_config
from pipelines.errors import Exit


@verbs.command()
@verb
@with_config
@click.option("--repair", is_flag=True, help="Set what is damaged aside, so that the next build makes it anew.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def verify(overrides: Sequence[str], config_dirs: Sequence[Path], repair: bool, quiet: bool, as_json: bool) -> Exit:
    """Read every file of the store and say what is damaged, and what is lost by it."""
    from pipelines import health

    with reporter_of(quiet) as reporter:
        found = health.verify(store_at(overrides, config_dirs), repair, reporter)
    print(json.dumps(found, indent=1)) if as_json else health.print_health(found, repair)
    return Exit.DONE if found["ok"] else Exit.STEP_FAILED


@verbs.command()
@verb
@with_config
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

    config = composed(overrides, config_dirs).store
    limits = health.limits(older_than, pack_after, config.budget)
    with reporter_of(quiet) as reporter:
        found = health.collect(store_of(config), limits, forget, dry_run, reporter, stop)
    print(json.dumps(found, indent=1)) if as_json else health.print_collection(found)
    return Exit.DONE


@verbs.command()
@verb
@with_config
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def push(overrides: Sequence[str], config_dirs: Sequence[Path], quiet: bool, as_json: bool) -> Exit:
    """Send what the remote lacks: every record of the store, with its objects, and the names of the plans."""
    from pipelines import transfer

    config = composed(overrides, config_dirs).store
    with reporter_of(quiet) as reporter:
        found = transfer.push(config, store_of(config), reporter, stop)
    print(json.dumps(found, indent=1)) if as_json else transfer.print_transfer(found, "push")
    return Exit.DONE if found["ok"] else Exit.STEP_FAILED


@verbs.command()
@verb
@with_config
@click.option("--all", "everything", is_flag=True, help="Fetch every record and name, whatever the config says.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing while it runs.")
def pull(overrides: Sequence[str], config_dirs: Sequence[Path], everything: bool, quiet: bool, as_json: bool) -> Exit:
    """Fetch what the flow needs and the remote has, and build nothing."""
    from pipelines import transfer
    from pipelines.session import open_session

    with reporter_of(quiet) as reporter:
        if everything:
            config = composed(overrides, config_dirs).store
            found = transfer.pull_all(config, store_of(config), reporter, stop)
        else:
            session = open_session(overrides, config_dirs, silent, stop, reporter.note)
            found = transfer.pull(session, reporter, stop)
    print(json.dumps(found, indent=1)) if as_json else transfer.print_transfer(found, "pull")
    return Exit.DONE if found["ok"] else Exit.STEP_FAILED
