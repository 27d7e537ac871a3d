"""What a flow's gates have against the steps of a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from artifacts.record import Record
from artifacts.store import Store
from conf.errors import ConfigError
from conf.schema import Config
from pipelines.execute import Outcome
from pipelines.graph import Node, makes_plan
from stages import gates
from stages.gates import MEASURED_BY, Baseline, Gates


def require_measured(config: Config) -> None:
    """Refuses gates that no step of the flow measures anything for: they would hold nothing up.

    Raises:
        ConfigError: There is one.
    """
    stages = {step.stage for step in config.steps.values()}
    pages = {"validate": "flows", "bench": "benchmarking"}
    for gate, stage in MEASURED_BY.items():
        if getattr(config.gates, gate) is not None and stage not in stages:
            raise ConfigError(
                f"gates.{gate}: no step of flow {config.flow} measures it",
                f"add a step of stage {stage} (docs/{pages[stage]}.md), or leave the gate out: gates.{gate}=null",
            )


def refusals(
    asked: Gates,
    outcome: Outcome,
    nodes: Sequence[Node],
    outcomes: Mapping[str, Outcome],
    baseline: Callable[[], Baseline | None],
) -> list[str]:
    """What the gates have against a step that is done, each in one line; empty where they ask nothing of it.

    Args:
        asked: The gates.
        outcome: The step.
        nodes: All steps of the run.
        outcomes: How those before it stand, by id.
        baseline: Finds out how fast the published plan of the step's target is; None where none is published.
    """
    record, node = outcome.record, outcome.node
    if record is None:
        return []
    found = _unreached(record) if node.stage.name == "keep_float" else []
    if node.stage.name == "validate":
        found += gates.of_validation(asked, record.metrics)
    if node.stage.name == "bench":
        published = None if asked.latency_regression is None else baseline()
        found += gates.of_bench(asked, record.metrics, published)
    if asked.plan_bytes is not None and (size := _size_to_judge(node, record, nodes, outcomes)) is not None:
        found += gates.of_plan(asked, size)
    return found


def unjudged(asked: Gates, own: Sequence[Outcome]) -> list[str]:
    """The gates that nothing can be said of yet, each in one line: the step that measures for them is not done.

    Args:
        asked: The gates.
        own: The steps of one target, and those that it shares with others.
    """
    return [
        f"{gate} was not measured: {outcome.node.id} is {outcome.state}"
        for outcome in own
        if not outcome.done
        for gate in gates.asked(asked, outcome.node.stage.name)
    ]


def _unreached(record: Record) -> list[str]:
    """What the search for layers to keep in float could not reach, as it says itself."""
    told = record.metrics.get("unreached")
    return list(map(str, told)) if isinstance(told, list) else []


def _size_to_judge(node: Node, record: Record, nodes: Sequence[Node], outcomes: Mapping[str, Outcome]) -> int | None:
    """The size of the plan that is judged with this step: the one it validates, or else the one it makes last."""
    if node.stage.name == "validate" and (plan := node.upstream.get("plan")):
        before = outcomes[plan[0]].record
        return before.outputs[plan[1]].bytes if before else None
    if not makes_plan(node.stage):
        return None
    takers = [other for other in nodes if other.upstream.get("plan", ("", ""))[0] == node.id]
    elsewhere = any(taker.stage.name == "validate" or makes_plan(taker.stage) for taker in takers)
    return None if elsewhere else record.outputs["plan"].bytes


def baseline(store: Store, name: str) -> Baseline | None:
    """How fast the plan is that is published as `name` (`digits/sm_89/rtx-1.7.1.116/int8`); None where none is."""
    key = store.ref(f"published/{name}")
    if key is None:
        return None
    from pipelines import lookup  # reads the index: SQLite takes 10 ms, which few runs need to spend

    plan = record.outputs.get("plan") if (record := store.record(key)) else None
    timed = lookup.takers(plan.digest, "bench", store) if plan else []
    latest = next((each for each in timed if each.metrics.get("engine_executed") is True), None)
    return Baseline(latest.metrics.get("latency_ms"), latest.metrics.get("gpu")) if latest else Baseline()
