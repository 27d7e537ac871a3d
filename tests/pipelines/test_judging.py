"""Which step each gate is held against, and what a published plan's times are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from artifacts import publications
from artifacts.publications import Publication
from artifacts.record import Blob, Record
from artifacts.store import Store
from conf.errors import ConfigError
from conf.schema import Config, Model, Step
from pipelines.execute import Outcome, Workshop
from pipelines.graph import Node
from pipelines.judging import baseline, require_measured
from pipelines.session import Session
from stages import STAGES
from stages.gates import Baseline, Gates
from tests.artifacts.test_store import add

TIMED = {"latency_ms": 2.0, "engine_executed": True, "reason": None, "gpu": "NVIDIA L4"}


def session(root: Path, gates: Gates, **metrics: dict[str, Any]) -> Session:
    """A run of the stages of `metrics`, in their order and without targets, all of them done."""
    nodes, outcomes, maker = [], {}, ""
    for name, measured in metrics.items():
        stage = STAGES[name]
        upstream = {"plan": (maker, "plan")} if maker and "plan" in (*stage.inputs, *stage.optional) else {}
        node = Node(name, stage, None, upstream=upstream)
        outputs = {output: Blob("0" * 64, 1000) for output in stage.outputs}
        nodes.append(node)
        outcomes[name] = Outcome(node, "cached", "0" * 64, Record({"stage": name, "inputs": {}}, outputs, measured))
        maker = name if "plan" in stage.outputs else maker
    config = Config(model=Model(name="net"), gates=gates, flow="small")
    return Session(config, [], nodes, Workshop(Store(root)), outcomes)


def refused(found: Session) -> dict[str, list[str]]:
    return {name: lines for name, outcome in found.outcomes.items() if (lines := found.refusals(outcome))}


SMALL = Gates(plan_bytes=999)


@pytest.mark.parametrize(
    ("steps", "judged"),
    [
        (("build", "validate", "publish"), "validate"),
        (("build", "refit", "validate", "publish"), "validate"),
        (("build", "publish"), "build"),
        (("build", "refit", "publish"), "refit"),
        (("build", "bench", "publish"), "build"),
    ],
)
def test_the_size_of_a_plan_is_judged_once_where_it_is_validated_or_made_last(
    steps: tuple[str, ...], judged: str, tmp_path: Path
) -> None:
    found = session(tmp_path, SMALL, **{name: {} for name in steps})
    assert refused(found) == {judged: ["plan_bytes 1000 > 999"]}
    assert found.obstacle(found.nodes[-1]) == "gate: plan_bytes 1000 > 999"
    assert found.exit == 3


def test_a_slow_plan_is_not_published_although_nothing_depends_on_the_bench(tmp_path: Path) -> None:
    found = session(tmp_path, Gates(latency_ms=1.5), build={}, bench=TIMED, publish={})
    assert refused(found) == {"bench": ["latency_ms 2 > 1.5"]}
    assert found.obstacle(found.nodes[-1]) == "gate: latency_ms 2 > 1.5"
    found.settle()
    assert found.store.refs("published") == {}


def test_a_gate_that_could_not_be_asked_publishes_nothing(tmp_path: Path) -> None:
    found = session(tmp_path, Gates(latency_ms=1e9), build={}, bench=TIMED, publish={})
    found.outcomes["bench"] = Outcome(found.nodes[1], "failed", error="out of memory")
    assert found.held_back(None) == ["latency_ms was not measured: bench is failed"]
    found.settle()
    assert found.store.refs("published") == {}
    assert session(tmp_path, Gates(latency_ms=1e9), build={}, bench=TIMED, publish={}).held_back(None) == []


def test_what_the_search_for_layers_did_not_reach_is_a_refusal(tmp_path: Path) -> None:
    unreached = ["skip=auto: sqnr_db 9 < 20, at best"]
    found = session(tmp_path, Gates(), keep_float={"unreached": unreached}, quantize={})
    assert refused(found) == {"keep_float": unreached}
    assert refused(session(tmp_path, Gates(), keep_float={"unreached": []})) == {}


@pytest.mark.parametrize(
    ("gates", "stage"), [(Gates(min_cosine=0.9), "validate"), (Gates(latency_regression=1.05), "bench")]
)
def test_a_gate_that_no_step_measures_anything_for_is_refused(gates: Gates, stage: str) -> None:
    without = Config(gates=gates, steps={"build": Step(stage="build")}, flow="lean")
    with pytest.raises(ConfigError, match="no step of flow lean measures it") as caught:
        require_measured(without)
    assert f"add a step of stage {stage}" in caught.value.next_step
    require_measured(Config(gates=gates, steps={"any": Step(stage=stage)}))
    require_measured(Config(gates=SMALL, steps={}))


def record(store: Store, stage: str, plan: Blob, **metrics: Any) -> Record:
    outputs = {"plan": plan} if stage == "publish" else {}
    made = Record({"stage": stage, "inputs": {"plan": plan.digest}, "metrics": str(metrics)}, outputs, metrics)
    store.put(made)
    return made


def test_the_times_of_the_published_plan_are_found_by_its_content(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    plan, other = Blob("a" * 64, 5), add(store, b"another plan")
    assert baseline(store, "net/fast") is None
    published = record(store, "publish", plan)
    store.set_ref("published/net/fast", published.key)
    assert baseline(store, "net/fast") == Baseline()
    record(store, "bench", other, **TIMED)
    record(store, "bench", plan, latency_ms=None, engine_executed=False)
    assert baseline(store, "net/fast") == Baseline()
    record(store, "bench", plan, **TIMED)
    assert baseline(store, "net/fast") == Baseline(2.0, "NVIDIA L4")


def test_a_slower_plan_than_the_published_one_is_refused(tmp_path: Path) -> None:
    gates = Gates(latency_regression=1.05)
    for before, refusals in ((1.95, {}), (1.0, {"bench": ["latency_ms 2 > 1.05 times the published plan's 1"]})):
        found = session(tmp_path / str(before), gates, build={}, bench=TIMED, publish={})
        plan = add(found.store, b"the earlier plan")
        published = record(found.store, "publish", plan)
        record(found.store, "bench", plan, **{**TIMED, "latency_ms": before})
        publications.move(found.store, "net/small", {"model.plan": plan}, Publication(published.key))
        assert refused(found) == refusals
