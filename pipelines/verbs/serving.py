"""Verbs for a Prefect server: `watch`, `deploy`, `serve`, `worker`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from pipelines.command import silent_line, verb, verbs, with_config
from pipelines.errors import Exit


@verbs.command()
@verb
@with_config
@click.option("--emit", is_flag=True, help="Tell Prefect of each change that it was not told of before.")
def watch(overrides: Sequence[str], config_dirs: Sequence[Path], emit: bool, as_json: bool) -> Exit:
    """Compare installed and available versions with those that the published plans were built with; build nothing."""
    from pipelines import versions

    found = versions.watch(overrides, config_dirs, emit)
    print(json.dumps(found.document(), indent=1)) if as_json else versions.print_watched(found)
    return Exit.DONE


@verbs.command()
@verb
@with_config
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
    say = silent_line if as_json else print
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
@with_config
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
@click.option("--queue", "queues", multiple=True, metavar="QUEUE", help="Serve it without its GPU; may be repeated.")
@click.option("--run-once", is_flag=True, help="Take the runs that wait now, and end with them.")
def worker(pool: str, cpu_runs: int, queues: Sequence[str], run_once: bool, as_json: bool) -> Exit:
    """Take the runs of the queues of this machine's GPUs, one per GPU, and those of the queue cpu."""
    from pipelines import worker as workers
    from pipelines.deploying import require_pool
    from pipelines.targets import gpus_here

    here = gpus_here()
    places, remote = workers.places(here, cpu_runs, queues), workers.own_remote()
    made = workers.Workers(places, workers.installed(), pool, run_once, remote)
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
