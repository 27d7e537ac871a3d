"""What executes a model here: ONNX Runtime, ONNX's reference evaluator, or TensorRT on a GPU. Feeds in, outputs out."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import backends, onnx_file
from stages.batches import Input, model_inputs
from stages.onnx_session import open_session
from stages.profiles import Profile
from stages.stage import StageError
from stages.wording import first_line

if TYPE_CHECKING:
    import onnx

    from stages.batches import Array

ONNX_RUNTIME = "onnxruntime"
REFERENCE_EVALUATOR = "onnx reference evaluator"
REFERENCE_LIMIT_SECONDS = 600.0
"""The reference evaluator computes in NumPy: about 4 GFLOP/s in bfloat16, so 2 seconds an image of a ResNet-50."""

_NO_MEMORY = re.compile(r"^CUDA Error: 2\b|out of memory", re.IGNORECASE)
"""2 is `cudaErrorMemoryAllocation`; Polygraphy knows the numbers of CUDA's errors, and no names."""

WITHOUT_VALIDATION = "~steps.validate ~steps.publish.inputs.report"
"""The overrides that leave validation out of a shipped flow: both, since `publish` reads the report."""


@dataclass(frozen=True)
class Runtime:
    """Something that executes one model.

    Attributes:
        name: How reports call it.
        inputs: What it takes.
        run: Feed in, outputs out, both by name.
        reason: Why it is not ONNX Runtime; empty where it is.
    """

    name: str
    inputs: Sequence[Input]
    run: Callable[[Mapping[str, Array]], dict[str, Array]]
    reason: str = ""


def open_onnx(paths: Sequence[Path]) -> Runtime:
    """`open_model` of the model in these files: the ONNX file, and its data where it has any.

    Raises:
        StageError: It cannot be read, or nothing can run it.
    """
    return open_model(onnx_file.read(paths))


def open_model(model: onnx.ModelProto) -> Runtime:
    """ONNX Runtime's CPU provider; where it cannot run the model, ONNX's reference evaluator.

    ONNX Runtime lacks CPU kernels for bfloat16, and takes no bfloat16 from NumPy.

    NOTE: graph optimizations are off. With them explicit Q/DQ becomes integer kernels, which round otherwise than
    TensorRT (and saturate in 16 bits on CPUs without VNNI), and the numbers would be about another model.

    Args:
        model: As `onnx_file.read` gives it.

    Raises:
        StageError: Neither can run it; says why of both.
    """
    import onnxruntime

    inputs = model_inputs(model)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    try:
        session = open_session(model, options)
    except Exception as error:  # ONNX Runtime's errors have no base class of their own
        return _reference_evaluator(model, inputs, first_line(error))
    values = [*session.get_inputs(), *session.get_outputs()]
    foreign = next((value for value in values if value.type not in _NUMPY_TYPES), None)
    if foreign is not None:
        return _reference_evaluator(model, inputs, f"{foreign.name!r} is {foreign.type}, which NumPy has not")
    names = [output.name for output in session.get_outputs()]

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        try:
            return dict(zip(names, session.run(names, cast_feed(feed, inputs)), strict=True))
        except StageError:
            raise
        except Exception as error:
            hint = "check the data, or the model with the ONNX Runtime of the user's own choice"
            raise StageError(f"ONNX Runtime cannot run the model on this batch: {first_line(error)}", hint) from error

    return Runtime(ONNX_RUNTIME, inputs, run)


_NUMPY_TYPES = frozenset(
    f"tensor({name})"
    for name in (
        *("float", "double", "float16", "bool"),
        *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    )
)


def _reference_evaluator(model: onnx.ModelProto, inputs: Sequence[Input], why: str) -> Runtime:
    from onnx.reference import ReferenceEvaluator

    def neither(error: Exception) -> StageError:
        return StageError(
            f"neither ONNX Runtime ({why}) nor ONNX's reference evaluator ({first_line(error)}) can run this model",
            f"leave validation out: {WITHOUT_VALIDATION}",
        )

    try:
        evaluator = ReferenceEvaluator(onnx_file.inlined(model))
    except Exception as error:  # whatever an operator's Python raises
        raise neither(error) from error
    names = [output.name for output in model.graph.output]
    spent = 0.0

    def run(feed: Mapping[str, Array]) -> dict[str, Array]:
        nonlocal spent
        cast, start = cast_feed(feed, inputs), time.monotonic()
        try:
            outputs = evaluator.run(names, cast)
        except Exception as error:
            raise neither(error) from error
        spent += time.monotonic() - start
        if spent > REFERENCE_LIMIT_SECONDS:
            raise StageError(
                f"ONNX Runtime cannot run this model ({why}), and ONNX's reference evaluator is too slow for it: "
                f"over {REFERENCE_LIMIT_SECONDS:.0f} seconds",
                "lower model.holdout.max_samples (or steps.validate.config.generated_samples), "
                f"or leave validation out: {WITHOUT_VALIDATION}",
            )
        return dict(zip(names, outputs, strict=True))

    return Runtime(REFERENCE_EVALUATOR, inputs, run, why)


