"""Gates: the numbers that a plan must keep to be published.

Each is held against what one stage measured: `validate`, `bench`, or the plan's size. A gate whose number is missing
says no, and says how to get it: what nobody measured has not passed.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeGuard

from stages.stage import JSON


@dataclass(frozen=True)
class Gates:
    """What None means: this is not asked.

    Attributes:
        accuracy_drop: The most that accuracy on labelled held-out data may fall (0.01: one in a hundred).
        max_abs_error: The largest difference that any output value may have.
        min_cosine: The least cosine similarity of any output.
        min_top1_agreement: The least share of samples whose largest output is the same.
        min_sqnr_db: The least ratio of signal to error of any output, in dB.
        metric_drop: The most that the user's own metric on labelled held-out data may get worse.
        plan_bytes: The largest plan.
        latency_ms: The longest that the plan may take on its GPU, in ms: the median that the stage `bench` gives.
        latency_regression: The most that this may be, as a multiple of what the published plan of the same place took
            on the same GPU (1.05: 5 % slower).
    """

    accuracy_drop: float | None = None
    max_abs_error: float | None = None
    min_cosine: float | None = None
    min_top1_agreement: float | None = None
    min_sqnr_db: float | None = None
    metric_drop: float | None = None
    plan_bytes: int | None = None
    latency_ms: float | None = None
    latency_regression: float | None = None


@dataclass(frozen=True)
class _Rule:
    """How a gate is held against what `validate` measured.

    Attributes:
        metric: The number.
        holds: What must be true of it and the limit.
        sign: How a failure is written.
        missing: How to get the number where there is none.
    """

    metric: str
    holds: Callable[[float, float], bool]
    sign: str
    missing: str


_RULES: Mapping[str, _Rule] = {
    "accuracy_drop": _Rule("accuracy_drop", operator.le, ">", "name the labels: model.holdout.labels=NAME"),
    "max_abs_error": _Rule("max_abs_error", operator.le, ">", "run the step of stage validate"),
    "min_cosine": _Rule("cosine", operator.ge, "<", "run the step of stage validate"),
    "min_top1_agreement": _Rule("top1_agreement", operator.ge, "<", "the model ranks nothing: gate another number"),
    "min_sqnr_db": _Rule("sqnr_db", operator.ge, "<", "the reference's output is all zeros: give other data"),
    "metric_drop": _Rule(
        "metric_drop", operator.le, ">", "name the function: model.holdout.metric=package.module:function"
    ),
}

MEASURED_BY: Mapping[str, str] = {
    **dict.fromkeys(_RULES, "validate"),
    "latency_ms": "bench",
    "latency_regression": "bench",
}
"""The stage that measures what a gate asks for; the size of a plan needs none."""


@dataclass(frozen=True)
class Baseline:
    """How fast the published plan is.

    Attributes:
        latency_ms: Its median, in ms; None where nobody measured it.
        gpu: The GPU on which that was; None where nobody says.
    """

    latency_ms: JSON = None
    gpu: JSON = None


def asked(gates: Gates, stage: str) -> list[str]:
    """The gates that are set and need what `stage` measures."""
    return [gate for gate, measures in MEASURED_BY.items() if measures == stage and getattr(gates, gate) is not None]


def of_validation(gates: Gates, metrics: Mapping[str, JSON]) -> list[str]:
    """The gates that say no to what `validate` measured, each in one line; empty where all hold.

    Where the engine was executed, its own numbers (`metrics["engine"]`) must hold as well as those of the ONNX it was
    built from.
    """
    found: list[str] = []
    engine = metrics.get("engine")
    for gate in asked(gates, "validate"):
        found += judge(gates, gate, metrics)
        if isinstance(engine, Mapping):
            found += judge(gates, gate, engine, "engine ")
    return found


def judge(gates: Gates, gate: str, metrics: Mapping[str, JSON], who: str = "") -> list[str]:
    """What one gate of `validate` has against `metrics`; `who` they are of, with a space behind it."""
    rule = _RULES[gate]
    value = metrics.get(rule.metric)
    if rule.metric == "sqnr_db" and value is None and metrics.get("max_abs_error") == 0:
        value = math.inf  # no error at all has no ratio
    return _held(gate, who + rule.metric, value, getattr(gates, gate), rule)


def of_plan(gates: Gates, plan_bytes: int | None) -> list[str]:
    """What the gate `plan_bytes` has against a plan of that size; None: there is none."""
    rule = _Rule("plan_bytes", operator.le, ">", "build the plan")
    return [] if gates.plan_bytes is None else _held("plan_bytes", "plan_bytes", plan_bytes, gates.plan_bytes, rule)


def of_bench(gates: Gates, metrics: Mapping[str, JSON], published: Baseline | None) -> list[str]:
    """What the gates of latency have against what `bench` measured.

    The median counts, not a higher percentile: of runs on a machine that does other things too, the tail measures
    these. A time that is not of the plan on its GPU is none, whatever it says of another runtime.

    Args:
        gates: What is asked.
        metrics: `latency_ms` (null where the plan was not executed), `engine_executed`, `reason` of not, and `gpu`.
        published: The plan that is published now; None where none is, so that nothing can be slower than it.
    """
    time = metrics.get("latency_ms") if metrics.get("engine_executed") is True else None
    why = f"{metrics.get('reason') or 'the plan was not executed'}: "
    rule = _Rule("latency_ms", operator.le, ">", f"{why}run the step of stage bench on a GPU of the target")
    found = [] if gates.latency_ms is None else _held("latency_ms", "latency_ms", time, gates.latency_ms, rule)
    if gates.latency_regression is None:
        return found
    if not _is_number(time):
        return found + _held("latency_regression", "latency_ms", time, gates.latency_regression, rule)
    if published is None:
        return found
    return found + _slower(gates.latency_regression, time, metrics.get("gpu"), published)


def _slower(limit: float, time: float, gpu: JSON, published: Baseline) -> list[str]:
    before = published.latency_ms
    if not _is_number(before):
        return [
            "latency_regression cannot be told: the published plan was never timed on a GPU: time it with the step of "
            "stage bench, or publish once with gates.latency_regression=null"
        ]
    if published.gpu != gpu:
        return [f"latency_regression cannot be told: the published plan was timed on {published.gpu}, this on {gpu}"]
    if time <= limit * before:
        return []
    return [f"latency_ms {_number(time)} > {limit:g} times the published plan's {_number(before)}"]


def _held(gate: str, name: str, value: JSON, limit: float, rule: _Rule) -> list[str]:
    if not _is_number(value):
        return [f"{name} was not measured, and the gate {gate} asks for {_number(limit)}: {rule.missing}"]
    # NaN holds nothing: every comparison with it is false.
    return [] if rule.holds(value, limit) else [f"{name} {_number(value)} {rule.sign} {_number(limit)}"]


def _is_number(value: JSON) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
