"""The store's health: the verbs `verify` and `gc`."""

from __future__ import annotations

import os
import platform
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from threading import Event
from typing import Any

from artifacts import gc, packing
from artifacts import verify as verification
from artifacts.errors import StoreError
from artifacts.store import Store
from artifacts.verify import Finding, Report
from conf.errors import ConfigError
from pipelines.document import console, in_bytes
from pipelines.errors import InterruptedBuildError
from pipelines.reporting import Reporter
from stages.sizes import size_bytes

GC_WAITS_SECONDS = 60.0
"""A build keeps gc out for as long as it takes to hash and move one output; a minute is 100 GB."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


@dataclass(frozen=True)
class Limits:
    """What gc keeps although nothing reaches it, and what of it stays whole."""

    older_than_s: float
    pack_after_s: float
    budget_bytes: int | None


def verify(store: Store, mend: bool, reporter: Reporter) -> dict[str, Any]:
    """What is damaged in the store; with `mend` it is set aside.

    Raises:
        StoreError: The store cannot be read, or, with `mend`, not written.
    """
    reporter.started("verify")
    started = time.monotonic()
    try:
        report = verification.verify(store, lambda phase, fraction: reporter.progressed("verify", phase, fraction))
    except OSError as error:
        raise StoreError(f"the store cannot be read: {error}", "check the permissions of store.root") from error
    kept = verification.repair(store, report.findings) if mend else []
    return {
        "ok": not report.findings,
        "files": report.files,
        "bytes": report.bytes,
        "seconds": round(time.monotonic() - started, 3),
        "newer": [path.as_posix() for path in report.newer],
        "damaged": [_finding(finding, report) for finding in report.findings],
        "set_aside": [path.relative_to(store.root).as_posix() for path in kept],
    }


def _finding(finding: Finding, report: Report) -> dict[str, Any]:
    def steps(keys: Sequence[str]) -> list[dict[str, Any]]:
        return [{"key": key, "step": report.steps.get(key)} for key in keys]

    return {
        "path": finding.path.as_posix(),
        "what": finding.what,
        "records": steps(finding.records),
        "refs": list(finding.refs),
        "logs": steps(finding.logs),
    }


def print_health(found: dict[str, Any], mended: bool) -> None:
    """Prints what `verify` found, for people."""
    screen = console()
    for each in found["damaged"]:
        screen.print(f"{each['path']}: {each['what']}", markup=False, highlight=False, soft_wrap=True)
        lost = [f"{record['step']} (record {record['key']})" for record in each["records"]] + each["refs"]
        lost += [f"only the log of {record['step']} (record {record['key']})" for record in each["logs"]]
        for name in lost:
            screen.print(f"  lost: {name}", markup=False, highlight=False, soft_wrap=True)
    if found["newer"]:
        screen.print(f"{len(found['newer'])} records of a newer format are left alone: upgrade trtforge to read them")
    seconds = max(found["seconds"], 1e-3)
    speed = f"{in_bytes(found['bytes'])} in {seconds:.1f} s, {in_bytes(int(found['bytes'] / seconds))}/s"
    state = "healthy" if found["ok"] else f"{len(found['damaged'])} damaged"
    screen.print(f"{found['files']} files, {speed}: {state}", markup=False, highlight=False)
    if mended and not found["ok"]:
        screen.print(f"set aside in damaged/: {len(found['set_aside'])}; the next `trtforge build` makes them anew")


def limits(older_than: str, pack_after: str, budget: str | None) -> Limits:
    """What `--older-than`, `--pack-after` and `store.budget` say.

    Raises:
        ConfigError: One of the first two is no age.
    """
    older_than_s, pack_after_s = _seconds("--older-than", older_than), _seconds("--pack-after", pack_after)
    return Limits(older_than_s, pack_after_s, None if budget is None else size_bytes(budget))


def _seconds(option: str, text: str) -> float:
    age = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z])", text.strip())
    if age is None or age[2] not in _SECONDS:
        units = ", ".join(_SECONDS)
        raise ConfigError(f"{option}={text}: a number and one of {units} are allowed", "such as 30d")
    return float(age[1]) * _SECONDS[age[2]]


def collect(
    store: Store, limits: Limits, forget: Sequence[str], dry_run: bool, reporter: Reporter, stop: Event
) -> dict[str, Any]:
    """Packs and deletes what nothing reaches; with `dry_run` it only says what, as if nothing had been packed.

    Raises:
        ConfigError: `forget` names no ref, or a published one.
        StoreError: The store cannot be written, is damaged where it says what to keep, or is in use for too long.
    """
    forgotten = _forgotten(store, forget)
    if dry_run:
        packed = packing.packable(store, limits.pack_after_s, limits.older_than_s, forgotten)
        found = gc.look(store, limits.older_than_s, limits.budget_bytes, forgotten, limits.pack_after_s)
    else:
        for name in forgotten:
            store.delete_ref(name)
        holder = f"gc in process {os.getpid()} on {platform.node()}"
        waiting = _patience(stop, reporter)
        packed = _pack(store, limits, holder, waiting, reporter, stop)
        found = gc.collect(
            store, limits.older_than_s, limits.budget_bytes, holder, waiting, copies_after_s=limits.pack_after_s
        )
    saved = sum(each.blob.bytes - each.disk_bytes for each in packed if each.disk_bytes is not None)
    over = max(0, found.bytes_after - limits.budget_bytes) if limits.budget_bytes is not None else 0
    return {
        "ok": True,
        "dry_run": dry_run,
        "forgotten": forgotten,
        "packed": [_packed(each) for each in packed],
        "deleted": [_waste(waste) for waste in found.waste],
        "bytes_before": found.bytes_before + saved,
        "bytes_after": found.bytes_after,
        "bytes_over_budget": over,
        "records_kept": found.kept,
    }


def _pack(
    store: Store, limits: Limits, holder: str, waiting: Callable[[str], None], reporter: Reporter, stop: Event
) -> list[packing.Packable]:
    """Packs; where the disk has no room for that, gc is wanted the more."""

    def telling(each: packing.Packable) -> None:
        if stop.is_set():
            raise InterruptedBuildError
        reporter.progressed("gc", f"packing {each.what}", None)

    if not store.root.is_dir():
        return []
    reporter.started("gc")
    try:
        return packing.pack(store, limits.pack_after_s, limits.older_than_s, holder, waiting, telling)
    except StoreError as error:
        reporter.note(f"gc: nothing is packed: {error.what}")
        return []


def _packed(each: packing.Packable) -> dict[str, Any]:
    disk_bytes, reason = each.disk_bytes, each.reason or None
    return {
        "name": each.blob.digest,
        "what": each.what,
        "bytes": each.blob.bytes,
        "disk_bytes": disk_bytes,
        "reason": reason,
    }


def _waste(waste: gc.Waste) -> dict[str, Any]:
    days = round((time.time() - waste.made) / _SECONDS["d"], 2)
    return {"kind": waste.kind, "name": waste.name, "what": waste.what, "bytes": waste.bytes, "days": days}


def _forgotten(store: Store, patterns: Sequence[str]) -> list[str]:
    names = store.refs("")
    found: list[str] = []
    for pattern in patterns:
        hits = [name for name in names if fnmatchcase(name, pattern)]
        if not hits:
            raise ConfigError(f"--forget {pattern}: no ref is called so", "`trtforge ls` lists them: 'plans/NAME/*'")
        if published := [name for name in hits if name.startswith("published/")]:
            raise ConfigError(f"--forget {pattern}: {published[0]} is published", "name what is below plans/")
        found += hits
    return sorted(set(found))


def _patience(stop: Event, reporter: Reporter) -> Callable[[str], None]:
    deadline = time.monotonic() + GC_WAITS_SECONDS
    told: list[str] = []

    def waiting(holder: str) -> None:
        if stop.is_set():
            raise InterruptedBuildError
        if time.monotonic() > deadline:
            raise StoreError(f"gc waited {GC_WAITS_SECONDS:g} s for {holder or 'a build'}", "try again later")
        if not told:
            told.append(holder)
            reporter.note(f"gc: waiting for {holder or 'a build that is just keeping a result'}")

    return waiting


def print_collection(found: dict[str, Any]) -> None:
    """Prints what gc deleted or would delete, for people."""
    screen = console()
    for each in found["packed"]:
        disk = each["reason"] or ("" if each["disk_bytes"] is None else f"-> {in_bytes(each['disk_bytes'])}")
        line = f"{'delta':<9} {in_bytes(each['bytes']):>9} {disk}  {each['name'][:16]}  {each['what']}"
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
    for each in found["deleted"]:
        name = each["name"][:16] if each["kind"] in ("record", "object") else each["name"]
        line = f"{each['kind']:<9} {in_bytes(each['bytes']):>9} {each['days']:>7.1f} d  {name}  {each['what']}"
        screen.print(line, markup=False, highlight=False, soft_wrap=True)
    freed = in_bytes(found["bytes_before"] - found["bytes_after"])
    verb = "would delete" if found["dry_run"] else "deleted"
    if packed := [each for each in found["packed"] if not each["reason"]]:
        verb = f"{'would pack' if found['dry_run'] else 'packed'} {len(packed)} objects and {verb.split()[-1]}"
    rest = f"{in_bytes(found['bytes_after'])} and {found['records_kept']} records stay"
    screen.print(f"{verb} {len(found['deleted'])} things, {freed}; {rest}", markup=False, highlight=False)
    if found["bytes_over_budget"]:
        over = in_bytes(found["bytes_over_budget"])
        screen.print(f"{over} over the budget: refs reach the rest; --forget 'plans/…' drops refs you need no more")
