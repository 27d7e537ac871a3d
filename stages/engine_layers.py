"""What TensorRT itself says of a plan's layers on a GPU that executes it: the engine inspector, and a profiler's times.

The inspector's JSON is documented by an example alone::

    {"Layers": [{"Name": "conv1", "LayerType": "CaskConvolution", "ParameterType": "Convolution",
                 "Inputs": [{"Name": "x", "Format/Datatype": "Half"}], "Outputs": […],
                 "Weights": {"Type": "Int8", "Count": 131072}, "Metadata": "[ONNX Layer: conv1]"}]}

It has details only of plans that were built with `profiling_verbosity: detailed`; of others a layer is its name alone.
No more is read than names, types (`stages.tensorrt_words`), ONNX nodes and weights.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from stages import batches, generated, layer_report, profiles
from stages.cuda_device import Device
from stages.engine_workload import Engine
from stages.gpus import use
from stages.layer_report import Layer, ProfileLayers, Report
from stages.stage import Job, StageError
from stages.tensorrt_words import is_product, type_of

if TYPE_CHECKING:
    from onnx import ModelProto

_BITS = {"float": 32, "half": 16, "bf16": 16, "int64": 64, "int32": 32, "int4": 4, "fp4_e2m1": 4, "double": 64}
"""Of the types of weights; all others have 8."""

_NODE = re.compile(r"\[ONNX Layer: (.*?)\](?=$|[\x1e\x1f])")

_NAMES_ONLY = "the plan has only the names of its layers: build it with steps.build.config.profiling_verbosity=detailed"


@dataclass(frozen=True)
class Timing:
    """How often a plan is run: `warmup` times first, then `iterations` times, of which a layer's time is the mean."""

    iterations: int
    warmup: int


def asked(report: Report, job: Job[Any], model: ModelProto | None, timing: Timing) -> Report:
    """`report` with what the GPU knows: layers where the plan held no text of them, and times.

    Args:
        report: What the plan says.
        job: Its `plan`, `plugins` and facts.
        model: What the plan was built from; without it nothing is timed.
        timing: How often to run it; `iterations` 0: not at all.

    Raises:
        StageError: The plan cannot be executed here.
    """
    use(job.facts["compute_capability"], None)
    job.progress("execute", None)
    engine = Engine(job.facts["backend"], job.file("plan"), job.inputs.get("plugins", ()))
    found = profiles.profiles_of(job.facts["profiles"])
    if report.unread_reason:
        report = inspected(report, engine.engine, engine.trt, model, found)
    if not timing.iterations:
        return replace(report, timed_reason="iterations is 0")
    if model is None:
        return replace(report, timed_reason="without the model nobody knows inputs for it")
    return timed(report, engine, model, found, timing)


def inspected(
    report: Report, engine: Any, trt: Any, model: ModelProto | None, found: Sequence[profiles.Profile]
) -> Report:
    """`report` with the layers that the inspector knows; of a plan with several profiles, those of all in one."""
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    told = told_layers(text)
    if not told:
        return replace(report, unread_reason="TensorRT's inspector knows no layer: profiling_verbosity is none")
    held: Counter[str] = Counter()
    for each in told:
        for kind in each.weights[:1]:
            held[layer_report.PRECISIONS.get(kind, layer_report.UNKNOWN)] += each.weight_bytes
    only = found[0] if len(found) == 1 else None
    read = ProfileLayers(only.name if only else None, None, told, dict(held))
    named = None if any(each.reads or each.writes for each in told) else _NAMES_ONLY
    return replace(
        report,
        source="engine",
        unread_reason=named,
        profiles=[layer_report.with_model(read, model, found[0] if found else None)],
    )


def told_layers(text: str) -> list[Layer]:
    """The layers that the inspector tells of in JSON.

    Raises:
        StageError: It is no such JSON.
    """
    try:
        given = json.loads(text)["Layers"]
        return [_layer({"Name": each} if isinstance(each, str) else each) for each in given]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(
            f"TensorRT's inspector says something else than layers: {error!r}",
            "leave the step layers out, and report this with the version of TensorRT",
        ) from error


def timed(
    report: Report, engine: Engine, model: ModelProto, found: Sequence[profiles.Profile], timing: Timing
) -> Report:
    """`report` with the mean time of each layer, each profile at its opt.

    A plan's text and TensorRT's profiler may call layers differently: then none has a time, and the report says so.
    """
    inputs = batches.model_inputs(model)
    read, reason = list(report.profiles), None
    for number, each in enumerate(found or [None]):
        feed = generated.at(inputs, found, each, "opt", seed=0)
        times = _times(engine, number, feed, timing)
        at = min(number, len(read) - 1)
        if read and len(read) in (1, len(found)):
            read[at], missed = with_times(read[at], times)
            reason = reason or missed
    return replace(report, profiles=read, timed_reason=reason if read else "no layer is known")


def with_times(read: ProfileLayers, times: Mapping[str, float]) -> tuple[ProfileLayers, str | None]:
    """`read` with these times in milliseconds, by name; and why none of them is in it, if so.

    Of layers with one name the profiler tells the sum: each gets an equal part.
    """
    names = Counter(layer.name for layer in read.layers)
    if not names.keys() & times.keys():
        told = ", ".join(list(times)[:3]) or "nothing"
        return read, f"TensorRT's profiler tells of {told}, which the plan calls otherwise"
    parts = {name: round(times[name] / names[name], 6) for name in names if name in times}
    return replace(read, layers=[replace(layer, ms=parts.get(layer.name, layer.ms)) for layer in read.layers]), None


def _times(engine: Engine, profile: int, feed: Mapping[str, Any], timing: Timing) -> dict[str, float]:
    """Mean milliseconds of each layer, by the profiler's names."""
    with Device() as device:
        stream = device.stream()
        workload = engine.workload(device, stream, profile, feed)
        for _ in range(timing.warmup):
            workload.enqueue(stream)
        device.synchronize(stream)
        profiler = make_profiler(engine.trt)
        workload.context.profiler = profiler
        for _ in range(timing.iterations):
            workload.enqueue(stream)
            device.synchronize(stream)
        del workload  # TensorRT's context knows the profiler by its address
    return {name: total / timing.iterations for name, total in profiler.totals.items()}


def make_profiler(trt: Any) -> Any:
    """An `IProfiler` that adds up what it is told, in `profiler.totals`: milliseconds by the name of the layer."""

    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.totals: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.totals[layer_name] = self.totals.get(layer_name, 0.0) + ms

    return Profiler()


def _layer(told: Mapping[str, Any]) -> Layer:
    reads, writes = ([type_of(each["Format/Datatype"]) for each in told.get(end, ())] for end in ("Inputs", "Outputs"))
    weights = told.get("Weights") or {}
    held = [type_of(weights["Type"])] if weights.get("Count") else []
    kind = str(told.get("LayerType", layer_report.UNKNOWN))
    product = is_product(f"{kind} {told.get('ParameterType', '')}")
    # What it reads is the one factor, its weights are the other; a matrix product of two tensors reads both.
    factors = [*reads, *held][:2]
    return Layer(
        name=str(told["Name"]),
        kind=kind,
        product=product,
        precision=layer_report.precision(product, factors, (*reads, *writes)),
        reads=(*reads, *held),
        weights=tuple(held),
        writes=tuple(writes),
        weight_bytes=sum((int(weights["Count"]) * _BITS.get(each, 8) + 7) // 8 for each in held),
        nodes=tuple(dict.fromkeys(_NODE.findall(str(told.get("Metadata", ""))))),
    )
