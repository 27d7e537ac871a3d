"""What a plan was made from, as the events by which Prefect knows assets.

A server of one's own keeps them as events, and has no page of assets. The store's records say more, and to everybody.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from artifacts import digest
from pipelines.execute import Outcome
from pipelines.session import Session
from pipelines.targets import BuildTarget

EVENT = "prefect.asset.materialization.succeeded"

_REFUSED = re.compile(r"[^A-Za-z0-9._/@-]")
"""Prefect refuses some of them in the key of an asset; a flow's name may hold any."""


def events(session: Session) -> Iterator[dict[str, Any]]:
    """One for each plan that the run has built, as `emit_event` takes it.

    A plan is the asset `trtforge://digits/sm_89/rtx-1.7.1.116/int8`, whatever its bytes; what of the user's own it was
    made from is `trtforge://objects/<sha256>`, whatever its name.
    """
    for target in session.targets:
        plan = session.plan(target)
        if plan is not None and plan.state == "built":
            yield _event(session, target, plan)


def _event(session: Session, target: BuildTarget, plan: Outcome) -> dict[str, Any]:
    assert plan.record is not None  # noqa: S101 - it is built
    blob, model = plan.record.outputs["plan"], session.config.model.name
    sources = {source["prefect.resource.id"]: source for source in _sources(session, plan.node.id)}
    by = {"prefect.resource.id": "trtforge", "prefect.resource.role": "asset-materialized-by"}
    return {
        "event": EVENT,
        "resource": {
            "prefect.resource.id": f"trtforge://{_REFUSED.sub('-', session.place(target))}",
            "prefect.resource.name": f"{model}-{target.name}-{session.config.flow}",
        },
        "related": [*sources.values(), by],
        "payload": {
            "sha256": blob.digest,
            "bytes": blob.bytes,
            "key": plan.key,
            "target": target.name,
            "compute_capability": target.compute_capability,
            "backend": target.backend,
            "backend_version": target.backend_version,
        },
    }


def _sources(session: Session, name: str) -> Iterator[dict[str, str]]:
    """The user's own files behind a node: the model, its calibration data. Many files are one asset."""
    needed = {name}
    for node in reversed(session.nodes):  # each stands after all that it depends on
        outcome = session.outcomes[node.id]
        if node.id not in needed or outcome.record is None:
            continue
        needed |= node.before
        for given in node.files:
            digests = outcome.record.fields["inputs"][given]
            content = digests[0] if len(digests) == 1 else digest.of_json(digests)
            yield {
                "prefect.resource.id": f"trtforge://objects/{content}",
                "prefect.resource.name": node.inputs.get(given, given),
                "prefect.resource.role": "asset",
            }
