"""Run by test_contract.py in a process of its own, with the bindings of one version: says what was called, as JSON.

What is asked of CUDA's driver and runtime goes to libraries that stand in for them: one GPU, an L4.
"""

from __future__ import annotations

import gc
import inspect
import json
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import onnx
import tensorrt_bindings
from onnx import helper

from docs.tensorrt_api import BESIDE, CLASS, ENUMS
from stages import build, engine_layers, operators, refit, validate
from stages.build_config import BuildConfig
from stages.knobs import KNOBS
from stages.refit import RefitConfig
from stages.stage import Job, Memory, StageError
from stages.validate import ValidateConfig
from tests.stages import bench_contract, layers_contract, refit_contract, stand_ins, tensorrt_calls
from tests.stages.contract_runs import ASKED, Current, behaving, run
from tests.stages.knob_values import configured
from tests.stages.shape_tensors import ranges, shaper
from tests.stages.stage_runs import PROFILE, classifier, facts, model, save
from tests.stages.stand_ins import Api, header

SOURCES = tensorrt_calls.sources()
PLAIN = BuildConfig()
VERSION = tensorrt_bindings.__version__
COPY = {"default": {"x": {"min": [1, 4], "opt": [2, 4], "max": [8, 4]}}}
"""Of the model that the stand-in of an engine executes."""
SAID = "IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any implementation for node n.)"
FACTS = facts(backend="tensorrt", backend_version=VERSION, gpu="NVIDIA L4", profiles=PROFILE, gpu_here=True)


def names() -> list[str]:
    """What docs/tensorrt_api.json would hold of this version."""
    found = [f"{CLASS}.{name}" for name in dir(tensorrt_bindings.IBuilderConfig) if not name.startswith("_")]
    for name in BESIDE:
        kind, _, member = name.partition(".")
        found += [name] if hasattr(getattr(tensorrt_bindings, kind), member) else []
    for enum in ENUMS:
        found += [f"{enum}.{member}" for member in getattr(tensorrt_bindings, enum).__members__]
    return found


def job(config: Any, out: Path, profiles: Any = PROFILE, **inputs: list[Path]) -> Job[Any]:
    onnx = [out / "model.onnx", out / "weights.bin"]
    return Job(config, {"onnx": onnx, **inputs}, {**FACTS, "profiles": profiles}, out)


def built(path: str, out: Path) -> dict[str, Any]:
    config = configured(path)
    api = Api(tensorrt_bindings)
    return run(api, lambda: build.build(job(config, out, plugins=[out / "libmine.so"])))


def built_anyhow(out: Path, config: BuildConfig = PLAIN, **behaviour: Any) -> dict[str, Any]:
    """What `build` says where stand-ins behave otherwise: `Builder_says="…"`."""
    with behaving(**behaviour):
        return run(Api(tensorrt_bindings), lambda: build.build(job(config, out)))


def refittable(out: Path) -> dict[str, Any]:
    """By mode: with which flags a plan was built whose weights come later, and which of its weights were marked."""
    seen: list[tuple[list[str], list[str]]] = []
    build_plan = stand_ins.Builder.build_serialized_network

    def watched(self: Any, api: Api, network: Any, config: Any) -> bytes | None:
        # TensorRT 10 has two names for one flag.
        flags = sorted(flag.replace("WEIGHTLESS", "STRIP_PLAN") for flag in config._behaviour.flags)
        seen.append((flags, network._behaviour.marked))
        return build_plan(self, api, network, config)

    modes = {
        "any": BuildConfig(refit="any", strip_plan=True),
        "identical": BuildConfig(refit="identical"),
        "named": BuildConfig(refit="named", refittable_weights=["w*", "g"], strip_plan=True),
        "stripped": BuildConfig(strip_plan=True),
    }
    with mock.patch.object(stand_ins.Builder, "build_serialized_network", watched):
        answers = {mode: built_anyhow(out, config) for mode, config in modes.items()}
    return {mode: [answers[mode].get("error"), *found] for mode, found in zip(modes, seen, strict=True)}


def built_by_values(out: Path) -> dict[str, Any]:
    given = job(PLAIN, out, {"default": ranges()}, onnx=[shaper(out / "shaper.onnx")])
    return run(Api(tensorrt_bindings), lambda: build.build(given))


