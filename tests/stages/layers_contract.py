"""What the stage `layers` asks of TensorRT, held against the bindings of one version.

The engine that the stand-ins have takes `x` (n, 4), and a profiler is told of its layers `mm0` and `reformat`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from onnx import helper

from stages import layers
from stages.layers import LayersConfig
from stages.stage import Job
from tests.stages.contract_runs import behaving, run
from tests.stages.stage_runs import facts, model, save
from tests.stages.stand_ins import Api, header

PROFILES = {"default": {"x": {"min": [1, 4], "opt": [2, 4], "max": [8, 4]}}}
MORE = {**PROFILES, "large": {"x": {"min": [8, 4], "opt": [16, 4], "max": [32, 4]}}}
TOLD = {
    "Layers": [
        {
            "Name": "reformat",
            "LayerType": "Reformat",
            "Inputs": [{"Name": "x", "Format/Datatype": "Row major linear FP32"}],
            "Outputs": [{"Name": "c", "Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format."}],
            "Metadata": "",
        },
        {
            "Name": "mm0",
            "LayerType": "CaskGemmMatrixMultiply",
            "Inputs": [{"Name": "c", "Format/Datatype": "Int8"}],
            "Outputs": [{"Name": "y", "Format/Datatype": "Half"}],
            "Weights": {"Type": "Int8", "Count": 16},
            "Metadata": "[ONNX Layer: mm0]\x1e[ONNX Layer: w_dequantized]\x1e[ONNX Layer: mm0]",
        },
    ]
}
"""As the inspector words it, of a matrix product in INT8."""

NAMES = {"Layers": ["reformat", "mm0"], "Bindings": ["x", "y"]}
SHORT = LayersConfig(iterations=4, warmup=1)


def make(out: Path) -> None:
    """Writes the model, and a library, into `out`, which is made."""
    out.mkdir()
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="mm0")
    save(model([node], {"x": ["n", 4]}, {"y": ["n", 4]}, {"w": np.eye(4, dtype=np.float32)}), out / "model.onnx")
    (out / "libmine.so").touch()


def answers(bindings: Any, out: Path) -> dict[str, Any]:
    """What becomes of each case."""
    return {
        "": reported(bindings, out),
        "names": reported(bindings, out, Inspector_text=json.dumps(NAMES)),
        "none": reported(bindings, out, Inspector_text=json.dumps({"Layers": []})),
        "no JSON": reported(bindings, out, Inspector_text="layers: 2"),
        "otherwise": reported(bindings, out, Context_times={"{ForeignNode[mm0]}": 1.0}),
        "untimed": reported(bindings, out, replace(SHORT, iterations=0)),
        "two": reported(bindings, out, profiles=MORE),
        "alone": reported(bindings, out, with_model=False),
        "run": reported(bindings, out, Context_refuses=("run",)),
    }


def reported(
    bindings: Any,
    out: Path,
    config: LayersConfig = SHORT,
    profiles: Any = PROFILES,
    with_model: bool = True,
    **behaviour: Any,
) -> dict[str, Any]:
    """What the stage answers, and its report."""
    (out / "model.plan").write_bytes(header(bindings.__version__))
    (out / "layers.json").unlink(missing_ok=True)
    given = facts(backend="tensorrt", backend_version=bindings.__version__, profiles=profiles, gpu_here=True)
    inputs = {"plan": [out / "model.plan"], "plugins": [out / "libmine.so"]}
    inputs |= {"onnx": [out / "model.onnx"]} if with_model else {}
    with behaving(**{"Inspector_text": json.dumps(TOLD), **behaviour}):
        answer = run(Api(bindings), lambda: layers.layers(Job(config, inputs, given, out)))
    written = out / "layers.json"
    return {**answer, "report": json.loads(written.read_text()) if written.exists() else None}
