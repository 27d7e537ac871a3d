"""What a stage is: a plain function from files to files, and the words it speaks with its caller.

A stage is declared once, beside its config, and listed in `stages/__init__.py`::

    @dataclass(frozen=True)
    class CastConfig:
        precision: str = "fp16"

    def cast(job: Job[CastConfig]) -> Metrics: ...

    STAGE = Stage(name="cast", version=1, config=CastConfig, run=cast,
                  inputs=("onnx",), outputs={"onnx": "model.onnx"}, tools=("onnx",))

Everything a result depends on is in the declaration: the config (every field, or those that `keyed` says), the inputs
(by content), the facts and the tools. Whoever runs the stage builds the key from exactly these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Metrics: TypeAlias = dict[str, JSON]
Progress: TypeAlias = Callable[[str, "float | None"], None]
"""`progress(phase, fraction)`: what is being done, and how much of it is done (0 to 1, None where nobody knows)."""

DATA_SUFFIX = ".data"
"""A stage may write `<file>.data` beside an output's `<file>`: the large weights of an ONNX file.

The two are one output, and a step that takes it gets both."""

Remembers: TypeAlias = Literal["gpu", "key", "nothing"]

C = TypeVar("C")

TARGET_FACTS: Mapping[str, str] = {
    "backend": "'tensorrt_rtx' or 'tensorrt'",
    "backend_version": "the backend's full version, such as '1.7.1.116'",
    "compute_capability": "the target's, such as '8.9'; '8.0,8.6,8.9' of one plan for several",
    "gpu": "the target's GPU by name; null where the backend's plans run on any GPU of the capability",
    "platform": "the operating system and CPU the plan is for, such as 'linux_x86_64'",
    "gpu_here": "whether a GPU that can execute the target's plans is in the machine that runs the step",
    "machine": "{'cpu', 'cores', 'gpu'}: the CPU of that machine, the cores that may be used, and such a GPU by name",
}
"""Facts of the target. A stage that depends on one of them runs once per target."""

MODEL_FACTS: Mapping[str, str] = {
    "profiles": "{profile: {input: {min, opt, max}}}: each a full shape, for every input with a dynamic dimension; "
    "of a shape tensor the numbers in it, and values: true",
    "pass_packages": "{distribution: version}: what the user's own passes can import; null for one that is missing",
    "source": "{'kind': 'onnx'}, or for torch {'kind': 'torch', 'entry_point', 'examples', 'inputs', 'order', 'dims', "
    "'exporter', 'packages'}",
    "calibration": "which samples are taken, how they become arrays, and what else they depend on beside the content "
    "of files (pipelines.data); null where the model has none",
    "holdout": "the same of held-out data",
    "metric": "{'callable', 'direction', 'packages'}: the user's own metric on them; null where there is none",
}
"""Facts of the model that its config states and its files do not."""


class StageError(Exception):
    """A stage could not do its work.

    Args:
        what: One line: what, where, what it got and what is allowed.
        next_step: One line: what the user can do about it.
    """

    def __init__(self, what: str, next_step: str = "") -> None:
        super().__init__(what, next_step)
        self.what = what
        self.next_step = next_step

    def __str__(self) -> str:
        return self.what


@dataclass(frozen=True)
class Memory:
    """What earlier runs learnt that makes a run faster: handed from run to run, part of no key and of no result.

    Attributes:
        known: Files of earlier runs, in no order.
        learnt: Where a run writes what these held and what it learnt itself. Its metric `timing_cache.merged` says
            which of `known` went into it.
    """

    known: Sequence[Path]
    learnt: Path


@dataclass(frozen=True)
class Job(Generic[C]):
    """One run of a stage.

    Attributes:
        config: The stage's own config.
        inputs: The files of each input, in order. An optional input that the flow does not give is absent.
        facts: The facts that the stage declared, by name.
        out: The directory to write the declared outputs into; nothing else is written anywhere but `memory.learnt`.
        progress: Called as the work goes on.
        memory: What earlier runs learnt; None for a stage that remembers nothing.
    """

    config: C
    inputs: Mapping[str, Sequence[Path]]
    facts: Mapping[str, Any]
    out: Path
    progress: Progress = field(default=lambda phase, fraction: None)
    memory: Memory | None = None

    def file(self, name: str) -> Path:
        """The one file of the input `name`; of an ONNX file with external data, the ONNX file itself."""
        return self.inputs[name][0]


@dataclass(frozen=True)
class Stage(Generic[C]):
    """The declaration of a stage.

    Attributes:
        name: What a flow's YAML calls it.
        version: Raised by hand whenever the stage would give another result for the same question.
        config: A dataclass; every field of it is part of the key, unless `keyed` says otherwise.
        run: The function. Returns plain JSON; raises `StageError`.
        inputs: Names of the inputs that a flow must give.
        optional: Names of the inputs that it may give.
        outputs: File name of each output, by the output's name.
        facts: Names out of `TARGET_FACTS` and `MODEL_FACTS`.
        facts_when: Further facts that matter only for some configs.
        tools: Distributions whose installed version can change the result.
        keyed: What of the config the result depends on, given the facts; None: all of it.
        without_effect: The fields that are set and change nothing for a target of these facts, by their names.
        refuse: Raises `StageError` where the config asks for what a target of these facts has not; asked before
            anything runs. Its text begins with the field.
        facts_seen: The facts as a config has them: a plan for several models of GPU depends on the name of none.
        remembers: What a run's `Job.memory` is shared with: `gpu`, all runs of a backend's version on one model of GPU;
            `key`, those of the same question; `nothing`.
        precisions: Names out of `stages.gpus.PRECISIONS`: what a target must have to run what comes out.
        uses_gpu: Whether it runs something on the target's GPU, where the backend and the machine let it: with TensorRT
            it has that GPU for itself.
        measures_time: Whether it measures how long something takes: of such steps a machine runs one at a time.
        by_address: Whether what it calls orders things by their address in memory: it runs in a process that has them
            at the same place each time, as far as the kernel lets it.
        instead_of: The inputs that an optional input takes the place of, where it is given.
        keeps_fp32: Whether the matrix products that go in as float32 come out as float32.
    """

    name: str
    version: int
    config: type[C]
    run: Callable[[Job[C]], Metrics]
    inputs: tuple[str, ...]
    outputs: Mapping[str, str]
    optional: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    facts_when: Callable[[C], tuple[str, ...]] = lambda config: ()
    keyed: Callable[[C, Mapping[str, Any]], Mapping[str, JSON]] | None = None
    without_effect: Callable[[C, Mapping[str, Any]], Sequence[str]] = lambda config, facts: ()
    refuse: Callable[[C, Mapping[str, Any]], None] = lambda config, facts: None
    facts_seen: Callable[[C, Mapping[str, Any]], Mapping[str, Any]] = lambda config, facts: facts
    remembers: Callable[[C, Mapping[str, Any]], Remembers] = lambda config, facts: "nothing"
    precisions: Callable[[C], tuple[str, ...]] = lambda config: ()
    uses_gpu: bool = False
    measures_time: bool = False
    by_address: bool = False
    instead_of: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    keeps_fp32: Callable[[C], bool] = lambda config: True

    def written(self, directory: Path) -> dict[str, Path]:
        """The files of a run in `directory`, by output; the data file of `onnx`, if it has one, is `onnx.data`."""
        files = {name: directory / file for name, file in self.outputs.items()}
        data = {name + DATA_SUFFIX: path.with_name(path.name + DATA_SUFFIX) for name, path in files.items()}
        return {**files, **{name: path for name, path in data.items() if path.is_file()}}

    def file_name(self, output: str) -> str:
        """How people call the file of an output, its data file's too: `model.onnx`, `model.onnx.data`."""
        name = output.removesuffix(DATA_SUFFIX)
        return self.outputs[name] + output.removeprefix(name)

    @property
    def per_target(self) -> bool:
        """Whether the result depends on the target."""
        return any(fact in TARGET_FACTS for fact in self.facts)
