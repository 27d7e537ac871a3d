"""What a run will find cached once it has put new weights into an old structure: told before anything runs.

A step that builds from a structure cannot be looked up before the structure is known, which takes an export and a
surgery. Where all that changed is the file of the model's weights, and what is read of it for planning shows the same
structure, or the data that it is calibrated with, the records of the last run stand in for those to come. Whoever runs
the steps finds out for certain.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from artifacts.index import About, Index
from artifacts.record import Record
from artifacts.store import Hit
from pipelines.execute import Outcome
from pipelines.graph import Node
from pipelines.session import Session

REASON = "if the structure stays as it was, which only the steps before it can tell for certain"

_NUMBERS = ("onnx", "weights", "calibration", "histograms", "given", "ranges")
"""Inputs that bring numbers into a model: weights, or the ranges of what is quantized."""


def foresee(session: Session) -> None:
    """Marks as `cached` the waiting steps of `session` that depend on a structure alone, where that one was built."""
    splits = [node for node in session.nodes if node.stage.name == "split" and not session.outcomes[node.id].done]
    if not splits:
        return
    known = _stand_ins(session)
    for node in session.nodes:
        if session.outcomes[node.id].state != "waiting" or not _needs_structures_only(session, node):
            continue
        if node.before <= known.keys():
            question = session.workshop.question(node, {name: known[name] for name in node.before})
            key = Record(question, {}).key
            found = session.store.lookup(key)
            if isinstance(found, Hit):
                session.outcomes[node.id] = Outcome(node, "cached", key, found.record, reason=REASON)


def _needs_structures_only(session: Session, node: Node) -> bool:
    stages = {other.id: other.stage.name for other in session.nodes}
    return all(
        (stages[before], output) == ("split", "structure") or session.outcomes[before].done
        for before, output in node.upstream.values()
    )


def _stand_ins(session: Session) -> dict[str, Record]:
    """The records of the shared steps: their own where they are done, else those that differ in numbers alone."""
    found: dict[str, Record] = {}
    for node in session.nodes:
        own = session.outcomes[node.id].record
        if own is None and node.target is None and node.before <= found.keys():
            own = _stand_in(session, node, {name: found[name] for name in node.before})
        if own is not None:
            found[node.id] = own
    return found


def _stand_in(session: Session, node: Node, upstream: Mapping[str, Record]) -> Record | None:
    question = session.workshop.question(node, upstream)
    hit = session.store.lookup(Record(question, {}).key)
    if isinstance(hit, Hit):
        return hit.record
    made = {**session.workshop.provenance, "step": node.step, "target": None}
    near = Index(session.store).nearest(question, About.of(Record({}, {}, provenance=made)))
    if near is None or not near.same_step:
        return None
    fields = {each.path[:2] for each in near.differences}
    if not fields <= {("inputs", name) for name in _NUMBERS} or not isinstance(
        session.store.lookup(near.record.key), Hit
    ):
        return None
    own_file = "onnx" in node.files
    return None if own_file and not _same_structure(session, near.record.fields["inputs"]) else near.record


def _same_structure(session: Session, inputs: Mapping[str, Any]) -> bool:
    """Whether the ONNX file of `inputs` has the structure of the model at hand."""
    own = session.store.record(session.signature or "")
    if own is None or "onnx" not in inputs:
        return False
    asked = replace(own, fields={**own.fields, "inputs": {"onnx": inputs["onnx"][:1]}}, outputs={})
    now, then = _structure(session, own.key), _structure(session, asked.key)
    return now is not None and now == then


def _structure(session: Session, key: str) -> str | None:
    found = session.store.lookup(key)
    if not isinstance(found, Hit):
        return None
    return str(json.loads(session.store.path(found.record.outputs["signature"]).read_text())["structure"])
