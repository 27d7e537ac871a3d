"""Gates: the numbers that a plan must keep to be published."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

from stages.stage import JSON


@dataclass(frozen=True)
class Gates:
    """What None means: this is not asked.

    Attributes:
        accuracy_drop: The most that accuracy on labelled held-out data may fall (0.01: one in a hundred).
        max_abs_error: The largest difference that any output value may have.
        min_cosine: The least cosine similarity of any output.
        min_top1_agreement: The least share of samples whose largest output is the same.
        plan_bytes: The largest plan.
    """

    accuracy_drop: float | None = None
    max_abs_error: float | None = None
    min_cosine: float | None = None
    min_top1_agreement: float | None = None
    plan_bytes: int | None = None


_RULES: Mapping[str, tuple[str, Callable[[float, float], bool], str]] = {
    "accuracy_drop": ("accuracy_drop", operator.le, ">"),
    "max_abs_error": ("max_abs_error", operator.le, ">"),
    "min_cosine": ("cosine", operator.ge, "<"),
    "min_top1_agreement": ("top1_agreement", operator.ge, "<"),
}
"""For each gate: the metric of `validate` that it reads, what must hold, and how a failure is written."""


def failures(gates: Gates, metrics: Mapping[str, JSON], plan_bytes: int | None) -> list[str]:
    """The gates that say no, each in one line; empty where all hold.

    A gate that is set and whose metric is absent, or not a number, says no too. Where the engine was executed, its own
    numbers (`metrics["engine"]`) must hold as well as those of the ONNX it was built from.

    Args:
        gates: What is asked.
        metrics: What the stage `validate` returned; empty where it did not run.
        plan_bytes: The size of the plan; None where there is none.
    """
    found: list[str] = []
    engine = metrics.get("engine")
    for gate in fields(gates):
        limit = getattr(gates, gate.name)
        if limit is None:
            continue
        if gate.name == "plan_bytes":
            found += _judge("plan_bytes", plan_bytes, operator.le, limit, ">", gate.name)
            continue
        metric, holds, sign = _RULES[gate.name]
        found += _judge(metric, metrics.get(metric), holds, limit, sign, gate.name)
        if isinstance(engine, Mapping):
            found += _judge(f"engine {metric}", engine.get(metric), holds, limit, sign, gate.name)
    return found


def _judge(
    name: str, value: JSON, holds: Callable[[float, float], bool], limit: float, sign: str, gate: str
) -> list[str]:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return [f"{name} was not measured, and the gate {gate} asks for {limit}"]
    # NaN holds nothing: every comparison with it is false.
    return [] if holds(value, limit) else [f"{name} {_number(value)} {sign} {_number(limit)}"]


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"
