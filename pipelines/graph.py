"""The step graph of a run: a flow's steps, once for each target where a step depends on the target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from conf.errors import ConfigError, suggest
from conf.schema import Config, Step
from pipelines import sources
from pipelines.child import Limits
from pipelines.sources import Files
from pipelines.targets import BuildTarget
from stages import STAGES
from stages.sizes import size_bytes
from stages.stage import Stage, StageError

MODEL = "model"
MODEL_INPUTS = ("onnx", "weights", "source", "calibration", "ranges", "holdout", "plugins")

IMPLIED = ("passes", "plugins", "calibration_source", "holdout_source")
"""Inputs that every stage gets that takes them, named by the flow or not, so that no key can lack them: the source of
the user's own passes, plugin libraries, and the source of the user's own Python behind calibration or held-out data."""

DATA = ("calibration", "holdout")
"""Inputs whose files are read as the options of `model.<the same name>` say; a stage that needs one gets it unasked."""

Upstream = tuple[str, str]
"""(id of a node, name of its output)"""


@dataclass(frozen=True)
class Node:
    """A step, for one target where it depends on the target.

    Attributes:
        step: The step's name in the flow.
        stage: What it runs.
        config: The stage's config.
        target: None for a step that all targets share.
        upstream: Inputs that other nodes make.
        files: Inputs that are the model's own files.
        limits: When the step is stopped.
        inputs: All inputs as the flow names them: `surgery.onnx`, `model.calibration`.
    """

    step: str
    stage: Stage[Any]
    config: Any
    target: BuildTarget | None = None
    upstream: Mapping[str, Upstream] = field(default_factory=dict)
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    inputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """`surgery`, or `build[l4]`."""
        return self.step if self.target is None else f"{self.step}[{self.target.name}]"

    @property
    def before(self) -> set[str]:
        """The nodes that must be done first."""
        return {node for node, _ in self.upstream.values()}


def is_per_target(config: Config) -> dict[str, bool]:
    """Which steps of the flow run once per target: those whose stage depends on the target, and all after them."""
    found: dict[str, bool] = {}
    for name in _ordered(config):
        step = config.steps[name]
        before = (text.partition(".")[0] for text in step.inputs.values())
        found[name] = STAGES[step.stage].per_target or any(found.get(other, False) for other in before)
    return found


def needs_fact(config: Config, fact: str) -> bool:
    """Whether any step depends on `fact`."""
    stages = ((STAGES[step.stage], step.config) for step in config.steps.values())
    return any(fact in (*stage.facts, *stage.facts_when(own)) for stage, own in stages)


def own_passes(config: Config) -> list[str]:
    """The user's own passes of all steps, each `package.module.callable`."""
    configs = (step.config for step in config.steps.values() if "passes" in STAGES[step.stage].optional)
    return sorted({name for each in configs for name in each.own_passes})


def expand(config: Config, targets: Sequence[BuildTarget], files: Files) -> list[Node]:
    """The nodes of the run, each after all that it depends on; shared steps first.

    Raises:
        ConfigError: A step names an input, an output or another step that is not there, the steps form a circle, or a
            step's config asks for what a target has not.
    """
    per_target = is_per_target(config)
    order = list(per_target)
    shared = [_node(config, name, None, files, per_target) for name in order if not per_target[name]]
    single = [
        _node(config, name, target, files, per_target) for name in order if per_target[name] for target in targets
    ]
    return shared + single


def _ordered(config: Config) -> list[str]:
    steps = config.steps
    if not steps:
        raise ConfigError("the flow has no steps", "choose one: flow=int8")
    for name, step in steps.items():
        _check_inputs(name, step, steps)
    done: dict[str, None] = {}
    while len(done) < len(steps):
        ready = [name for name, step in steps.items() if name not in done and _before(step) <= done.keys()]
        if not ready:
            rest = ", ".join(sorted(steps.keys() - done.keys()))
            raise ConfigError(f"the steps {rest} wait for one another", "break the circle in steps.*.inputs")
        done.update(dict.fromkeys(ready))
    return list(done)