@contextmanager
def open_plan(path: Path, backend: str, profiles: Sequence[Profile]) -> Iterator[Runtime]:
    """The plan at `path` on this machine's GPU, through Polygraphy's runner.

    Raises:
        StageError: The plan cannot be loaded, or a batch lies in none of its profiles.
    """
    _show_cuda_runtime()
    # Polygraphy decides for good at its first import which of the two it loads.
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = backends.find(backend).polygraphy
    from polygraphy.backend.common import BytesFromPath
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner
    from polygraphy.exception import PolygraphyException

    try:
        with TrtRunner(EngineFromBytes(BytesFromPath(str(path)))) as runner:
            metadata = runner.get_input_metadata(use_numpy_dtypes=True)
            inputs = [Input(name, str(value.dtype), None) for name, value in metadata.items()]

            def run(feed: Mapping[str, Array]) -> dict[str, Array]:
                if profiles:
                    runner.set_profile(profile_index(profiles, feed))
                # The runner reuses its buffers in the next run.
                return {name: _copied(value) for name, value in runner.infer(cast_feed(feed, inputs)).items()}

            yield Runtime(backend, inputs, run)
    except PolygraphyException as error:
        raise _not_executed(first_line(error)) from error


def _show_cuda_runtime() -> None:
    """Puts CUDA's runtime where Polygraphy 0.53 looks: neither where CUDA 13's wheels nor where ldconfig have it.

    Raises:
        StageError: There is none: TensorRT-RTX needs none itself, and so its wheel brings none.
    """
    from cuda.pathfinder import DynamicLibNotFoundError, load_nvidia_dynamic_lib

    try:
        found = load_nvidia_dynamic_lib("cudart").abs_path
    except DynamicLibNotFoundError as error:
        hint = "pip install nvidia-cuda-runtime, or put the CUDA toolkit's libraries on LD_LIBRARY_PATH"
        raise StageError(
            "the plan cannot be executed: CUDA's runtime (libcudart) is not on this machine", hint
        ) from error
    if found:
        paths = [str(Path(found).parent), os.environ.get("LD_LIBRARY_PATH", "")]
        os.environ["LD_LIBRARY_PATH"] = os.pathsep.join(filter(None, paths))


def _not_executed(why: str) -> StageError:
    if _NO_MEMORY.search(why):
        return StageError(
            "the plan cannot be executed: out of device memory",
            "free memory on the GPU (nvidia-smi says who has it), or lower model.holdout.batch_size, or the max of the "
            "profiles",
        )
    return StageError(f"the plan cannot be executed: {why}", "trtforge doctor says what this machine can run")


def profile_index(profiles: Sequence[Profile], feed: Mapping[str, Array]) -> int:
    """The first profile that admits the feed's shapes, and the values of its shape tensors.

    Raises:
        StageError: None does.
    """
    for index, profile in enumerate(profiles):
        if all(found.admits(found.measure(feed[name])) for name, found in profile.ranges.items()):
            return index
    refused: dict[str, list[str]] = {}
    for profile in profiles:
        name, found = next((n, f) for n, f in profile.ranges.items() if not f.admits(f.measure(feed[n])))
        got = f"input {name!r} {'holds' if found.values else 'is'} {found.measure(feed[name])}"
        refused.setdefault(got, []).append(f"profile {profile.name!r} takes {found.min} to {found.max}")
    raise StageError(
        "; ".join(f"{got}, {', '.join(takes)}" for got, takes in refused.items()),
        "widen a profile (model.dims, model.profiles), or give held-out data that fit: the engine would refuse these; "
        "of a batch that is too large or too small, change model.holdout.batch_size or max_samples",
    )


def cast_feed(feed: Mapping[str, Array], inputs: Sequence[Input]) -> dict[str, Array]:
    """The feed in the types that these inputs have: a candidate may take fp16 where the reference takes fp32.

    Raises:
        StageError: An input is missing from the feed.
    """
    missing = [wanted.name for wanted in inputs if wanted.name not in feed]
    if missing:
        raise StageError(
            f"the model takes {', '.join(wanted.name for wanted in inputs)}, the reference {', '.join(feed)}",
            "a step between them renamed or added inputs: compare models with the same inputs",
        )
    return {wanted.name: feed[wanted.name].astype(wanted.dtype, copy=False) for wanted in inputs}


def _copied(value: Any) -> Array:
    import numpy as np

    if hasattr(value, "detach"):
        # Polygraphy hands out types that NumPy lacks as torch tensors.
        value = value.detach().cpu().float().numpy()
    copy: Array = np.array(value)
    return copy
