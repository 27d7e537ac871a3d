"""Keys through the real planning path, with nothing run but the stage that reads a model's signature."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from artifacts import digest
from artifacts.record import Blob, Record
from pipelines.graph import Node
from pipelines.session import Session, open_session

DIGITS = Path(__file__).parents[2] / "conf/data/digits"


def plan(store: Path, overrides: Sequence[str], config_dirs: Sequence[Path] = ()) -> Session:
    """A run, planned, in the store `store` unless an override says another."""
    own = any(line.startswith("store.root=") for line in overrides)
    root = [] if own else [f"store.root='{store}'"]
    return open_session([*root, *overrides], config_dirs, lambda phase, fraction: None)


def question(session: Session, node: Node) -> dict[str, object]:
    """The question of `node`, every step before it having answered the same as ever."""
    stages = {other.id: other.stage for other in session.nodes}
    before = {
        name: Record(
            {}, {output: Blob(digest.of_json([stages[name].name, output]), 1) for output in stages[name].outputs}
        )
        for name in node.before
    }
    return session.workshop.question(node, before)


def keys(session: Session) -> dict[str, str]:
    """The key of every node, by its id."""
    return {node.id: digest.of_json(question(session, node)) for node in session.nodes}
