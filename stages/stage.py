"""What a stage is: a plain function from files to files, and the words it speaks with its caller.

A stage is declared once, beside its config, and listed in `stages/__init__.py`::

    @dataclass(frozen=True)
    class CastConfig:
        precision: str = "fp16"

    def cast(job: Job[CastConfig]) -> Metrics: ...

    STAGE = Stage(name="cast", version=1, config=CastConfig, run=cast,
                  inputs=("onnx",), outputs={"onnx": "model.onnx"}, tools=("onnx",))

Everything a result depends on is in the declaration: the config (every field), the inputs (by content), the facts and
the tools. Whoever runs the stage builds the key from exactly these.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeAlias, TypeVar

JSON: TypeAlias = "bool | int | float | str | Sequence[JSON] | Mapping[str, JSON] | None"
Metrics: TypeAlias = dict[str, JSON]
Progress: TypeAlias = Callable[[str, "float | None"], None]
"""`progress(phase, fraction)`: what is being done, and how much of it is done (0 to 1, None where nobody knows)."""

DATA_SUFFIX = ".data"
"""A stage may write `<file>.data` beside an output's `<file>`: the large weights of an ONNX file.

The two are one output, and a step that takes it gets both."""

C = TypeVar("C")

TARGET_FACTS: Mapping[str, str] = {
    "backend": "'tensorrt_rtx' or 'tensorrt'",
    "backend_version": "the backend's full version, such as '1.7.1.116'",
    "compute_capability": "the target's, such as '8.9'",
    "gpu": "the target's GPU by name; null where the backend's plans run on any GPU of the capability",
    "platform": "the operating system and CPU the plan is for, such as 'linux_x86_64'",
    "gpu_here": "whether a GPU that can execute the target's plans is in the machine that runs the step",
}
"""Facts of the target. A stage that depends on one of them runs once per target."""

MODEL_FACTS: Mapping[str, str] = {
    "profiles": "{profile: {input: {min, opt, max}}}: each a full shape, for every input with a dynamic dimension",
    "pass_packages": "{distribution: version}: what the user's own passes can import; null for one that is missing",
    "source": "{'kind': 'onnx'}, or for torch {'kind': 'torch', 'entry_point', 'examples', 'inputs', 'order', 'dims', "
    "'exporter', 'packages'}",
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
class Job(Generic[C]):
    """One run of a stage.

    Attributes:
        config: The stage's own config.
        inputs: The files of each input, in order. An optional input that the flow does not give is absent.
        facts: The facts that the stage declared, by name.
        out: The directory to write the declared outputs into; nothing else is written anywhere.
        progress: Called as the work goes on.
    """

    config: C
    inputs: Mapping[str, Sequence[Path]]
    facts: Mapping[str, Any]
    out: Path
    progress: Progress = field(default=lambda phase, fraction: None)

    def file(self, name: str) -> Path:
        """The one file of the input `name`; of an ONNX file with external data, the ONNX file itself."""
        return self.inputs[name][0]


@dataclass(frozen=True)
class Stage(Generic[C]):
    """The declaration of a stage.

    Attributes:
        name: What a flow's YAML calls it.
        version: Raised by hand whenever the stage would give another result for the same question.
        config: A dataclass; every field of it is part of the key.
        run: The function. Returns plain JSON; raises `StageError`.
        inputs: Names of the inputs that a flow must give.
        optional: Names of the inputs that it may give.
        outputs: File name of each output, by the output's name.
        facts: Names out of `TARGET_FACTS` and `MODEL_FACTS`.
        facts_when: Further facts that matter only for some configs.
        tools: Distributions whose installed version can change the result.
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
