"""The steps of a target, put down so that a worker with another store can run them: what goes into the remote.

```
<url>/jobs/<id>.json            the steps, the keys of what is before them, the digests of the files they read
<url>/jobs/<id>.outcomes.json   how the steps ended; their records and objects are in the remote like all others
```

A worker runs no gates and publishes nothing: that is for whoever sent the job, where the rest of the graph is known.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artifacts.record import Blob
from artifacts.store import Store
from conf.errors import ConfigError
from conf.schema import Config, Model, StoreConfig
from pipelines import announced, routing, sharing
from pipelines.child import Limits, restored
from pipelines.errors import EngineError
from pipelines.execute import Workshop
from pipelines.graph import Node
from pipelines.session import Session
from pipelines.sharing import Sharing
from pipelines.targets import BuildTarget, gpus_here
from stages import STAGES, backends

_PLACE = "jobs"


def name_of_job(job: str) -> str:
    """The job's file in the remote."""
    return f"{_PLACE}/{job}.json"


def name_of_outcomes(job: str) -> str:
    """The file in the remote that says how its steps ended."""
    return f"{_PLACE}/{job}.outcomes.json"


@dataclass(frozen=True)
class Made:
    """A job, and what the remote must have before it is taken.

    Attributes:
        document: The job as JSON.
        blobs: The files that its steps read, which are in the store.
        before: The keys of the records that its steps build on.
    """

    document: Mapping[str, Any]
    blobs: Sequence[Blob]
    before: Sequence[str]


def made(session: Session, target: BuildTarget, nodes: Sequence[Node]) -> Made:
    """The job of these steps of a target; the files they read are taken into the store.

    Raises:
        StoreError: The store cannot be written.
        OSError: A file cannot be read.
    """
    own = {node.id for node in nodes}
    before = {name for node in nodes for name in node.before} - own
    done = {name: session.outcomes[name] for name in sorted(before)}
    keys = {name: outcome.key or "" for name, outcome in done.items()}
    files = {node.id: _taken_in(session.store, node.files) for node in nodes}
    document = {
        "model": session.config.model.name,
        "flow": session.config.flow,
        "target": {
            **{name: getattr(target, name) for name in ("name", "gpu", "compute_capability", "backend")},
            "memory_bytes": target.memory_bytes,
        },
        "facts": dict(target.facts),
        "stages": {node.stage.name: node.stage.version for node in nodes},
        "tools": announced.tools_here({tool for node in nodes for tool in node.stage.tools}),
        "model_facts": dict(session.workshop.model_facts),
        "provenance": dict(session.workshop.provenance),
        "before": [_node(outcome.node) | {"key": keys[name]} for name, outcome in done.items()],
        "nodes": [
            {
                **_node(node),
                "config": asdict(node.config),
                "upstream": {name: list(where) for name, where in node.upstream.items()},
                "files": {name: [[path, *_digest(blob)] for path, blob in those] for name, those in files[node.id]},
                "limits": asdict(node.limits),
                "inputs": dict(node.inputs),
            }
            for node in nodes
        ],
    }
    blobs = {blob for of_node in files.values() for _, those in of_node for _, blob in those}
    return Made(document, sorted(blobs, key=lambda blob: blob.digest), list(keys.values()))


@contextmanager
def taken(job: str, note: Callable[[str], None]) -> Iterator[Session]:
    """The run of a job on this machine; when the block ends, the remote says how its steps ended.

    Args:
        job: Its id.
        note: Told what the run had to do without.

    Raises:
        ConfigError: This worker has no remote, or no store.
        EngineError: There is no such job, or this machine would make something else than its sender expects.
        RemoteError: The remote cannot be used.
        StoreError: The store cannot be written.
    """
    from conf.compose import compose

    config = compose([], []).store
    store = Store(Path(config.root))
    shared = sharing.opened(config, store, note)
    if shared is None:
        raise ConfigError("this worker shares no remote with the sender", "start it with TRTFORGE_REMOTE=URL")
    content = shared.exchange.remote.read(name_of_job(job))
    if content is None:
        raise EngineError(
            f"there is no job {job} in {shared.url}: its sender has another remote, or waits for it no longer",
            "name the same TRTFORGE_REMOTE here and there",
        )
    document = json.loads(content)
    with store.scratch() as directory:
        session = _opened(document, config, shared, directory, note)
        try:
            yield session
        finally:
            store.memo.save()
            store.release()
        for outcome in session.outcomes.values():
            # What this store had already, the remote may lack: whoever built it was killed before it was sent.
            if outcome.state == "cached" and outcome.record is not None and outcome.node.kept is None:
                shared.exchange.send(outcome.record)
        text = json.dumps(_outcomes(session, document), indent=1)
        shared.exchange.remote.write(name_of_outcomes(job), text.encode())


