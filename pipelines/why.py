"""Why a step has no answer yet, or why it had to be run: the verb `why`.

It tells what the question differs in from the nearest earlier one, as `artifacts.index` defines it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import Any

from artifacts.difference import Difference, difference
from artifacts.index import About, Index
from artifacts.record import Blob, Record
from artifacts.store import Store
from conf.compose import compose
from conf.errors import ConfigError, suggest
from conf.origin import Origins
from pipelines import lookup
from pipelines.execute import Outcome
from pipelines.graph import Node
from pipelines.keys import why_not_keyed
from pipelines.reasons import Side, asked, because, words
from pipelines.session import Session, open_session
from stages.stage import Progress

_KEY = re.compile("[0-9a-f]{8,64}")
"""A key or its beginning, as people copy it."""


@dataclass(frozen=True)
class Explanation:
    """Why a step stands as it does.

    Attributes:
        step: The step's name.
        target: The target's name; None for a step that all targets share.
        key: The key of the later question; None while an upstream digest is not known.
        state: `cached`, `missing` or `waiting`; None for two records.
        before: The nearest earlier record; None where there is none.
        same_step: Whether `before` is of the same step, target and model.
        after: The later side.
        differences: From `before` to `after`.
        first: The steps that are to run before it, each with its own reason.
        needless: Overrides that are in no key, each with the reason.
        store: Where the files are that both name.
    """

    step: str
    target: str | None
    key: str | None
    state: str | None
    before: Record | None
    same_step: bool
    after: Side
    differences: Sequence[Difference]
    store: Store
    first: Mapping[str, str] = field(default_factory=dict)
    needless: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """`surgery`, or `build[l4]`."""
        return self.step if self.target is None else f"{self.step}[{self.target}]"

    def document(self) -> dict[str, Any]:
        """What `why --json` prints."""
        then = Side.of(self.before) if self.before else self.after
        return {
            "step": self.step,
            "target": self.target,
            "key": self.key,
            "state": self.state,
            "nearest": self.before.key if self.before else None,
            "differences": [
                {
                    "field": d.field,
                    "before": d.before,
                    "after": d.after,
                    "because": because(d.path, then, self.after, self.store),
                }
                for d in self.differences
            ],
        }


def why(
    what: str, overrides: Sequence[str], config_dirs: Sequence[Path], progress: Progress, stop: Event
) -> Explanation:
    """Answers the verb.

    Args:
        what: A step, or the key of a record, or its beginning.
        overrides: Hydra's; the first may be the key of a later record instead.
        config_dirs: The user's own config directories.
        progress: Called while a model that was never seen before is read.
        stop: Set when the user wants to stop.

    Raises:
        ConfigError: The config is wrong, or there is no such step, target or record.
        CannotBuildError: No one can build a target.
    """
    if not _KEY.fullmatch(what):
        session = open_session(overrides, config_dirs, progress, stop)
        return explain(session, what, Origins(overrides, config_dirs))
    keys = [what, *(text for text in overrides[:1] if _KEY.fullmatch(text))]
    store = Store(Path(compose(overrides[len(keys) - 1 :], config_dirs).store.root))
    records = [lookup.record(key, store) for key in keys]
    return compare(records[0] if len(records) == 2 else None, records[-1], store)


def explain(session: Session, name: str, origins: Origins) -> Explanation:
    """Why a step of a planned run stands as it does.

    Args:
        session: The run.
        name: `surgery`, `build@l4` or `build[l4]`; the target may be left out where there is one only.
        origins: Where the values of the run's config came from.

    Raises:
        ConfigError: There is no such step or target, or several targets and none is said.
    """
    outcome = session.outcomes[_find(session, name).id]
    side = asked(outcome.node, _question(session, outcome), session.workshop.provenance, origins)
    made = outcome.record.provenance if outcome.record else side.made
    about = About.of(Record({}, {}, provenance={**side.made, "finished": made.get("finished")}))
    found = Index(session.store).nearest(side.question, about)
    if outcome.record:
        side = Side.of(outcome.record)  # it was another run, with other overrides, that built it
    return Explanation(
        step=outcome.node.step,
        target=outcome.node.target.name if outcome.node.target else None,
        key=outcome.key,
        state=outcome.state,
        before=found.record if found else None,
        same_step=bool(found and found.same_step),
        after=side,
        differences=found.differences if found else (),
        store=session.store,
        first=_first(session, outcome.node),
        needless=_needless(origins.overrides, outcome.node),
    )


def compare(before: Record | None, after: Record, store: Store) -> Explanation:
    """What the question of `after` differs in from that of `before`; None: from the nearest earlier one."""
    found = None if before else Index(store).nearest(after.fields, About.of(after))
    before = found.record if found else before
    about = About.of(after)
    return Explanation(
        step=about.step or after.fields["stage"],
        target=about.target,
        key=after.key,
        state=None,
        before=before,
        same_step=found.same_step if found else before is not None,
        after=Side.of(after),
        differences=difference(before.fields, after.fields) if before else (),
        store=store,
    )


def print_explanation(explained: Explanation) -> None:
    """Prints an explanation, one line per change."""
    before = explained.before
    if explained.state == "cached":
        print(f"{explained.name}: up to date ({_history(explained.key, explained.after.made)})")
    elif explained.state:
        print(f"{explained.name}: {explained.state}" + ("" if before else ": never built before"))
    for name, reason in explained.first.items():
        print(f"{name} is to run first: {reason}")
    for line, reason in explained.needless.items():
        print(f"{line}: in no key: {reason}")
    if before is None:
        if explained.state in ("cached", None):
            print("there is no earlier record to compare with")
        return
    nearest = "nearest earlier record" if explained.same_step else "nearest earlier record, of another step or model"
    print(f"{nearest}: {_history(before.key, before.provenance)}")
    told = words(explained.differences, Side.of(before), explained.after, explained.store)
    print("\n".join(f"  {line}" for line in told) if told else "  no difference: both ask the same")


def _needless(overrides: Sequence[str], node: Node) -> dict[str, str]:
    keys = {line: line.lstrip("+~").partition("=")[0] for line in overrides}
    facts = node.target.facts if node.target else {}
    idle = node.stage.without_effect(node.config, facts)
    reasons = {f"steps.{node.step}.config.{path}": f"without effect on {facts['backend']}" for path in idle}
    return {line: reason for line, key in keys.items() if (reason := why_not_keyed(key) or reasons.get(key))}


def _history(key: str | None, made: Mapping[str, Any]) -> str:
    told = [f"{name} {made[name]}" for name in ("model", "flow") if made.get(name)]
    return ", ".join([str(key), f"built {made.get('finished')}", *told])


def _first(session: Session, node: Node) -> dict[str, str]:
    """Every missing step that `node` waits for, in the order of the run, with why it is missing."""
    names = {node.id}
    for other in reversed(session.nodes):  # each stands after all that it depends on
        names |= other.before if other.id in names else set()
    outcomes = [session.outcomes[other.id] for other in session.nodes if other.id in names - {node.id}]
    return {o.node.id: o.reason or o.state for o in outcomes if o.state == "missing"}


def _question(session: Session, outcome: Outcome) -> Mapping[str, Any]:
    """The node's question, an input being None while the step that gives it has not run."""
    node, known = outcome.node, session.upstream(outcome.node)
    # A digest that is not known yet stands as an empty text, which no digest is.
    to_come = Record({}, {output: Blob("", 0) for _, output in node.upstream.values()})
    question = session.workshop.question(node, {name: known.get(name, to_come) for name in node.before})
    return {**question, "inputs": {name: given or None for name, given in question["inputs"].items()}}


def _find(session: Session, name: str) -> Node:
    step, _, target = name.removesuffix("]").replace("[", "@", 1).partition("@")
    nodes = [node for node in session.nodes if node.step == step]
    if not nodes:
        raise ConfigError(
            f"{name}: the flow {session.config.flow} has no step {step!r}",
            suggest(step, {node.step for node in session.nodes}),
        )
    targets = [node.target.name for node in nodes if node.target]
    if target and not targets:
        raise ConfigError(f"{name}: the step {step} is shared by all targets", f"leave the target out: {step}")
    chosen = [node for node in nodes if not targets or (node.target and node.target.name == target)]
    if not target and len(targets) == 1:
        return nodes[0]
    if not chosen:
        what = f"there is no target {target!r}" if target else f"{step} runs once for each target"
        raise ConfigError(f"{name}: {what}", suggest(f"{step}@{target}", [f"{step}@{each}" for each in targets]))
    return chosen[0]