def not_started(out: Path) -> dict[str, str | None]:
    """What each stage says where TensorRT gives no builder or runtime: the bindings themselves, without libraries."""
    refits = out / "refits"
    stages: dict[str, Callable[[], Any]] = {
        "build": lambda: build.build(job(PLAIN, out)),
        "operators": lambda: operators.operators(job(operators.OperatorsConfig(), out)),
        "refit": lambda: refit.refit(
            refit_contract.job(tensorrt_bindings, refits, "none", RefitConfig(), refits / "scale", refits / "old.plan")
        ),
    }
    with mock.patch.object(stand_ins, "MADE_HERE", ()):
        return {name: run(Api(tensorrt_bindings), work).get("error") for name, work in stages.items()}


def validated(out: Path, device_bytes: int = 1 << 30) -> dict[str, Any]:
    """A plan is executed by Polygraphy, which takes its `tensorrt` from the stand-ins, and memory from CUDA's."""
    (out / "old.plan").write_bytes(header(VERSION))
    os.environ["STAND_IN_DEVICE_BYTES"] = str(device_bytes)
    os.environ.pop("LD_LIBRARY_PATH", None)  # the loader has read it; Polygraphy would look nowhere else
    api = Api(tensorrt_bindings)
    copy, plugins = [out / "copy.onnx"], [out / "libmine.so"]
    given = job(ValidateConfig(), out, COPY, onnx=copy, reference=copy, plan=[out / "old.plan"], plugins=plugins)
    return run(api, lambda: validate.validate(given))


def timed(out: Path, *known: str, config: BuildConfig = PLAIN, **behaviour: Any) -> dict[str, Any]:
    """What `build` makes of timing caches that hold these words, and of what it timed itself."""
    learnt, paths = out / "timing.cache", [out / f"{number}.cache" for number in range(len(known))]
    learnt.unlink(missing_ok=True)
    for path, words in zip(paths, known, strict=True):
        path.write_text(words)
    given = replace(job(config, out), memory=Memory(paths, learnt))
    with behaving(**behaviour):
        answer = run(Api(tensorrt_bindings), lambda: build.build(given))
    return {**answer, "learnt": learnt.read_text() if learnt.exists() else None}


def stopped(out: Path) -> dict[str, Any]:
    """A build whose report of progress fails: TensorRT is told to stop, and its error is the step's."""

    def progress(phase: str, fraction: float | None) -> None:
        if phase == "Building":
            raise StageError("no one listens")

    given = replace(job(BuildConfig(), out), progress=progress)
    return run(Api(tensorrt_bindings), lambda: build.build(given))


def refused_by_parser(out: Path, **behaviour: Any) -> dict[str, Any]:
    """What `build` says of a model that the parser refuses, and what `operators` writes of it."""
    building, listing = Api(tensorrt_bindings), Api(tensorrt_bindings)
    with behaving(Parser_refuses=True, **behaviour):
        failed = run(building, lambda: build.build(job(BuildConfig(), out)))
        listed = run(listing, lambda: operators.operators(job(operators.OperatorsConfig(), out)))
    refused = json.loads((out / "operators.json").read_text())["refused"]
    return {"build": failed, "operators": listed, "refused": refused}


def callbacks() -> dict[str, list[int]]:
    """Of each method of ours that TensorRT calls: how many arguments it takes, and how many the bindings give."""
    api = Api(tensorrt_bindings)
    ours = (
        build._monitor(api, lambda phase, fraction: None),
        build.make_logger(api),
        engine_layers.make_profiler(api),
    )
    found = {}
    for made in ours:
        base = type(made).__mro__[1]
        for name in {*vars(type(made))} & {*vars(base)} - {"__init__", "__doc__", "__module__"}:
            ((given, _),) = stand_ins.parameters(getattr(base, name).__doc__, name)
            found[f"{base.__name__}.{name}"] = [len(inspect.signature(getattr(made, name)).parameters), len(given) - 1]
    return found


def network_flags(out: Path) -> list[str]:
    """Names of the flags that networks are made with."""
    made: list[int] = []
    api = Api(tensorrt_bindings)
    method = api.method

    def watched(of: Any, name: str) -> Any:
        found = method(of, name)
        return (lambda flags: made.append(flags) or found(flags)) if name == "create_network" else found

    api.method = watched  # type: ignore[method-assign]
    answer = run(api, lambda: build.build(job(BuildConfig(), out)))
    assert "error" not in answer, answer
    members = tensorrt_bindings.NetworkDefinitionCreationFlag.__members__.items()
    return [name for name, flag in members if made[0] & 1 << int(flag)]


