"""What `steps.quantize.config.skip=auto` makes of a flow: two steps find the layers that stay in float.

… ─ onnx ─ quantize ─ …     becomes     … ─ onnx ─┬─ sensitivity ─ keep_float ─ float_layers ─┐
                                                  └────────────────────────────────────── quantize ─ …

The flow's gates enter the config of `keep_float`, and so its key: other gates are another search.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from conf.errors import ConfigError
from stages.keep_float import JUDGED
from stages.quantize import AUTO

SENSITIVITY, KEEP_FLOAT = "sensitivity", "keep_float"
"""The steps that are added, and the stages that they run."""

QUANTIZERS = ("quantize", "modelopt_quantize")
"""Stages whose `skip` says what stays in float; the first of them can look for it."""

Steps = dict[str, dict[str, Any]]

_SHARED = {
    SENSITIVITY: ("precision", "attention"),
    KEEP_FLOAT: ("precision", "attention", "only", "skip_ops", "only_ops"),
}
"""What these steps take over from the config of `quantize`: they try what it will make."""


def is_asked(steps: Mapping[str, Any]) -> bool:
    """Whether a step of the flow quantizes and asks for it."""
    return any(_asks(step) for step in steps.values())


def rewired(steps: Mapping[str, Mapping[str, Any]], gates: Mapping[str, Any], flow: str) -> Steps:
    """The steps of a flow that finds out which layers stay in float.

    Args:
        steps: The flow's, by name, each `{stage, inputs, config, …}`. What the user has said of the two steps that are
            added stands there without their stage.
        gates: The flow's.
        flow: Its name, for errors.

    Raises:
        ConfigError: No gate says how good is good enough, or the flow's own steps are in the way.
    """
    (name, *others) = [name for name, step in steps.items() if _asks(step)]
    if others:
        raise ConfigError(f"flow {flow}: {name} and {others[0]} both say skip=auto", "leave it to one of them")
    if all(gates.get(gate) is None for gate in JUDGED):
        raise ConfigError(
            f"steps.{name}.config.skip=auto: no gate says how near to float32 the model must stay",
            "give one: gates.min_sqnr_db=25, gates.accuracy_drop=0.01",
        )
    found: Steps = {each: {**step} for each, step in steps.items()}
    quantize = found[name]
    if quantize["stage"] != "quantize":
        raise ConfigError(
            f"steps.{name}.config.skip=auto: stage {quantize['stage']} takes a list of patterns",
            f"leave steps.{name}.stage at quantize, which can look for the layers",
        )
    config = {**(quantize.get("config") or {})}
    for option in ("skip_sensitive", "min_sqnr_db"):
        if config.get(option):
            raise ConfigError(
                f"steps.{name}.config.{option}={config[option]}: skip=auto finds how many layers stay in float",
                f"leave {option} out, or skip=auto; flow=int8 has neither",
            )
    inputs = {**(quantize.get("inputs") or {})}
    data = {"onnx": inputs.get("onnx"), "ranges": inputs.get("ranges"), "calibration": "model.calibration"}
    made: Steps = {
        SENSITIVITY: {"stage": SENSITIVITY, "inputs": data},
        KEEP_FLOAT: {"stage": KEEP_FLOAT, "inputs": {**data, "sensitivity": f"{SENSITIVITY}.sensitivity"}},
    }
    for added, step in made.items():
        said = found.pop(added, {})
        own = {option: config[option] for option in _SHARED[added] if option in config}
        if added == KEEP_FLOAT:
            own |= {gate: f"${{gates.{gate}}}" for gate in JUDGED}
        made[added] = {
            **step,
            **said,
            "inputs": {**step["inputs"], **(said.get("inputs") or {})},
            "config": {**own, **(said.get("config") or {})},
        }
    quantize["inputs"] = {**inputs, "float_layers": f"{KEEP_FLOAT}.layers"}
    order = list(found)
    order[order.index(name) : order.index(name)] = list(made)
    return {each: made.get(each) or found[each] for each in order}


def _asks(step: Any) -> bool:
    config = step.get("config") if isinstance(step, Mapping) else None
    return isinstance(config, Mapping) and step.get("stage") in QUANTIZERS and config.get("skip") == AUTO
