"""The dataclasses behind the YAML: a wrong key or type fails while the config is composed.

The field names are what a user types: `model.dims.batch=[1,8,32]`, `steps.build.config.optimization_level=5`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Any, Optional

from stages.allowed import NotAllowedError, require, require_size, require_word
from stages.data.options import Data
from stages.gates import Gates
from stages.gpus import capabilities
from stages.stage import StageError

# A mapping whose values are dataclasses says so in a comment: an override cannot add a whole entry to one that says it
# in its type. `conf.compose` holds each entry against its dataclass.
# OmegaConf reads these annotations at run time, and 2.3 knows Optional[X] everywhere but X | None only in places.
# ruff: noqa: UP045

MISSING: Any = "???"
"""What OmegaConf calls by this name: a value that must be given. Importing it from there would cost 45 ms, which a
build with nothing to do does not have to spend."""


LOCAL = "local"
"""What a target says of its GPU, or of its capability, where the machine is to be asked."""


class Source(str, Enum):
    """Where a model comes from."""

    onnx = "onnx"
    torch = "torch"


class Runner(str, Enum):
    """What runs the steps."""

    prefect = "prefect"
    local = "local"


class Routing(str, Enum):
    """Where the steps of a target run."""

    auto = "auto"
    here = "here"
    queue = "queue"


@dataclass
class Profile:
    """The shapes of one input, a number for each dim.

    Attributes:
        min: The smallest shape.
        opt: The shape to optimize for.
        max: The largest shape.
        values: Whether these are the numbers that the input holds: of a shape tensor, such as the sizes of a Resize.
    """

    min: list[int] = MISSING
    opt: list[int] = MISSING
    max: list[int] = MISSING
    values: bool = False


@dataclass
class TensorSpec:
    """An input of a torch module.

    Attributes:
        shape: Its dims: numbers, or names of `model.dims`.
        dtype: In numpy's words.
    """

    shape: list[Any] = MISSING
    dtype: str = "float32"


@dataclass
class Calibration(Data):
    """Samples to calibrate with.

    Attributes:
        path: A .npz or .npy file, or a directory of them; or the images, the dataset, or what a callable reads; null:
            the model has none.
    """

    path: Optional[str] = None


@dataclass
class Holdout(Data):
    """Held-out samples to validate with.

    Attributes:
        path: As for calibration; null: inputs are generated within the profiles.
        labels: Name of the array that holds the labels; of images any name: the number of the subdirectory in which
            the image is, as they are sorted; null: there are none.
        golden: What the model should give for each sample: a .npz whose arrays are named as its outputs, or a directory
            of them; null: nobody stored that.
        metric: The user's own Python that judges outputs by the labels: `package.module:function`, or
            `script.py:function` (`metric` where the function is not said); null: accuracy is what counts.
        metric_direction: Which of its numbers are better: `higher` or `lower`.
    """

    path: Optional[str] = None
    labels: Optional[str] = None
    golden: Optional[str] = None
    metric: Optional[str] = None
    metric_direction: str = "higher"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_word(self, "metric_direction", ("higher", "lower"))


@dataclass
class Model:
    """A model: where it comes from, the shapes it is used with, and the data to judge it by.

    Attributes:
        name: What people call it, in refs and reports; null: the stem of its path.
        source: `onnx` or `torch`.
        path: The ONNX file.
        entry_point: `package.module:callable` that returns the torch module.
        weights: Of a torch module: a safetensors file or state dict, handed to the entry point or loaded into the
            module it returns. Of an ONNX file: a safetensors file whose tensors take the place of its initializers.
        inputs: The torch module's inputs, in order.
        examples: `package.module:callable` that returns example inputs of the torch module by name; null: random ones.
        profiles: Shapes by profile and input; one profile named `default` is enough.
        dims: The short form for dims that have names: `[min, opt, max]`, or one number.
        calibration: Batches for INT8.
        ranges: INT8 ranges of the user's own: a reviewed ranges.json, or a TensorRT calibration cache.
        holdout: Inputs for validation.
        plugins: Plugin libraries, for backend=tensorrt: TensorRT-RTX has no plugins.
    """

    name: Optional[str] = None
    source: Source = Source.onnx
    path: Optional[str] = None
    entry_point: Optional[str] = None
    weights: Optional[str] = None
    inputs: dict[str, Any] = field(default_factory=dict)  # name -> TensorSpec
    examples: Optional[str] = None
    profiles: dict[str, Any] = field(default_factory=dict)  # name -> input -> Profile
    dims: dict[str, Any] = field(default_factory=dict)
    calibration: Calibration = field(default_factory=Calibration)
    ranges: Optional[str] = None
    holdout: Holdout = field(default_factory=Holdout)
    plugins: list[str] = field(default_factory=list)


@dataclass
class Step:
    """One step of a flow.

    Attributes:
        stage: Name of the stage.
        inputs: The stage's inputs by name: `<step>.<output>`, or
            `model.<onnx|weights|source|calibration|ranges|holdout>`.
        config: The stage's own config; checked against the stage's dataclass.
        time_limit_s: The step is stopped and failed after so many seconds. Not part of the key.
        stall_limit_s: The same after so many seconds without any progress; null: no such limit. Not part of the key.
        memory_limit: The same once its process holds more memory than that, such as `8GiB`; null: no limit. Not part
            of the key.
    """

    stage: str = MISSING
    inputs: dict[str, str] = field(default_factory=dict)
    config: Any = field(default_factory=dict)
    time_limit_s: float = 3600.0
    stall_limit_s: Optional[float] = None
    memory_limit: Optional[str] = None

    def __post_init__(self) -> None:
        require(0 < self.time_limit_s < inf, "time_limit_s", self.time_limit_s, "finite, above 0")
        stall = self.stall_limit_s
        require(stall is None or 0 < stall < inf, "stall_limit_s", stall, "finite, above 0, or null")
        require_size(self, "memory_limit")


@dataclass
class Target:
    """One kind of GPU, or several that one plan is for.

    Attributes:
        name: What `targets=[…]` calls it.
        gpu: The GPU's name as the driver reports it; "local": that of the machine.
        compute_capability: Such as "8.9"; "8.0,8.6,8.9": one plan for GPUs of all of them, with backend=tensorrt_rtx;
            "local": ask the machine.
        memory: How much the GPU has, such as `24GB`; a plan that is larger is told of. Not part of the key.
        backend: The backend to build with; null: the run's.
    """

    name: str = MISSING
    gpu: str = MISSING
    compute_capability: str = MISSING
    memory: Optional[str] = None
    backend: Optional[str] = None

    def __post_init__(self) -> None:
        if self.compute_capability not in (MISSING, LOCAL):
            try:
                found = capabilities(self.compute_capability)
            except StageError as error:
                allowed = f'such as "8.9", several as "8.0,8.6,8.9", or {LOCAL}'
                raise NotAllowedError("compute_capability", self.compute_capability, allowed) from error
            # One way to write it: it is part of keys and of paths.
            self.compute_capability = ",".join(found)
        require_size(self, "memory")


@dataclass
class Backend:
    """The library that builds.

    Attributes:
        name: `tensorrt_rtx` or `tensorrt`.
    """

    name: str = MISSING


@dataclass
class StoreConfig:
    """Where results are kept.

    Attributes:
        root: The store's directory.
        remote: What is shared with other machines: any fsspec URL, read through and written through.
        remote_limit_s: What the remote does not do within so many seconds counts as failed.
        lease_s: A machine that builds what others wait for and has not been heard of for so long is taken for dead.
        budget: Size that gc keeps the store below, such as `50GiB`.
    """

    root: str = MISSING
    remote: Optional[str] = None
    remote_limit_s: float = 600.0
    lease_s: float = 30.0
    budget: Optional[str] = None

    def __post_init__(self) -> None:
        require(0 < self.remote_limit_s < inf, "remote_limit_s", self.remote_limit_s, "finite, above 0")
        require(0 < self.lease_s < inf, "lease_s", self.lease_s, "finite, above 0")
        require_size(self, "budget")


@dataclass
class Refit:
    """How new weights come into a plan without a new build; `refit: true` is all of this at its defaults.

    Attributes:
        mode: `any`: other weights can be put in, at some cost of speed. `identical`: full speed, and only the weights
            that the plan was built with: what is published is a small plan, and the weights come later. `named`: those
            of `weights` only.
        weights: Patterns of initializer names, such as `*lora*`, with `mode: named`.
        fallback: What to do where a plan cannot be refitted: `rebuild` it with the new weights, or `fail`.
        ranges: Of quantized models: `recalibrate` with the new weights, or `keep` the ranges of the last run that did.
    """

    mode: str = "any"
    weights: list[str] = field(default_factory=list)
    fallback: str = "rebuild"
    ranges: str = "recalibrate"

    def __post_init__(self) -> None:
        require_word(self, "mode", ("any", "identical", "named"))
        named = self.mode == "named"
        require(bool(self.weights) == named, "weights", self.weights, "patterns, with mode: named and only then")
        require_word(self, "fallback", ("rebuild", "fail"))
        require_word(self, "ranges", ("recalibrate", "keep"))


@dataclass
class Config:
    """A whole run, composed.

    Attributes:
        model: What is built.
        steps: By which steps.
        refit: Whether new weights come in by refitting: `false`, `true`, a mode, or the options of `Refit`.
        gates: What a plan must keep.
        targets: For which GPUs.
        backend: By what.
        store: Where results are kept.
        runner: What runs the steps.
        routing: Where the steps of a target run: `here`; as a run on the Prefect work `queue` of its architecture; or
            `auto`, on its queue where this machine cannot build it. Not part of any key.
        flow: The flow's name.
    """

    model: Model = field(default_factory=Model)
    steps: dict[str, Any] = field(default_factory=dict)  # name -> Step
    refit: Any = False  # None or a Refit, once composed
    gates: Gates = field(default_factory=Gates)
    targets: dict[str, Target] = field(default_factory=dict)
    backend: Backend = field(default_factory=Backend)
    store: StoreConfig = field(default_factory=StoreConfig)
    runner: Runner = Runner.prefect
    routing: Routing = Routing.auto
    flow: str = ""
