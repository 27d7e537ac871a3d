"""Small real models, and real stage runs in processes of their own, for the tests beside this file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from stages import split
from stages.stage import Job

VERSION = "1.7.1.116"
PROFILE = {"default": {"x": {"min": [1, 4, 8, 8], "opt": [4, 4, 8, 8], "max": [8, 4, 8, 8]}}}

RUN = """
import json, sys
from importlib import import_module
from pathlib import Path
from pipelines.child import restored
from stages.stage import Job, StageError
ask = json.loads(sys.argv[1])
stage = import_module("stages." + ask["stage"])
config = restored(stage.STAGE.config, ask["config"])
job = Job(config, {k: [Path(p) for p in v] for k, v in ask["inputs"].items()}, ask["facts"], Path(ask["out"]))
try:
    answer = {"metrics": stage.STAGE.run(job)}
except StageError as error:
    answer = {"what": error.what, "next": error.next_step}
print(json.dumps(answer))
"""


def facts(compute_capability: str = "8.9", profiles: Any = None, **others: Any) -> dict[str, Any]:
    return {
        "backend": "tensorrt_rtx",
        "backend_version": VERSION,
        "compute_capability": compute_capability,
        "gpu": None,
        "platform": "linux_x86_64",
        "profiles": profiles or {},
        "gpu_here": False,
        "calibration": None,
        "holdout": None,
        "metric": None,
        **others,
    }


def run_stage(
    stage: str, out: Path, inputs: dict[str, Path], config: Any = None, given: dict[str, Any] | None = None
) -> tuple[dict[str, Any], str]:
    """Runs a stage in a child process: TensorRT may end it. Returns the answer and the child's stderr."""
    out.mkdir(parents=True, exist_ok=True)
    ask = {
        "stage": stage,
        "config": config if isinstance(config, dict) else asdict(config) if config else {},
        "inputs": {name: [str(path)] for name, path in inputs.items()},
        "facts": given or facts(),
        "out": str(out),
    }
    command = [sys.executable, "-c", RUN, json.dumps(ask)]
    root = Path(__file__).parents[2]
    child = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=300)
    assert child.returncode == 0, child.stderr[-2000:]
    return json.loads(child.stdout.splitlines()[-1]), child.stderr


def parts(onnx: Path, out: Path, patterns: Sequence[str] = ()) -> dict[str, Path]:
    """Writes `structure` and `weights` of the model to `out`: all its weights, or those whose names fit a pattern."""
    out.mkdir()
    config = split.SplitConfig("named" if patterns else "any", [*patterns])
    split.split(Job(config, {"onnx": [onnx]}, {}, out))
    return {name: out / file for name, file in split.STAGE.outputs.items()}


def model(
    nodes: list[onnx.NodeProto],
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    weights: dict[str, Any] | None = None,
    dtype: int = TensorProto.FLOAT,
    opset: int = 22,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, dtype, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def save(proto: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(proto.SerializeToString())
    return path


def conv(path: Path, dtype: Any = np.float32) -> Path:
    """A convolution with a fixed shape: every capability builds it in FP32."""
    kernel = np.random.default_rng(1).standard_normal((4, 4, 3, 3)).astype(dtype)
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="conv0", pads=[1, 1, 1, 1])
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return save(model([node], {"x": [1, 4, 8, 8]}, {"y": [1, 4, 8, 8]}, {"w": kernel}, elem), path)


def classifier(
    path: Path, dtype: Any = np.float32, noise: float = 0.0, rename: str = "logits", batch: Any = "n", classes: int = 5
) -> Path:
    """Convolution, Relu and Gemm inside float32 inputs `x` (n, 4, 8, 8) and outputs (n, classes)."""
    random = np.random.default_rng(2)
    kernel = (random.standard_normal((8, 4, 3, 3)) * 0.2).astype(dtype)
    matrix = random.standard_normal((8 * 64, classes)) * 0.1
    matrix = (matrix + noise * np.random.default_rng(3).standard_normal(matrix.shape)).astype(dtype)
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Cast", ["x"], ["x0"], to=elem),
        helper.make_node("Conv", ["x0", "w"], ["c"], name="conv0", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["r"], name="relu0"),
        helper.make_node("Flatten", ["r"], ["f"], name="flatten0"),
        helper.make_node("Gemm", ["f", "g"], ["s"], name="gemm0"),
        helper.make_node("Cast", ["s"], [rename], to=TensorProto.FLOAT),
    ]
    weights = {"w": kernel, "g": matrix}
    return save(model(nodes, {"x": [batch, 4, 8, 8]}, {rename: [batch, classes]}, weights), path)


def one_node(path: Path, operator: str, name: str = "node7", domain: str = "", **attributes: Any) -> Path:
    node = helper.make_node(operator, ["x"], ["y"], name=name, domain=domain, **attributes)
    proto = model([node], {"x": [1, 4]}, {"y": [1, 4]})
    if domain:
        proto.opset_import.add(domain=domain, version=1)
    return save(proto, path)
