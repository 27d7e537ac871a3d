"""The ranges of an earlier run, for a model that was trained on: what `refit.ranges=keep` takes instead of calibrating.

A ref says which record holds those of the last run that calibrated. That record stands as the answer of the step, and
so its content is in the keys of what depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from artifacts.store import Hit, Store
from conf.schema import Config
from pipelines.execute import Outcome

STAGE = "ranges"


def find(config: Config, store: Store, note: Callable[[str], None]) -> dict[str, str]:
    """The key of the record that answers each step of stage `ranges`; empty where nothing is to be kept, or can be."""
    steps = [name for name, step in config.steps.items() if step.stage == STAGE]
    if config.refit is None or config.refit.ranges != "keep" or config.model.ranges or not steps:
        return {}
    key = store.ref(_name(config))
    if key is None or not isinstance(store.lookup(key), Hit):
        note(f"refit.ranges=keep: flow {config.flow} has kept none of {config.model.name} yet: they are calibrated")
        return {}
    return dict.fromkeys(steps, key)


def refs(config: Config, outcomes: Iterable[Outcome]) -> dict[str, str]:
    """The refs that keep what a run calibrated, for runs to come."""
    calibrated = [o for o in outcomes if o.node.stage.name == STAGE and o.done and "given" not in o.node.inputs]
    return {_name(config): outcome.key for outcome in calibrated[-1:] if outcome.key}


def _name(config: Config) -> str:
    return f"ranges/{config.model.name}/{config.flow}"
