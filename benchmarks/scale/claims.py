"""What was promised, held against what was seen."""

from __future__ import annotations

import fcntl
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.scale.witness import Written

PER_TARGET = ("build", "publish")
FINAL = {"COMPLETED", "FAILED", "CRASHED", "CANCELLED"}


@dataclass(frozen=True)
class Claim:
    """A promise, and what became of it.

    Attributes:
        what: The promise.
        figure: What was seen, in words.
        holds: Whether it was kept.
    """

    what: str
    figure: str
    holds: bool


def built_once(seen: Iterable[Written], plans: int) -> list[Claim]:
    """Of each plan there was one record, wherever it was written, and one writing of it in each directory.

    A record is written when its build has ended well: what was killed before counts for nothing. Two builds of one key
    give two records that differ in when they ended, or one that is written twice.
    """
    contents: dict[tuple[str, str], set[str]] = defaultdict(set)
    times: Counter[tuple[str, str, Path]] = Counter()
    for each in seen:
        contents[each.stage, each.key].add(each.content)
        times[each.stage, each.key, each.directory] += 1
    claims = []
    for stage in PER_TARGET:
        keys = [key for of, key in contents if of == stage]
        twice = {key for of, key in contents if of == stage and len(contents[of, key]) > 1}
        twice |= {key for (of, key, _), count in times.items() if of == stage and count > 1}
        figure = f"{len(keys)} of {plans}, {len(twice)} of them more than once"
        claims.append(Claim(f"{stage}: every plan's, exactly once", figure, len(keys) == plans and not twice))
    return claims


def shared_again(seen: Iterable[Written], stage: str) -> tuple[int, int]:
    """How many keys of a stage that the machines share were answered, and how many by two of them.

    That may be: a machine that was killed between its record and its message to the others has the answer alone.
    """
    contents: dict[str, set[str]] = defaultdict(set)
    for each in seen:
        if each.stage == stage:
            contents[each.key].add(each.content)
    return len(contents), sum(len(found) > 1 for found in contents.values())


def ended(runs: Sequence[Mapping[str, Any]], what: str) -> Claim:
    """Every run has ended."""
    states = Counter(str(run["state_type"]) for run in runs)
    hanging = [run["name"] for run in runs if run["state_type"] not in FINAL]
    told = ", ".join(f"{count} {state.title()}" for state, count in sorted(states.items()))
    return Claim(f"no {what} is left hanging", told + (f": {', '.join(hanging[:5])}" if hanging else ""), not hanging)


def nothing_held(stores: Iterable[Path]) -> Claim:
    """No lock of a store is held by anybody."""
    held = []
    for path in (path for store in stores for path in (store / "locks").rglob("*") if path.is_file()):
        with path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                held.append(path.name[:12])
    return Claim("no lock is held", f"{len(held)} held{': ' if held else ''}{', '.join(held[:5])}", not held)


def nobody_waits_for(remote: Path) -> Claim:
    """Each key with a lease that was never given back has its record: nobody will ask for that lease."""
    left, bad = 0, []
    for directory in (remote / "leases").glob("*"):
        newest = max(directory.iterdir(), default=None)
        if newest is not None and not json.loads(newest.read_text())["released"]:
            left += 1
            if not (remote / "records" / f"{directory.name}.json").exists():
                bad.append(directory.name[:12])
    return Claim("no lease makes the next build wait", f"{left} not given back, {len(bad)} without a record", not bad)
