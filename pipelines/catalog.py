"""How many runs stand in the store: `trtforge status -m 'model=glob(*)'`.

Each combination is planned and looked up like a single `status`. Several processes share them, since a lookup is mostly
Python; each answers its combinations in turn, and what it answers is told in the order of the sweep.
"""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from artifacts.digest import cores
from artifacts.errors import StoreError
from conf.errors import ConfigError
from pipelines.configs import Configs
from pipelines.document import document
from pipelines.errors import EngineError, Exit, RunError, exit_of
from pipelines.foresight import foresee
from pipelines.session import Session, open_session
from stages.stage import StageError

FORKS_PAY = 64
"""Runs, from which on a second process is worth its start."""


@dataclass(frozen=True)
class Standing:
    """How one run of a sweep stands.

    Attributes:
        title: The overrides that tell it from the others.
        steps: How many steps it has.
        cached: How many of them are cached.
        reason: What is to run first, and why; empty where all is cached.
        error: What is wrong with the run; empty where nothing is.
        next_step: What the user can do about that.
        exit: The exit code of the run alone.
        document: What `status --json` prints of it, as JSON; empty where nobody asked.
    """

    title: str
    steps: int = 0
    cached: int = 0
    reason: str = ""
    error: str = ""
    next_step: str = ""
    exit: int = Exit.DONE
    document: str = ""

    def line(self) -> str:
        """The run in one line for people."""
        if self.error:
            return f"{self.title}: error: {self.error}"
        if self.cached == self.steps:
            return f"{self.title}: all {self.steps} steps cached"
        return f"{self.title}: {self.cached} of {self.steps} steps cached; {self.reason}"


def standings(
    combinations: Sequence[Sequence[str]], config_dirs: Sequence[Path], as_json: bool, stop: Event
) -> Generator[Standing, None, None]:
    """How each of `combinations` stands, in their order.

    Args:
        combinations: The overrides of each run.
        config_dirs: The user's own config directories.
        as_json: Whether documents are wanted.
        stop: Set when the user wants to stop.

    Raises:
        EngineError: A process ended before it had answered.
    """
    titles = _titles(combinations)
    processes = cores() if len(combinations) >= FORKS_PAY else 1
    if processes == 1:
        yield from _each(combinations, titles, config_dirs, as_json, stop)
        return
    shares = [range(first, len(combinations), processes) for first in range(processes)]

    def answer(share: range) -> Iterator[Standing]:
        mine = [combinations[index] for index in share]
        return _each(mine, [titles[index] for index in share], config_dirs, as_json, stop)

    with_pipes = [_fork(lambda share=share: answer(share)) for share in shares]  # type: ignore[misc]
    try:
        for index in range(len(combinations)):
            line = with_pipes[index % processes][1].readline()
            if not line.endswith("\n"):
                raise EngineError("a process of the sweep ended before it had answered", "run it again with --debug")
            yield Standing(*json.loads(line))
    finally:
        for pid, pipe in with_pipes:
            pipe.close()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)  # where the sweep was left in the middle
            os.waitpid(pid, 0)


def total(found: Counter[str]) -> str:
    """All runs in one line."""
    told = [f"{count} {what}" for what, count in found.items() if count]
    return f"{sum(found.values())} runs: {', '.join(told)}"


def kind(standing: Standing) -> str:
    """How `total` counts a run."""
    if standing.error:
        return "wrong"
    return "cached" if standing.cached == standing.steps else "with something to do"


def _fork(answer: Callable[[], Iterator[Standing]]) -> tuple[int, Any]:
    reader, writer = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writer)
        return pid, os.fdopen(reader, encoding="utf-8")
    code = 1
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        os.close(reader)
        with os.fdopen(writer, "w", encoding="utf-8") as pipe:
            for standing in answer():
                # Flushed, so that it ends by its next answer where nobody is there any more to read it.
                print(json.dumps([*vars(standing).values()]), file=pipe, flush=True)
        code = 0
    except Exception:
        traceback.print_exc()  # a bug: only here is it known which
    finally:
        os._exit(code)  # nothing of the parent's is ended twice


def _each(
    combinations: Sequence[Sequence[str]],
    titles: Sequence[str],
    config_dirs: Sequence[Path],
    as_json: bool,
    stop: Event,
) -> Iterator[Standing]:
    configs = Configs(config_dirs)
    for overrides, title in zip(combinations, titles, strict=True):
        try:
            session = open_session(overrides, config_dirs, lambda phase, fraction: None, stop, configs=configs)
            foresee(session)
            yield _standing(session, title, as_json)
        except (ConfigError, RunError, StoreError, StageError) as error:  # the others of the sweep go on
            yield _refused(error, title)
        except OSError as error:  # such as a name that is too long
            yield _refused(ConfigError(str(error), "check the paths of its config"), title)


def _standing(session: Session, title: str, as_json: bool) -> Standing:
    outcomes = list(session.outcomes.values())
    missing = [outcome for outcome in outcomes if outcome.state == "missing"]
    refused = [f"gate: {reason}" for outcome in outcomes for reason in session.refusals(outcome)]
    first = [f"{outcome.node.id}: {outcome.reason}" for outcome in missing] + refused
    more = f" (and {len(first) - 1} more)" if len(first) > 1 else ""
    return Standing(
        title,
        len(outcomes),
        sum(outcome.state == "cached" for outcome in outcomes),
        first[0] + more if first else "",
        document=json.dumps(document(session)) if as_json else "",
    )


def _refused(error: ConfigError | RunError | StoreError | StageError, title: str) -> Standing:
    told = {"ok": False, "error": error.what, "next": error.next_step or None}
    return Standing(title, error=error.what, next_step=error.next_step, exit=exit_of(error), document=json.dumps(told))


def _titles(combinations: Sequence[Sequence[str]]) -> list[str]:
    """The overrides of each that differ among them."""
    same = set.intersection(*map(set, combinations)) if len(combinations) > 1 else set()
    return [" ".join(line for line in each if line not in same) or "the run" for each in combinations]
