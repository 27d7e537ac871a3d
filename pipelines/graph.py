"""The step graph of a run: a flow's steps, once for each target where a step depends on the target."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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

IMPLIED = (
    *("weights", "passes", "plugins", "calibration", "calibration_source", "holdout_source"),
    *("metric", "golden", "torch_source", "torch_weights"),
)
"""Inputs that every stage gets that takes them, named by the flow or not, so that no key can lack them: a checkpoint,
the source of the user's own passes, plugin libraries, the source of the user's own Python behind calibration or
held-out data, and what `validate` judges by."""

VALIDATE = "validate"

DATA = ("calibration", "holdout")
"""Inputs whose files are read as the options of `model.<the same name>` say; a stage that needs one gets it unasked."""

_NONE: Mapping[str, str] = {}

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
        kept: The key of an earlier record that stands as its answer; such a node has no inputs.
    """

    step: str
    stage: Stage[Any]
    config: Any
    target: BuildTarget | None = None
    upstream: Mapping[str, Upstream] = field(default_factory=dict)
    files: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    inputs: Mapping[str, str] = field(default_factory=dict)
    kept: str | None = None

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


def takes(config: Config, name: str) -> bool:
    """Whether any step reads the data `name`: its stage needs them, or the flow names them for it."""
    stages = ((STAGES[step.stage], step) for step in config.steps.values())
    return any(
        name in stage.inputs or (name in step.inputs and name in (*stage.facts, *stage.facts_when(step.config)))
        for stage, step in stages
    )


def is_sent(node: Node) -> bool:
    """Whether a step runs on a queue. What publishes needs no GPU, and gates are judged before it: it stays here."""
    return node.target is not None and node.target.worker is not None and node.stage.name != "publish"


def makes_plan(stage: Stage[Any]) -> bool:
    """Whether a plan comes out of `stage` that did not go in."""
    return stage.name != "publish" and "plan" in stage.outputs


def own_passes(config: Config) -> list[str]:
    """The user's own passes of all steps, each `package.module.callable`."""
    configs = (step.config for step in config.steps.values() if "passes" in STAGES[step.stage].optional)
    return sorted({name for each in configs for name in each.own_passes})


def expand(config: Config, targets: Sequence[BuildTarget], files: Files, kept: Mapping[str, str] = _NONE) -> list[Node]:
    """The nodes of the run, each after all that it depends on; shared steps first.

    Args:
        config: The run's.
        targets: Its targets.
        files: The model's own files.
        kept: The shared steps that an earlier record answers, with its key.

    Raises:
        ConfigError: A step names an input, an output or another step that is not there, the steps form a circle, or a
            step's config asks for what a target has not.
    """
    per_target = is_per_target(config)
    needed = _needed(config, files, kept)
    order = [name for name in per_target if name in needed]
    shared = [
        Node(name, STAGES[config.steps[name].stage], config.steps[name].config, kept=kept[name])
        if name in kept
        else _node(config, name, None, files, per_target)
        for name in order
        if not per_target[name]
    ]
    single = [
        _node(config, name, target, files, per_target) for name in order if per_target[name] for target in targets
    ]
    return shared + single


def _needed(config: Config, files: Files, kept: Collection[str]) -> set[str]:
    """The steps of the flow without those that would only make what something else is given in place of."""
    asked = {text.partition(".")[0] for step in config.steps.values() for text in step.inputs.values()}
    wanted = [name for name in config.steps if name not in asked]
    found: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name not in found and name in config.steps:
            found.add(name)
            step = config.steps[name]
            replaced = _replaced(STAGES[step.stage], step.inputs, files)
            texts = [text for given, text in step.inputs.items() if given not in replaced]
            wanted += [] if name in kept else [text.partition(".")[0] for text in texts]
    return found


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
    for given in _replaced(stage, named, files):
        named.pop(given, None)
    for given, text in sorted(named.items()):
        source, _, output = text.partition(".")
        if text == f"{MODEL}.onnx" and "weights" in files and "weights" not in stage.optional:
            raise ConfigError(
                f"steps.{name}.inputs.{given}={text}: the ONNX file as it is, and model.weights gives it other weights",
                f"take the model from a step of stage export: steps.{name}.inputs.{given}=export.onnx",
            )
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
        if given in stage.optional and given not in {*own, *upstream}:
            implied = _implied(given, named, config, step, files)
            own |= {} if implied is None else {given: implied}
    inputs = {given: named.get(given, f"{MODEL}.{given.removeprefix('torch_')}") for given in (*upstream, *own)}
    return Node(name, stage, step.config, target, upstream, own, _limits(step), inputs)


def _replaced(stage: Stage[Any], named: Mapping[str, str], files: Files) -> set[str]:
    """The inputs that others, which are given, take the place of."""
    here = {
        given for given, text in named.items() if text.partition(".")[0] != MODEL or text.partition(".")[2] in files
    }
    return {name for given, names in stage.instead_of.items() if given in here for name in names}


def _check_target(name: str, step: Step, target: BuildTarget) -> None:
    try:
        STAGES[step.stage].refuse(step.config, target.facts)
    except StageError as error:
        raise ConfigError(f"target {target.name}: steps.{name}.config.{error.what}", error.next_step) from error


def _limits(step: Step) -> Limits:
    memory = None if step.memory_limit is None else size_bytes(step.memory_limit)
    return Limits(step.time_limit_s, step.stall_limit_s, memory)


def _implied(given: str, named: Mapping[str, str], config: Config, step: Step, files: Files) -> Sequence[Path] | None:
    """The files of an input that the flow need not name; None where there is none."""
    match given:
        case "passes":
            return sources.pass_modules(step.config.own_passes) or None
        case "calibration" | "calibration_source" if step.stage == VALIDATE:
            # Held-out data are held against what the model was calibrated with, where it was.
            return files.get(given) if "holdout" in named and takes(config, "calibration") else None
        case "calibration":
            return None
        case "calibration_source" | "holdout_source":
            return files.get(given) if given.removesuffix("_source") in named else None
        case "torch_source" | "torch_weights":
            return _of_torch(given.removeprefix("torch_"), config, step, files)
    return files.get(given)


def _of_torch(name: str, config: Config, step: Step, files: Files) -> Sequence[Path] | None:
    if "torch" not in (step.config.references or ()):
        return None
    if "source" not in files:
        raise ConfigError(
            f"a step of stage {VALIDATE} compares with torch, and model {config.model.name} is an ONNX file",
            "leave torch out of its references, or give the module: model.source=torch",
        )
    return files.get(name)
