"""Answers one node's question: from the store where it can, by running the stage where it must."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from datetime import datetime, timezone
from functools import cache, partial
from pathlib import Path
from threading import Event
from typing import Any, Literal

from artifacts.errors import StoreError
from artifacts.record import Blob, Record
from artifacts.store import Hit, Miss, Store
from pipelines import child, gpu_turns
from pipelines.errors import InterruptedBuildError
from pipelines.graph import Node
from pipelines.sharing import Sharing, from_remote
from pipelines.timing import Timings
from stages import installed
from stages.stage import DATA_SUFFIX, JSON, Progress, StageError

NEVER_BUILT = "not built yet"
AGAIN = "asked for again"
WAITING = "waiting for "
"""How the phase of a step begins that waits for another process."""

Waiting = Callable[[str], None]

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
        sharing: What is shared with other machines; None where nothing is.
        reason: Says why a question has no answer yet.
        origins: Says where the values of a node's config came from.
        note: Told what a run had to do without.
        again: Ids of nodes that are run although they have been answered: measurements that are made anew, here.
        slot: Holds a place among the steps that use GPUs of a capability, beyond this machine; told whom it waits for.
    """

    store: Store
    model_facts: Mapping[str, JSON] = field(default_factory=dict)
    provenance: Mapping[str, JSON] = field(default_factory=dict)
    stop: Event = field(default_factory=Event)
    sharing: Sharing | None = None
    reason: Callable[[Node, Mapping[str, Any]], str] = lambda node, question: NEVER_BUILT
    origins: Callable[[Node], Mapping[str, str]] = lambda node: {}
    note: Callable[[str], None] = lambda text: None
    again: Collection[str] = ()
    slot: Callable[[str, Waiting], AbstractContextManager[None]] = lambda capability, waiting: nullcontext()

    def question(self, node: Node, upstream: Mapping[str, Record]) -> dict[str, Any]:
        """The fields of the node's key.

        Args:
            node: The node.
            upstream: The records of the nodes before it, by id.

        Raises:
            StoreError: A file cannot be hashed.
        """
        facts = self._facts(node)
        return {
            "stage": node.stage.name,
            "version": node.stage.version,
            "config": node.stage.keyed(node.config, facts) if node.stage.keyed else _plain(node.config),
            "inputs": {
                **{name: self._hash(paths) for name, paths in node.files.items()},
                **{name: _digests(upstream[before], output) for name, (before, output) in node.upstream.items()},
            },
            "facts": facts,
            "tools": {tool: _version(tool) for tool in node.stage.tools},
        }

    def look(self, node: Node, upstream: Mapping[str, Record]) -> Outcome:
        """How the node stands in the store: `cached` or `missing`; runs and changes nothing."""
        if node.kept is not None:
            return self._look_kept(node, node.kept)
        return self._look(node, self.question(node, upstream))

    def execute(self, node: Node, upstream: Mapping[str, Record], progress: Progress) -> Outcome:
        """Brings the node up to date: `built`, `cached` or `failed`.

        Raises:
            InterruptedBuildError: `stop` was set; nothing is left behind.
        """
        if node.kept is not None:
            return self._look_kept(node, node.kept)
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
                holder = _name(node)
                with self.store.lock(key, holder, self._wait(progress)):
                    # Somebody else may have built it while this one waited.
                    found = self._look(node, question, mend=True)
                    if found.state == "missing":
                        build = partial(self._build, node, question, upstream, progress)
                        found = self._answer(found, build, holder, self._wait(progress))
                        found = replace(found, seconds=time.monotonic() - started)
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
            case Hit() if node.id in self.again:
                return Outcome(node, "missing", key, reason=AGAIN)
            case Hit(record):
                return Outcome(node, "cached", key, record)
            case Miss(reason, damaged):
                for path in damaged if mend else ():
                    self.store.set_aside(path)
                return Outcome(node, "missing", key, reason=reason or self.reason(node, question))

    def _look_kept(self, node: Node, key: str) -> Outcome:
        found = self.store.lookup(key)
        if isinstance(found, Hit):
            return Outcome(node, "cached", key, found.record, reason="kept from an earlier run")
        what = f"{node.id}: what an earlier run left, {key}, is gone" + (f": {found.reason}" if found.reason else "")
        return Outcome(node, "failed", key, error=what, next_step="run it again: it is made anew")

    def _answer(
        self, found: Outcome, build: Callable[[], Record], holder: str, waiting: Callable[[str], None]
    ) -> Outcome:
        if self.sharing is None or found.node.id in self.again:
            return replace(found, state="built", record=build())
        record, built = self.sharing.answer(found.key or "", holder, build, waiting)
        if built:
            return replace(found, state="built", record=record)
        return replace(found, state="cached", record=record, reason=from_remote(self.sharing.url))

    def _build(
        self, node: Node, question: Mapping[str, Any], upstream: Mapping[str, Record], progress: Progress
    ) -> Record:
        inputs = {name: list(paths) for name, paths in node.files.items()}
        for name, (before, output) in node.upstream.items():
            blobs = _blobs(upstream[before], output)
            if problem := next(filter(None, map(self.store.problem, blobs)), None):
                raise StoreError(f"{node.id}: its input {name} is unusable: {problem}", "run the same build again")
            inputs[name] = [self.store.path(blob) for blob in blobs]
        key, waiting = Record(question, {}).key, self._wait(progress)
        with self.store.scratch() as directory:
            timings = Timings(self.store, self.sharing, self.note)
            loan = timings.lend(node, question, key, directory, waiting)
            memory, facts = loan.memory if loan else None, question["facts"]
            with gpu_turns.turn(node, facts, _name(node), waiting) as gpu, self._slot(node, facts, waiting):
                started = time.monotonic()
                work = child.Work(node.id, node.stage, node.config, inputs, facts, directory, node.limits, memory, gpu)
                try:
                    result = child.run(work, progress, self.stop)
                except StageError as error:
                    raise self._traced(error, child.log_of(directory), key) from error
                seconds = time.monotonic() - started
            self._check_unchanged(node, question)
            if self.stop.is_set():
                raise InterruptedBuildError
            with self.store.keeping(waiting):
                timings.keep(loan, result.metrics, waiting)
                record = self._keep(node, question, result, seconds)
        timings.share(loan, result.metrics)
        return record

    def _slot(self, node: Node, facts: Mapping[str, Any], waiting: Waiting) -> AbstractContextManager[None]:
        capability = gpu_turns.capability(node, facts)
        return self.slot(capability, waiting) if capability else nullcontext()

    def _keep(self, node: Node, question: Mapping[str, Any], result: child.Result, seconds: float) -> Record:
        outputs = {name: self.store.add(path) for name, path in node.stage.written(result.out).items()}
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
                **asdict(result.usage),
                "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                **self.provenance,
            },
        )
        self.store.put(record)
        return record

    def _keep_log(self, log: Path) -> Blob | None:
        return self.store.add(log) if log.stat().st_size else None

    def _traced(self, error: StageError, log: Path, key: str) -> StageError:
        """`error` with the user's own file, which the child knows by its digest only, and the log, which is kept."""
        source, places, next_step = self.provenance.get("source"), [], error.next_step
        if source:
            places.append(f"model: {source}")
        if log.is_file() and log.stat().st_size:
            kept = self.store.root / "logs" / f"{key}.log"
            # Why the step failed matters more than why its log cannot be kept.
            with suppress(OSError):
                kept.parent.mkdir(exist_ok=True)
                shutil.copyfile(log, kept)
                places.append(f"log: {kept}")
                next_step = next_step or "see the log"
        return StageError(error.what, f"{next_step} ({'; '.join(places)})".lstrip()) if places else error

    def _check_unchanged(self, node: Node, question: Mapping[str, Any]) -> None:
        # The stage read the user's own files after they were hashed; a change in between would be kept under the
        # key of the old content.
        for name, paths in node.files.items():
            if self._hash(paths) != question["inputs"][name]:
                raise StageError(f"{node.id}: model.{name} was changed while it was being read", "run the build again")

    def _hash(self, paths: Sequence[Path]) -> list[str]:
        try:
            return self.store.memo.digests(paths)
        except OSError as error:
            raise StoreError(
                f"{error.filename or paths[0]}: cannot be read: {error.strerror}", "check the path in the config"
            ) from error

    def _facts(self, node: Node) -> dict[str, Any]:
        known = {**self.model_facts, **(node.target.facts if node.target else {})}
        facts = {fact: known[fact] for fact in (*node.stage.facts, *node.stage.facts_when(node.config))}
        return dict(node.stage.facts_seen(node.config, facts))

    def _wait(self, progress: Progress) -> Any:
        def waiting(holder: str) -> None:
            if self.stop.is_set():
                raise InterruptedBuildError
            progress(f"{WAITING}{holder or 'another process'}", None)

        return waiting


def _name(node: Node) -> str:
    """How those who wait for a step of this process call it."""
    return f"{node.id} in process {os.getpid()} on {platform.node()}"


def _blobs(record: Record, output: str) -> list[Blob]:
    """What a step gets that takes `output`: its file, and its data file where it has one."""
    data = record.outputs.get(output + DATA_SUFFIX)
    return [record.outputs[output], *([data] if data else [])]


def _digests(record: Record, output: str) -> str | list[str]:
    """How the key of such a step names them: a single file by its digest alone."""
    one, *data = [blob.digest for blob in _blobs(record, output)]
    return [one, *data] if data else one


def _plain(config: Any) -> dict[str, Any]:
    """What `asdict` gives, of which no value is changed and so none has to be copied."""
    values = ((each.name, getattr(config, each.name)) for each in fields(config))
    return {name: _plain(value) if is_dataclass(value) else value for name, value in values}


@cache
def _version(distribution: str) -> str:
    found = installed.version(distribution)
    if found is None:
        raise StageError(f"{distribution} is not installed", f"pip install {distribution}")
    return found
