"""Moves what is published: the verbs `publish` and `rollback`. Nothing is built."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from artifacts import digest, publications
from artifacts.errors import StoreError
from artifacts.publications import Publication
from artifacts.record import Record
from artifacts.store import Hit, Store
from conf.compose import compose
from conf.errors import ConfigError, suggest
from pipelines import lookup, sharing, triton
from pipelines.execute import Outcome
from pipelines.graph import Node
from pipelines.reporting import Reporter
from pipelines.session import Session, open_session, published_files
from pipelines.sharing import Sharing
from stages.stage import StageError


@dataclass(frozen=True)
class Release:
    """A name that was moved, or stays where it was.

    Attributes:
        name: `digits/sm_89/rtx-1.7.1.116/int8`.
        key: The record that it means now.
        record: That record.
        path: The published directory.
        previous: What it meant before; None where it meant nothing.
        publication: What the history notes of it.
    """

    name: str
    key: str
    record: Record
    path: Path
    previous: str | None
    publication: Publication

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "name": self.name,
            "key": self.key,
            "path": str(self.path),
            "outputs": {
                name: {"digest": blob.digest, "bytes": blob.bytes} for name, blob in self.record.outputs.items()
            },
            "previous": self.previous,
            "moved": self.previous != self.key,
            "how": self.publication.how,
            "by": self.publication.by,
            "reason": self.publication.reason or None,
            "gates": list(self.publication.gates),
        }

    def line(self) -> str:
        """For people."""
        before = "stays" if self.previous == self.key else f"was {(self.previous or 'nothing')[:16]}"
        why = (
            f"; forced, {self.publication.reason}: {'; '.join(self.publication.gates)}"
            if self.publication.gates
            else ""
        )
        return f"{self.name}: {self.key[:16]} ({before}{why})"


@dataclass(frozen=True)
class Released:
    """What a verb did.

    Attributes:
        releases: The names.
        refused: What gates have against publishing, by the name; then nothing was moved.
        triton: The files that were written for Triton.
    """

    releases: Sequence[Release] = ()
    refused: Mapping[str, Sequence[str]] | None = None
    triton: Sequence[Path] = ()

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {
            "ok": not self.refused,
            "published": [release.document() for release in self.releases],
            "refused": {name: list(lines) for name, lines in (self.refused or {}).items()},
            "triton": [str(path) for path in self.triton],
        }


def publish(
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    reason: str | None,
    repository: Path | None,
    reporter: Reporter,
    stop: Event,
) -> Released:
    """Publishes what the config's flow has built, for all of its targets or for none.

    Args:
        overrides: Hydra overrides.
        config_dirs: The user's own config directories.
        reason: Why it is published whatever the gates say; None: they decide.
        repository: A model repository of Triton's to write it to.
        reporter: Told how the step `publish` goes, where it has not run yet.
        stop: Set when the user wants to stop.

    Raises:
        ConfigError: The config is wrong, or the flow publishes nothing.
        StageError: Something is not built, or cannot be published.
        StoreError: An object is damaged, or the store cannot be written.
    """
    session = open_session(overrides, config_dirs, lambda phase, fraction: None, stop, reporter.note)
    with session.holding():
        nodes = [node for node in session.nodes if session.is_published(node)]
        if not nodes:
            raise ConfigError(
                f"flow {session.config.flow} publishes nothing: it has no step of stage publish",
                "take another flow, or add the step: docs/flows.md",
            )
        _require_built(session, nodes)
        against = {node.id: session.held_back(node.target) for node in nodes}
        refused = {session.place(node.target): against[node.id] for node in nodes if against[node.id]}
        if refused and reason is None:
            return Released(refused=refused)
        made = [_made(session, node, reason, against[node.id], reporter) for node in nodes]
        records = [_record(outcome) for outcome, _ in made]
        for record in records:
            _require_whole(session.store, record)
        written = _to_triton(session.store, repository, records, reporter)  # what it refuses is not published
        releases = [
            _move(session.store, session.place(outcome.node.target), record, publication)
            for (outcome, publication), record in zip(made, records, strict=True)
        ]
        _tell(session.workshop.sharing, releases)
        return Released(releases, triton=written)


def rollback(
    what: Sequence[str],
    config_dirs: Sequence[Path],
    to: str | None,
    reason: str | None,
    repository: Path | None,
    reporter: Reporter,
    stop: Event,
) -> Released:
    """Lets names mean what they meant before, which no build undoes.

    Args:
        what: Names as `ls` prints them, or their beginnings (a model's), and overrides; only these: the names of that
            config's plans.
        config_dirs: The user's own config directories.
        to: The key to go back to, or its beginning; None: the one before.
        reason: Noted with it.
        repository: A model repository of Triton's to write it to.
        reporter: Told what could not be rolled back.
        stop: Set when the user wants to stop.

    Raises:
        ConfigError: Nothing is published under a name, or `to` is not one of its keys.
        StoreError: What was published before is gone or damaged, or the store cannot be written.
    """
    store, shared, names = _published_names(what, config_dirs, reporter, stop)
    if to is not None and len(names) > 1:
        raise ConfigError(f"--to names one plan, and these are {len(names)}: {', '.join(names)}", "name one of them")
    goals = {name: goal for name in names if (goal := _goal(store, name, to))}
    if not goals:
        raise ConfigError(
            f"nothing to go back to: {', '.join(names)} meant nothing else before",
            "build the plan that you want; `trtforge ls` lists those that there are",
        )
    for name in names:
        if name not in goals:
            reporter.note(f"{name}: meant nothing else before, stays")
    records = {name: _kept(store, name, key) for name, key in goals.items()}
    for record in records.values():
        _require_whole(store, record)
    written = _to_triton(store, repository, list(records.values()), reporter)
    by, at = publications.whoever(), publications.now()
    releases = [
        _move(store, name, record, Publication(record.key, "rollback", at, by, reason or ""))
        for name, record in records.items()
    ]
    _tell(shared, releases)
    return Released(releases, triton=written)


def _require_built(session: Session, nodes: Sequence[Node]) -> None:
    """Holds all steps before those that publish to be done."""
    for node in nodes:
        missing = [name for name in _before(session, node) if not session.outcomes[name].done]
        if not session.outcomes[node.id].done and missing:
            outcome = session.outcomes[missing[0]]
            raise StageError(
                f"{session.place(node.target)} is not built: {missing[0]} is {outcome.state}: {outcome.reason}",
                "trtforge build, with the same overrides",
            )


def _before(session: Session, node: Node) -> list[str]:
    """All steps that `node` depends on, those that come first in front."""
    nodes = {each.id: each for each in session.nodes}
    wanted, front = set[str](), sorted(node.before)
    while front:
        name = front.pop()
        front += sorted(nodes[name].before - wanted)
        wanted.add(name)
    return [name for name in nodes if name in wanted]


def _made(
    session: Session, node: Node, reason: str | None, refusals: Sequence[str], reporter: Reporter
) -> tuple[Outcome, Publication]:
    """What `node` makes, which takes a copy at most, and what is to be noted of it."""
    by = publications.whoever()
    if refusals and node.stage.name == "publish":
        forced = {"forced_reason": reason or "", "forced_gates": list(refusals), "forced_by": by}
        node = replace(node, config=replace(node.config, **forced))
    outcome = session.workshop.execute(node, session.upstream(node), partial(reporter.progressed, node.id))
    if outcome.record is None:
        raise StageError(outcome.error or f"{node.id} failed", outcome.next_step)
    at = publications.now()
    return outcome, Publication(outcome.record.key, "publish", at, by, reason or "", tuple(refusals))


def _record(outcome: Outcome) -> Record:
    assert outcome.record is not None  # noqa: S101 - `_made` has seen to it
    return outcome.record


def _require_whole(store: Store, record: Record) -> None:
    """Reads all that the record answered, whatever is remembered about it.

    Raises:
        StoreError: It is not what the record says.
    """
    for blob in record.outputs.values():
        try:
            found = digest.of_file(store.path(blob))
        except OSError as error:
            raise StoreError(f"object {blob.digest} cannot be read: {error.strerror}", _REPAIR) from error
        if found != blob.digest:
            raise StoreError(f"object {blob.digest} is damaged: its content has the digest {found}", _REPAIR)


_REPAIR = "run `trtforge verify --repair`, then `trtforge build`: nothing was published"


def _move(store: Store, name: str, record: Record, publication: Publication) -> Release:
    previous = store.ref(f"published/{name}")
    directory = publications.move(store, name, published_files(record), publication)
    return Release(name, record.key, record, directory, previous, publication)


def _tell(shared: Sharing | None, releases: Sequence[Release]) -> None:
    """Lets the names mean the same in the remote."""
    if shared is not None:
        shared.move_refs({f"published/{release.name}": release.key for release in releases})


def _to_triton(store: Store, repository: Path | None, records: Sequence[Record], reporter: Reporter) -> Sequence[Path]:
    return () if repository is None else triton.write(store, repository, records, reporter.note)


def _published_names(
    what: Sequence[str], config_dirs: Sequence[Path], reporter: Reporter, stop: Event
) -> tuple[Store, Sharing | None, list[str]]:
    """The store, its remote, and the published names that `what` stands for."""
    names = [each for each in what if "=" not in each and each[:1] not in "+~"]
    overrides = [each for each in what if each not in names]
    if not names:
        session = open_session(overrides, config_dirs, lambda phase, fraction: None, stop, reporter.note)
        own = [session.place(node.target) for node in session.nodes if session.is_published(node)]
        found = [name for name in own if session.store.ref(f"published/{name}")]
        if not found:
            raise ConfigError(f"nothing is published: {', '.join(own)}", "trtforge build, or trtforge publish")
        return session.store, session.workshop.sharing, found
    config = compose(overrides, config_dirs).store
    store = Store(Path(config.root))
    known = [name.removeprefix("published/") for name in store.refs("published")]
    found = []
    for name in names:
        own = [each for each in known if each == name or each.startswith(f"{name}/")]
        if not own:
            models = sorted({each.partition("/")[0] for each in known})
            raise ConfigError(f"{name}: nothing is published under that name", suggest(name, [*models, *known]))
        found += own
    return store, sharing.opened(config, store, reporter.note), list(dict.fromkeys(found))


def _goal(store: Store, name: str, to: str | None) -> str | None:
    """The key that `name` is to go back to; None where it meant nothing else before.

    Raises:
        ConfigError: `to` is not one of its keys.
    """
    known = publications.history(store, name)
    published = store.ref(f"published/{name}")
    if to is None:
        cut_off = known.current not in (None, published) and known.moves[-1].how == "rollback"
        return known.current if cut_off else next(iter(known.before), None)
    keys = dict.fromkeys(move.key for move in reversed(known.moves) if move.key != published)
    fitting = [key for key in keys if len(to) >= lookup.SHORTEST and key.startswith(to)]
    if len(fitting) != 1:
        told = ", ".join(key[:16] for key in keys) or "none"
        raise ConfigError(f"--to {to}: {name} never meant one key that begins so", f"it meant before: {told}")
    return fitting[0]


def _kept(store: Store, name: str, key: str) -> Record:
    found = store.lookup(key)
    if isinstance(found, Hit):
        return found.record
    raise StoreError(
        f"{name}: {key[:16]}, which it meant before, is not whole: {found.reason or 'its record is gone'}",
        "build it again, with the overrides that it was built with; `--to` goes back to an earlier one",
    )
