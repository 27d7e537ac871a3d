"""A build of three steps that writes all that a real one writes, in milliseconds: its stages run in this process.

Everything else is the real thing: the session, its graph, the workshop, the store.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import Any

from artifacts import digest, memo
from artifacts.store import Store
from conf.schema import Config, Model, StoreConfig
from pipelines import child, sharing
from pipelines.execute import Workshop
from pipelines.graph import Node
from pipelines.reporting import Reporter
from pipelines.schedule import run_local
from pipelines.session import Session
from stages.stage import Job, Metrics, Progress, Stage

PLACE = "net/small"


@dataclasses.dataclass(frozen=True)
class Word:
    """What a step writes."""

    text: str = ""


def write(job: Job[Word]) -> Metrics:
    """Appends the word to what came in, a hundred times."""
    before = b"".join(path.read_bytes() for paths in job.inputs.values() for path in paths)
    (job.out / "file").write_bytes(before + job.config.text.encode() * 100)
    return {"bytes": len(before)}


def publish(job: Job[Word]) -> Metrics:
    """Copies the plan, and writes a manifest beside it as the real stage does."""
    shutil.copyfile(job.file("plan"), job.out / "model.plan")
    found = digest.of_file(job.out / "model.plan")
    (job.out / "manifest.json").write_text(f'{{"plan": {{"file": "model.plan", "sha256": "{found}"}}}}')
    return {}


FIRST: Stage[Word] = Stage("first", 1, Word, write, (), {"file": "file"})
SECOND: Stage[Word] = Stage("second", 1, Word, write, ("file",), {"file": "file"})
PUBLISH: Stage[Word] = Stage(
    "publish", 1, Word, publish, ("plan",), {"plan": "model.plan", "manifest": "manifest.json"}
)


def in_this_process(work: child.Work, progress: Progress, stop: Event) -> child.Result:
    """What `child.run` does, without the child: the same files in the same directory."""
    out, log = work.directory / "out", child.log_of(work.directory)
    out.mkdir()
    (work.directory / "job.json").write_text("{}")
    log.write_text(f"log of {work.name}\n")
    inputs = {name: list(paths) for name, paths in work.inputs.items()}
    metrics = work.stage.run(Job(work.config, inputs, work.facts, out, progress, work.memory))
    return child.Result(metrics, out, log, child.Usage(0, 0.0))


def session(
    root: Path, text: str = "a word ", note: Callable[[str], None] = lambda text: None, **config: Any
) -> Session:
    """A session that is planned and has not run; `config` is its store's."""
    child.run = in_this_process
    memo.RACY_NS = -(10**18)  # as if all files were old: their digests are remembered, which writes too
    nodes = [
        Node("first", FIRST, Word(text)),
        Node("second", SECOND, Word("more "), upstream={"file": ("first", "file")}),
        Node("publish", PUBLISH, Word(), upstream={"plan": ("second", "file")}),
    ]
    kept = StoreConfig(root=str(root), **config)
    store = Store(root)
    workshop = Workshop(store, provenance={"model": "net"}, sharing=sharing.opened(kept, store, note))
    found = Session(Config(model=Model(name="net"), store=kept, flow="small"), [], nodes, workshop)
    found.look()
    return found


def build(root: Path, reporter: Reporter | None = None, text: str = "a word ", **config: Any) -> Session:
    """Does what `trtforge build runner=local` does; `config` is the store's."""
    reporter = reporter or Reporter()
    found = session(root, text, reporter.note, **config)
    if not found.up_to_date:
        found.claim()
        run_local(found, reporter)
    found.settle()
    return found


def forked(work: Any) -> int:
    """Runs `work` in a fork of this process; the exit code, negative for a signal."""
    child_id = os.fork()
    if child_id == 0:
        code = 99
        try:
            code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child_id, 0)[1])
