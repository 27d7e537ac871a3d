"""Answers one node's question: from the store where it can, by running the stage where it must."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import cache
from importlib import metadata
from pathlib import Path
from threading import Event
from typing import Any, Literal

from artifacts.errors import StoreError
from artifacts.record import Blob, Record
from artifacts.store import Hit, Miss, Store
from pipelines import child
from pipelines.errors import InterruptedBuildError
from pipelines.graph import Node
from stages.stage import JSON, Progress, StageError

NEVER_BUILT = "not built yet"
WAITING = "waiting for "
"""How the phase of a step begins that waits for another process."""

State = Literal["built", "cached", "failed", "skipped", "missing", "waiting"]


@dataclass(frozen=True)
class Outcome:
    """How a node stands.

    Attributes:
        node: The node.
        state: `built`, `cached`, `failed` or `skipped` after a run; `cached`, `missing` or `waiting` before one.
        key: The digest of its question; None while an upstream digest is not known.
        record: The answer.
        seconds: What it took.
        reason: Why it is in this state, in words.
        error: What failed.
        next_step: What the user can do about it.
    """

    node: Node
    state: State
    key: str | None = None
    record: Record | None = None
    seconds: float = 0.0
    reason: str | None = None
    error: str | None = None
    next_step: str = ""

    @property
    def done(self) -> bool:
        """Whether others can build on it."""
        return self.record is not None and self.state in ("built", "cached")


@dataclass(frozen=True)
class Workshop:
    """What every node of a run shares.

    Attributes:
        store: Where answers are kept.
        model_facts: The facts of the model, by the names of `stages.stage.MODEL_FACTS`.
        provenance: What to note in each record beside the question.
        stop: Set when the user wants to stop.
        reason: Says why a question has no answer yet.
        origins: Says where the values of a node's config came from.
    """

    store: Store
    model_facts: Mapping[str, JSON] = field(default_factory=dict)
    provenance: Mapping[str, JSON] = field(default_factory=dict)
    stop: Event = field(default_factory=Event)
    reason: Callable[[Node, Mapping[str, Any]], str] = lambda node, question: NEVER_BUILT
    origins: Callable[[Node], Mapping[str, str]] = lambda node: {}

    def question(self, node: Node, upstream: Mapping[str, Record]) -> dict[str, Any]:
        """The fields of the node's key.

        Args:
            node: The node.
            upstream: The records of the nodes before it, by id.

        Raises:
            StoreError: A file cannot be hashed.
        """
        return {
            "stage": node.stage.name,
            "version": node.stage.version,
            "config": asdict(node.config),
            "inputs": {
                **{name: [self._digest(path) for path in paths] for name, paths in node.files.items()},
                **{name: upstream[before].outputs[output].digest for name, (before, output) in node.upstream.items()},
            },
            "facts": self._facts(node),
            "tools": {tool: _version(tool) for tool in node.stage.tools},
        }

    def look(self, node: Node, upstream: Mapping[str, Record]) -> Outcome:
        """How the node stands in the store: `cached` or `missing`; runs and changes nothing."""
        return self._look(node, self.question(node, upstream))

    def execute(self, node: Node, upstream: Mapping[str, Record], progress: Progress) -> Outcome:
        """Brings the node up to date: `built`, `cached` or `failed`.

        Raises:
            InterruptedBuildError: `stop` was set; nothing is left behind.
        """
        started = time.monotonic()
        key = None
        try:
            question = self.question(node, upstream)
            key = Record(question, {}).key
            if self.store.claiming:  # the steps after this one rely on it, cached or not
                self.store.claim([key], self._wait(progress))
            found = self._look(node, question)
            if found.state == "missing":
                self.store.claim([key], self._wait(progress))
                holder = f"{node.id} in process {os.getpid()} on {platform.node()}"
                with self.store.lock(key, holder, self._wait(progress)):
                    # Somebody else may have built it while this one waited.
                    found = self._look(node, question, mend=True)
                    if found.state == "missing":
                        record = self._build(node, question, upstream, progress)
                        found = replace(found, state="built", record=record, seconds=time.monotonic() - started)
            return found
        except (StageError, StoreError) as error:
            what, next_step = error.what, error.next_step
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)  # it is the scratch directory that is written to here
            failed = self.store.cannot_be_written(error) if full else StoreError(str(error))
            what, next_step = f"{node.id}: {failed.what}", failed.next_step
        seconds = time.monotonic() - started
        return Outcome(node, "failed", key, None, seconds, None, what, next_step)

    def _look(self, node: Node, question: Mapping[str, Any], mend: bool = False) -> Outcome:
        key = Record(question, {}).key
        match self.store.lookup(key):
            case Hit(record):
                return Outcome(node, "cached", key, record)
            case Miss(reason, damaged):
                for path in damaged if mend else ():
                    self.store.set_aside(path)
                return Outcome(node, "missing", key, reason=reason or self.reason(node, question))

    def _build(
        self, node: Node, question: Mapping[str, Any], upstream: Mapping[str, Record], progress: Progress
    ) -> Record:
        inputs = {name: list(paths) for name, paths in node.files.items()}
        for name, (before, output) in node.upstream.items():
            blob = upstream[before].outputs[output]
            if problem := self.store.problem(blob):
                raise StoreError(f"{node.id}: its input {name} is unusable: {problem}", "run the same build again")
            inputs[name] = [self.store.path(blob)]
        with self.store.scratch() as directory:
            started = time.monotonic()
            work = child.Work(node.id, node.stage, node.config, inputs, question["facts"], directory, node.time_limit_s)
            try:
                result = child.run(work, progress, self.stop)
            except StageError as error:
                raise self._with_log(error, child.log_of(directory), Record(question, {}).key) from error
            self._check_unchanged(node, question)
            if self.stop.is_set():
                raise InterruptedBuildError
            with self.store.keeping(self._wait(progress)):
                return self._keep(node, question, result, time.monotonic() - started)

    def _keep(self, node: Node, question: Mapping[str, Any], result: child.Result, seconds: float) -> Record:
        outputs = {name: self.store.add(result.out / file) for name, file in node.stage.outputs.items()}
        record = Record(
            fields=question,
            outputs=outputs,
            metrics=result.metrics,
            log=self._keep_log(result.log),
            provenance={
                "step": node.step,
                "target": node.target.name if node.target else None,
                "inputs": dict(node.inputs),
                "origins": dict(self.origins(node)),
                "seconds": round(seconds, 3),
                "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                **self.provenance,
            },
        )
        self.store.put(record)
        return record

    def _keep_log(self, log: Path) -> Blob | None:
        return self.store.add(log) if log.stat().st_size else None

    def _with_log(self, error: StageError, log: Path, key: str) -> StageError:
        if not log.is_file() or not log.stat().st_size:
            return error
        kept = self.store.root / "logs" / f"{key}.log"
        try:
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(log, kept)
        except OSError:
            return error  # why the step failed matters more than why its log cannot be kept
        return StageError(error.what, f"{error.next_step or 'see the log'} (log: {kept})")

    def _check_unchanged(self, node: Node, question: Mapping[str, Any]) -> None:
        # The stage read the user's own files after they were hashed; a change in between would be kept under the
        # key of the old content.
        for name, paths in node.files.items():
            if [self._digest(path) for path in paths] != question["inputs"][name]:
                raise StageError(f"{node.id}: model.{name} was changed while it was being read", "run the build again")

    def _digest(self, path: Path) -> str:
        try:
            return self.store.memo.digest(path)
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}", "check the path in the config") from error

    def _facts(self, node: Node) -> dict[str, Any]:
        known = {**self.model_facts, **(node.target.facts if node.target else {})}
        return {fact: known[fact] for fact in (*node.stage.facts, *node.stage.facts_when(node.config))}

    def _wait(self, progress: Progress) -> Any:
        def waiting(holder: str) -> None:
            if self.stop.is_set():
                raise InterruptedBuildError
            progress(f"{WAITING}{holder or 'another process'}", None)

        return waiting


@cache
def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise StageError(f"{distribution} is not installed", f"pip install {distribution}") from None
