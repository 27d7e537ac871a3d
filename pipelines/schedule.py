"""Runs a session's graph: every node as soon as all before it are done, a few at a time."""

from __future__ import annotations

import queue
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

from artifacts.digest import cores
from pipelines.errors import InterruptedBuildError
from pipelines.execute import Outcome
from pipelines.graph import Node, is_sent
from pipelines.reporting import Reporter
from pipelines.session import Session

AT_ONCE = cores()
"""A builder uses one core (measured for TensorRT-RTX: CPU time is wall time), so one node for each."""


class Future(Protocol):
    """What `submit` returns; Prefect's futures and those of the standard library both fit."""

    def add_done_callback(self, fn: Callable[[Any], None], /) -> None:
        """Has `fn` called when the work is over."""


def run_local(session: Session, reporter: Reporter) -> None:
    """Runs the graph in threads of this process, with no engine around it.

    Raises:
        InterruptedBuildError: The user asked to stop.
    """
    with threads(session) as pool:
        run(session, reporter, lambda node: pool.submit(work, session, node, reporter))


def threads(session: Session) -> ThreadPoolExecutor:
    """Threads for `work`: one for each step that may run at a time, here or on a queue."""
    return ThreadPoolExecutor(AT_ONCE + sum(map(is_sent, session.nodes)))


def run(session: Session, reporter: Reporter, submit: Callable[[Node], Future]) -> None:
    """Runs the graph; `submit` has somebody call `work` for a node.

    A failed node keeps only those from running that depend on it.

    Raises:
        InterruptedBuildError: The user asked to stop.
        Exception: Whatever `work` raised: a bug.
    """
    waiting = list(session.nodes)
    running: dict[str, Node] = {}
    ended: queue.SimpleQueue[str] = queue.SimpleQueue()
    over: set[str] = set()
    while waiting or running:
        free = AT_ONCE - sum(not is_sent(node) for node in running.values())
        for node in _next_ones([node for node in waiting if node.before <= over], free):
            waiting.remove(node)
            if obstacle := session.obstacle(node):
                session.outcomes[node.id] = Outcome(node, "skipped", reason=obstacle)
                reporter.finished(session.outcomes[node.id])
                over.add(node.id)
            else:
                running[node.id] = node
                submit(node).add_done_callback(partial(_ended, ended, node.id))
        if running and (name := _next(ended)) is not None:
            del running[name]
            over.add(name)
        if session.workshop.stop.is_set():
            raise InterruptedBuildError
        raise_bugs(session)


def work(session: Session, node: Node, reporter: Reporter) -> Outcome:
    """Brings one node up to date and notes how it went."""
    before = session.outcomes[node.id]
    if before.done:
        reporter.finished(before)
        return before
    reporter.started(node.id)
    try:
        progress = partial(reporter.progressed, node.id)
        if session.sender is not None and is_sent(node):
            outcome = session.sender.execute(node, progress)
        else:
            outcome = session.workshop.execute(node, session.upstream(node), progress)
    except Exception as error:
        session.bugs.append(error)
        raise
    session.outcomes[node.id] = outcome
    reporter.finished(outcome)
    return outcome


def _next_ones(ready: Sequence[Node], free: int) -> list[Node]:
    """Those of `ready` that begin now: what runs on a queue takes no core here."""
    return [node for node in ready if is_sent(node)] + [node for node in ready if not is_sent(node)][:free]


def _ended(ended: queue.SimpleQueue[str], name: str, _future: Any) -> None:
    ended.put(name)


def _next(ended: queue.SimpleQueue[str]) -> str | None:
    try:
        return ended.get(timeout=0.1)
    except queue.Empty:
        return None


def raise_bugs(session: Session) -> None:
    """Raises what `work` should never have raised, wherever an engine around it has swallowed it."""
    for bug in session.bugs:
        if not isinstance(bug, InterruptedBuildError):
            raise bug
