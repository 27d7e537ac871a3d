"""What `refit` makes of a flow: its plan is built from the model's structure, and a step of its own puts weights in.

… ─ onnx ─ build ─ plan ─ …     becomes     … ─ onnx ─ split ─┬─ structure ─ build ─┐
                                                              └─ weights ──────── refit ─ plan ─ …
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from conf.errors import ConfigError
from conf.schema import Refit

SPLIT, REFIT = "split", "refit"
"""The steps that are added, and the stages that they run."""

Steps = dict[str, dict[str, Any]]


def options(given: object) -> dict[str, Any] | None:
    """What the config says of `refit`, as the options of `Refit`; None where a flow is to stay as it is.

    Raises:
        ConfigError: It is none of what is allowed.
    """
    if given is None or given is False or given == "none":
        return None
    if given is True:
        return {}
    if isinstance(given, str):
        return {"mode": given}
    if isinstance(given, Mapping):
        return {str(name): value for name, value in given.items()}
    raise ConfigError(
        f"refit={given}: allowed is true, false, any, identical, named, or a mapping",
        "refit={mode: named, weights: ['*lora*']}",
    )


def rewired(steps: Mapping[str, Mapping[str, Any]], refit: Refit, flow: str) -> Steps:
    """The steps of a flow whose plan takes its weights later.

    Args:
        steps: The flow's, by name, each `{stage, inputs, config, …}`. What the user has said of the steps `split` and
            `refit` stands there without their stage.
        refit: How.
        flow: The flow's name, for errors.

    Raises:
        ConfigError: The flow cannot be refitted, or a step's config says otherwise.
    """
    found: Steps = {name: dict(deepcopy(step)) for name, step in steps.items()}
    own = {name: found.pop(name) for name in (SPLIT, REFIT) if name in found}
    build = _build(found, own, flow)
    step = found[build]
    source = step["inputs"]["onnx"]
    structure, weights = f"{SPLIT}.structure", f"{SPLIT}.weights"
    _agree(step, build, "refit", refit.mode, refit)
    _agree(step, build, "strip_plan", True, refit)
    _agree(step, build, "refittable_weights", list(refit.weights), refit)
    if refit.mode != "identical":  # there the plan is made for its weights
        step["inputs"]["onnx"] = structure
    split = {"mode": "named" if refit.mode == "named" else "any", "weights": list(refit.weights)}
    added: Steps = {
        SPLIT: {"stage": SPLIT, "inputs": {"onnx": source}, "config": split},
        REFIT: {
            "stage": REFIT,
            "inputs": {"plan": f"{build}.plan", "structure": structure, "weights": weights},
            "config": {"fallback": refit.fallback, "build": step["config"]},
        },
    }
    for name, said in own.items():
        added[name] = _merged(added[name], said)
    for consumer in found.values():
        _turn(consumer, f"{build}.plan", refit)
    names = list(found)
    order = [*names[: names.index(build)], SPLIT, build, REFIT, *names[names.index(build) + 1 :]]
    return {name: added.get(name) or found[name] for name in order}


def _merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    inner = {name: _merged(base[name], given) for name, given in more.items() if isinstance(base.get(name), Mapping)}
    return {**base, **more, **inner}


def check_mix(steps: Mapping[str, Any]) -> None:
    """Holds the typed steps of a flow, rewired or written by hand, to what fits together.

    Raises:
        ConfigError: A plan without its weights would be used as if it had them.
    """
    bare = {
        name
        for name, step in steps.items()
        if step.stage == "build" and _of_structure(steps, step.inputs.get("onnx", ""))
    }
    for name in sorted(bare):
        config = steps[name].config
        if config.refit not in ("any", "named"):
            raise ConfigError(
                f"steps.{name}.config.refit={config.refit}: it builds a structure, whose weights come later",
                f"steps.{name}.config.refit=any, or build the whole model",
            )
    for name, step in steps.items():
        for given, text in step.inputs.items():
            if text.partition(".")[0] in bare and step.stage != REFIT:
                raise ConfigError(
                    f"steps.{name}.inputs.{given}={text}: that plan has no weights of the model yet",
                    f"take it from a step of stage {REFIT}",
                )


def _of_structure(steps: Mapping[str, Any], text: str) -> bool:
    source, _, output = text.partition(".")
    return source in steps and steps[source].stage == SPLIT and output == "structure"


def _build(steps: Steps, own: Steps, flow: str) -> str:
    for name, step in [*steps.items(), *own.items()]:
        if step.get("stage") in (SPLIT, REFIT):
            raise ConfigError(
                f"flow {flow}: the step {name} of stage {step['stage']} is its own way to refit",
                "leave refit out (refit=false), or the step: ~steps." + name,
            )
    builds = [name for name, step in steps.items() if step.get("stage") == "build"]
    if len(builds) != 1 or "onnx" not in (steps[builds[0]].get("inputs") or {}):
        what = f"has {len(builds)} steps that build" if len(builds) != 1 else "builds from no input onnx"
        raise ConfigError(f"flow {flow}: refit needs one step of stage build, and it {what}", "leave refit out")
    return builds[0]


def _agree(step: dict[str, Any], name: str, key: str, value: Any, refit: Refit) -> None:
    config = step["config"] = dict(step.get("config") or {})
    if config.get(key) not in (None, "none", [], value):
        raise ConfigError(
            f"refit.mode is {refit.mode}, and steps.{name}.config.{key} is {config[key]}",
            f"leave steps.{name}.config.{key} out: refit sets it",
        )
    config[key] = value


def _turn(step: dict[str, Any], plan: str, refit: Refit) -> None:
    """Has `step` take the plan with its weights; with `identical` the small plan is what is published."""
    for name, text in (step.get("inputs") or {}).items():
        if text == plan and refit.mode == "identical" and step.get("stage") == "publish":
            step["config"] = {"stripped": True, **(step.get("config") or {})}
        elif text == plan:
            step["inputs"][name] = f"{REFIT}.plan"