def _before(step: Step) -> set[str]:
    return {text.partition(".")[0] for text in step.inputs.values()} - {MODEL}


def _check_inputs(name: str, step: Step, steps: Mapping[str, Step]) -> None:
    stage = STAGES[step.stage]
    where = f"steps.{name}.inputs"
    if name == MODEL:
        raise ConfigError("a step cannot be called model", "rename it: its outputs would hide the model's files")
    for given in step.inputs.keys() - {*stage.inputs, *stage.optional}:
        raise ConfigError(
            f"{where}.{given}: stage {step.stage} has no such input", suggest(given, (*stage.inputs, *stage.optional))
        )
    for missing in set(stage.inputs) - step.inputs.keys() - set(DATA):
        raise ConfigError(
            f"{where}: stage {step.stage} needs the input {missing}", f"give it: {where}.{missing}=STEP.OUTPUT"
        )
    for given, text in step.inputs.items():
        _check_reference(f"{where}.{given}={text}", text, steps)
        if given in DATA and text.partition(".")[0] == MODEL and text != f"{MODEL}.{given}":
            raise ConfigError(
                f"{where}.{given}={text}: how data are read stands beside their path, in {MODEL}.{given}",
                f"give the data there: {MODEL}.{given}.path=PATH, {where}.{given}={MODEL}.{given}",
            )


def _check_reference(where: str, text: str, steps: Mapping[str, Step]) -> None:
    source, _, output = text.partition(".")
    if source == MODEL:
        allowed: Iterable[str] = MODEL_INPUTS
    elif source in steps:
        allowed = STAGES[steps[source].stage].outputs
    else:
        raise ConfigError(f"{where}: there is no step {source!r}", suggest(source, [*steps, MODEL]))
    if output not in allowed:
        raise ConfigError(f"{where}: {source} has no output {output!r}", suggest(output, allowed))


def _node(config: Config, name: str, target: BuildTarget | None, files: Files, per_target: Mapping[str, bool]) -> Node:
    step = config.steps[name]
    stage = STAGES[step.stage]
    if target:
        _check_target(name, step, target)
    upstream: dict[str, Upstream] = {}
    own: dict[str, Sequence[Path]] = {}
    named = {**{given: f"{MODEL}.{given}" for given in stage.inputs if given in DATA}, **step.inputs}
    for given, text in sorted(named.items()):
        source, _, output = text.partition(".")
        if source != MODEL:
            upstream[given] = (f"{source}[{target.name}]" if target and per_target[source] else source, output)
        elif output in files:
            own[given] = files[output]
        elif given in stage.inputs:
            raise ConfigError(
                f"flow {config.flow}: step {name} needs model.{output}, and model {config.model.name} has none",
                f"give it: model.{output}.path=PATH"
                if output in ("calibration", "holdout")
                else f"give model.{output}",
            )
    for given in IMPLIED:
        if given in stage.optional and given not in own and (implied := _implied(given, named, step, files)):
            own[given] = implied
    inputs = {given: named.get(given, f"{MODEL}.{given}") for given in (*upstream, *own)}
    return Node(name, stage, step.config, target, upstream, own, _limits(step), inputs)


def _check_target(name: str, step: Step, target: BuildTarget) -> None:
    try:
        STAGES[step.stage].refuse(step.config, target.facts)
    except StageError as error:
        raise ConfigError(f"target {target.name}: steps.{name}.config.{error.what}", error.next_step) from error


def _limits(step: Step) -> Limits:
    memory = None if step.memory_limit is None else size_bytes(step.memory_limit)
    return Limits(step.time_limit_s, step.stall_limit_s, memory)


def _implied(given: str, named: Mapping[str, str], step: Step, files: Files) -> Sequence[Path]:
    if given == "passes":
        return sources.pass_modules(step.config.own_passes)
    if given.removesuffix("_source") in DATA and given.removesuffix("_source") not in named:
        return ()
    return files.get(given, ())