def _opened(
    document: Mapping[str, Any], config: StoreConfig, shared: Sharing, directory: Path, note: Callable[[str], None]
) -> Session:
    """A session with the job's steps alone, whose inputs are in the store and below `directory`."""
    said = document["target"]
    version = backends.installed_version(said["backend"]) or ""
    target = BuildTarget(**said, backend_version=version, here=gpus_here())
    _require_same(document, target)
    nodes = []
    for each in document["before"]:
        stage = STAGES[each["stage"]]
        shared.exchange.fetch(each["key"], _no_wait)
        nodes.append(Node(each["step"], stage, stage.config(), target if each["target"] else None, kept=each["key"]))
    for each in document["nodes"]:
        stage, place = STAGES[each["stage"]], directory / str(len(nodes))
        files = {name: _put(shared, those, place / name) for name, those in each["files"].items()}
        upstream = {name: (before, output) for name, (before, output) in each["upstream"].items()}
        own = restored(stage.config, each["config"])
        limits = Limits(**each["limits"])
        nodes.append(Node(each["step"], stage, own, target, upstream, files, limits, each["inputs"]))
    store = shared.exchange.store
    provenance = {**document["provenance"], "host": socket.gethostname()}
    workshop = Workshop(store, document["model_facts"], provenance, sharing=shared, note=note)
    composed = Config(model=Model(name=document["model"]), flow=document["flow"], store=config)
    session = Session(composed, [target], nodes, workshop)
    session.claim()
    return session


def _outcomes(session: Session, document: Mapping[str, Any]) -> dict[str, Any]:
    """How the job's steps stand, by id."""
    own = {each["id"] for each in document["nodes"]}
    return {
        name: {
            **{key: getattr(outcome, key) for key in ("state", "key", "reason", "error", "next_step")},
            "seconds": round(outcome.seconds, 3),
            "host": socket.gethostname(),
        }
        for name, outcome in session.outcomes.items()
        if name in own
    }


def _node(node: Node) -> dict[str, Any]:
    return {"id": node.id, "step": node.step, "stage": node.stage.name, "target": node.target and node.target.name}


def _taken_in(store: Store, files: Mapping[str, Sequence[Path]]) -> list[tuple[str, list[tuple[str, Blob]]]]:
    """The files by the names of their inputs, each with the path that it has beside the others of its input."""
    found = []
    for name, paths in files.items():
        parents = {str(path.parent) for path in paths}
        base = Path(os.path.commonpath(parents)) if parents else Path()
        found.append((name, [(str(path.relative_to(base)), _kept(store, path)) for path in paths]))
    return found


def _kept(store: Store, path: Path) -> Blob:
    blob = Blob(store.memo.digest(path), path.stat().st_size)
    if store.problem(blob):
        with store.scratch() as aside:
            shutil.copyfile(path, aside / "file")
            return store.add(aside / "file")
    return blob


def _digest(blob: Blob) -> tuple[str, int]:
    return blob.digest, blob.bytes


def _put(shared: Sharing, files: Sequence[Sequence[Any]], directory: Path) -> list[Path]:
    """Fetches the files of an input, and puts them below `directory` by the paths that they had."""
    blobs = [Blob(digest, size) for _, digest, size in files]
    store = shared.exchange.store
    shared.exchange.fetch_objects([blob for blob in set(blobs) if store.problem(blob)], _no_wait)
    put = []
    for (relative, *_), blob in zip(files, blobs, strict=True):
        path = directory / relative
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(store.path(blob), path)  # no link: onnx refuses external data behind one
        put.append(path)
    return put


def _no_wait(holder: str) -> None:
    """However long gc takes."""


def _require_same(document: Mapping[str, Any], target: BuildTarget) -> None:
    """Refuses a job that this machine would answer otherwise than the sender expects.

    Raises:
        EngineError: It would, and in what.
    """
    differing = [
        f"{fact} is {target.facts[fact]} here, and {wanted} is asked for"
        for fact, wanted in document["facts"].items()
        if target.facts.get(fact) != wanted
    ]
    if tools := routing.others(document["tools"], announced.tools_here(document["tools"])):
        differing.append(tools)
    for name, version in document["stages"].items():
        if name not in STAGES or STAGES[name].version != version:
            differing.append(f"stage {name} is another in this release of trtforge")
    if differing:
        raise EngineError(
            f"this worker does not fit target {target.name}: {'; '.join(differing)}",
            "start `trtforge worker` anew where it has changed since",
        )
