"""What the stage `bench` asks of TensorRT, held against the bindings of one version of either backend.

The engine that the stand-ins have gives `x` (n, 4) back as `y`. CUDA's driver is a stand-in too, whose device is the
host: that the loop does what it says on a real one, tests/stages/test_gpu_timing.py shows. Run as a program this says
what becomes of TensorRT-RTX's bindings, as JSON.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from onnx import helper

from stages import bench, bench_gpu
from stages.bench import BenchConfig
from stages.gpu_timing import Copy
from stages.stage import Job
from tests.stages.contract_runs import behaving, environment, run
from tests.stages.stage_runs import facts, model, save
from tests.stages.stand_ins import Api, plan_of

PROFILES = {
    "large": {"x": {"min": [8, 4], "opt": [16, 4], "max": [32, 4]}},
    "small": {"x": {"min": [1, 4], "opt": [2, 4], "max": [8, 4]}},
}
SHORT = BenchConfig(warmup_iterations=1, warmup_ms=0, iterations=3, duration_ms=0, streams=[1, 2])

ORDER = (
    "Runtime",
    "IPluginRegistry.load_library",
    "Runtime.deserialize_cuda_engine",
    "ICudaEngine.create_execution_context",
    "IExecutionContext.set_optimization_profile_async",
    "ICudaEngine.get_tensor_name",
    "IExecutionContext.set_input_shape",
    "IExecutionContext.set_tensor_address",
    "IExecutionContext.get_max_output_size",
    "IExecutionContext.execute_async_v3",
)
"""In which a plan is made ready and run."""

FAILS = {
    "loads": "the plan cannot be loaded: TensorRT gives no reason",
    "runs": "the plan cannot be executed: TensorRT gives no reason",
    "profile": "the plan does not take its profile number 0",
    "shape": "the plan does not take 'x' of (8, 4)",
    "address": "the plan does not take the address of 'x'",
    "size": "the plan does not say how large 'y' can be",
    "run": "TensorRT cannot run the plan",
    "inputs": "the plan takes x, and the ONNX file z",
}
"""What is said of each case that is to fail."""


def make(out: Path) -> None:
    """Writes the models and a library, into `out`, which is made."""
    out.mkdir()
    for name in "xz":
        node = helper.make_node("Identity", [name], ["y"])
        save(model([node], {name: ["n", 4]}, {"y": ["n", 4]}), out / f"{name}.onnx")
    (out / "libmine.so").touch()


def answers(bindings: Any, out: Path) -> dict[str, Any]:
    """What becomes of each case."""
    with environment(STAND_IN_CAPTURES_NOTHING="1"):
        uncaptured = benched(bindings, out, replace(SHORT, points=["opt"]))
    asked = ("profile", "shape", "address", "size", "run")
    refused = {name: benched(bindings, out, Context_refuses=(name,)) for name in asked}
    return {
        "": benched(bindings, out),
        "uncaptured": uncaptured,
        "vectorized": benched(bindings, out, replace(SHORT, points=["small.min"]), Engine_vectorized=1),
        "on host": benched(bindings, out, Engine_on_host=("x", "y"), Context_shape=(2, 4)),
        "loads": benched(bindings, out, Runtime_loads=False),
        "runs": benched(bindings, out, Engine_runs=False),
        **refused,
        "inputs": benched(bindings, out, name="z"),
    }


def benched(bindings: Any, out: Path, config: BenchConfig = SHORT, name: str = "x", **behaviour: Any) -> dict[str, Any]:
    """What the stage answers, its report, its times, and whether the outputs that were copied back are the inputs."""
    # Without a body: an engine that gives back what it takes.
    (out / "model.plan").write_bytes(plan_of(bindings, {}, refittable=False).replace(b"BODY", bytes(4)))
    for file in bench.STAGE.outputs.values():
        (out / file).unlink(missing_ok=True)
    backend = "tensorrt_rtx" if bindings.__name__ == "tensorrt_rtx" else "tensorrt"
    profiles = {each: {name: ranges["x"]} for each, ranges in PROFILES.items()}
    machine = {"cpu": "any", "cores": 1, "gpu": "NVIDIA L4"}
    version = bindings.__version__
    given = facts(backend=backend, backend_version=version, profiles=profiles, gpu_here=True, machine=machine)
    inputs = {"onnx": [out / f"{name}.onnx"], "plan": [out / "model.plan"], "plugins": [out / "libmine.so"]}
    same: list[bool] = []
    timed = bench_gpu._run

    def watched(lanes: Any, *others: Any) -> Any:
        found = timed(lanes, *others)
        same.extend(_content(lane.workload.inputs) == _content(lane.workload.outputs) for lane in lanes)
        return found

    with behaving(**behaviour), mock.patch.object(bench_gpu, "_run", watched):
        answer = run(Api(bindings), lambda: bench.bench(Job(config, inputs, given, out)))
    written = [out / file for file in bench.STAGE.outputs.values() if (out / file).exists()]
    return {**answer, **{path.name: json.loads(path.read_text()) for path in written}, "same": same}


def _content(copies: list[Copy]) -> list[bytes]:
    """What the host has of them."""
    return [np.ctypeslib.as_array((ctypes.c_uint8 * each.bytes).from_address(each.host)).tobytes() for each in copies]


def main(out: Path) -> None:
    import tensorrt_rtx

    make(out)
    gc.freeze()  # each run of an engine looks for what was let go of: not among what was imported
    print(json.dumps(answers(tensorrt_rtx, out)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