def refused() -> list[str]:
    """What the stand-ins say to calls that no version takes."""
    api = Api(tensorrt_bindings)
    logger = tensorrt_bindings.Logger()
    builder = api.Builder(logger)
    config = builder.create_builder_config()
    wrong: list[Callable[[], Any]] = [
        lambda: config.no_such_setting,
        lambda: setattr(config, "no_such_setting", 1),
        lambda: setattr(config, "max_aux_streams", "many"),
        lambda: config.set_flag(tensorrt_bindings.TacticSource.JIT_CONVOLUTIONS),
        lambda: config.set_memory_pool_limit(tensorrt_bindings.MemoryPoolType.WORKSPACE),
        lambda: builder.create_network(1, 2),
    ]
    said = []
    for each in wrong:
        try:
            said.append(f"taken: {each()}")
        except (AttributeError, AssertionError) as error:
            said.append(repr(error))
    return said


def answers(out: Path) -> dict[str, Any]:
    having = [knob.path for knob in KNOBS if knob.tensorrt.has(VERSION)]
    return {
        "version": VERSION,
        "names": names(),
        "knobs": {path: built(path, out) for path in having},
        "shape_tensor": built_by_values(out),
        "builds": {
            "no plan": built_anyhow(out, Builder_says=SAID),
            "profile": built_anyhow(out, Config_takes_profiles=False),
            "flag": built_anyhow(out, configured("strict_nans"), Config_deaf=True),
            "device": built_anyhow(out, configured("layer_device_types"), Config_deaf=True),
            "format": built_anyhow(out, configured("io_formats"), Tensor_allowed_formats=1),
            "tensor": built_anyhow(out, BuildConfig(io_formats={"z": ["linear"]})),
            "layer": built_anyhow(out, BuildConfig(layer_device_types={"gemm*": "dla"})),
            "pattern": built_anyhow(out, BuildConfig(refit="named", refittable_weights=["w", "lora*"])),
            "weights": built_anyhow(out, BuildConfig(refit="named", refittable_weights=["*"]), Network_lacks=("g",)),
            "nothing": built_anyhow(out, Network_num_layers=0),
            "stopped": stopped(out),
        },
        "refittable": refittable(out),
        "timings": {
            "none": timed(out),
            "two": timed(out, "gemm", "pool conv"),
            "foreign": timed(out, "foreign", "gemm", "junk", "foreign pool"),
            "all foreign": timed(out, "foreign"),
            "strict": timed(out, config=BuildConfig(error_on_miss=True)),
            "first pinned": timed(out, config=BuildConfig(pin_tactics=True, error_on_miss=True)),
            "pinned": timed(out, "conv", config=BuildConfig(pin_tactics=True)),
            "missed": timed(out, "gemm", config=BuildConfig(pin_tactics=True)),
            "pinned elsewhere": timed(out, "foreign conv", config=BuildConfig(pin_tactics=True)),
            "lenient": timed(out, "gemm", config=BuildConfig(pin_tactics=True, error_on_miss=False)),
            "failed": timed(out, "gemm", Builder_says=SAID),
        },
        "refits": refit_contract.answers(tensorrt_bindings, out / "refits"),
        "bench": bench_contract.answers(tensorrt_bindings, out / "bench"),
        "layers": layers_contract.answers(tensorrt_bindings, out / "layers"),
        "validate": validated(out),
        "no_memory": validated(out, device_bytes=8),
        "not_started": not_started(out),
        "refused_by_parser": refused_by_parser(out),
        "unnamed": refused_by_parser(out, ParserError_name=""),
        "unnumbered": refused_by_parser(out, ParserError_name="", ParserError_number=-1),
        "network_flags": network_flags(out),
        "refused": refused(),
        "callbacks": callbacks(),
    }


def main(out: Path) -> None:
    with_data = onnx.load(classifier(out / "model.onnx"))
    onnx.save(with_data, out / "model.onnx", save_as_external_data=True, location="weights.bin")
    node = helper.make_node("Identity", ["x"], ["y"])
    save(model([node], {"x": ["n", 4]}, {"y": ["n", 4]}), out / "copy.onnx")
    (out / "libmine.so").touch()
    refit_contract.make(out / "refits")
    bench_contract.make(out / "bench")
    layers_contract.make(out / "layers")
    sys.modules["tensorrt"] = Current()  # type: ignore[assignment]
    gc.freeze()  # what was imported is not looked through 200 times: 15 s
    with tensorrt_calls.traced() as ran:
        answer = answers(out)
    calls = tensorrt_calls.calls(tensorrt_calls.names(tensorrt_bindings), SOURCES)
    answer["calls"] = {
        "made": [str(site) for site in calls.made],
        "lacking": [site.name for site in calls.lacking if tensorrt_calls.is_long(site.name)],
        "overlooked": [str(site) for site in calls.overlooked],
        "unreached": [str(site) for site in calls.unreached(ran, ASKED)],
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
