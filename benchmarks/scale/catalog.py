"""Small models, no two alike: other layers, other weights, each with a config of its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

QUEUES = {"sm_75": "t4", "sm_80": "a100", "sm_86": "a10", "sm_89": "l4"}
"""Work queue -> the target that is built for there. TensorRT-RTX builds for all of them on any machine."""

FLOW = "lean"
# What a plan cannot do without, so that hundreds are built in minutes: no surgery, no validation.
_FLOW = """# @package _global_
steps:
  export:
    stage: export
    inputs: {onnx: model.onnx, weights: model.weights, source: model.source}
  build:
    stage: build
    inputs: {onnx: export.onnx}
  publish:
    stage: publish
    inputs: {plan: build.plan}
    config:
      model: ${model.name}
      flow: ${flow}
"""
_MODEL = "source: onnx\npath: {path}\n"
_OPSET = 20
_IR_VERSION = 10
_ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "LeakyRelu")


def name_of(number: int) -> str:
    """The name of a model: `net_0007`."""
    return f"net_{number:04}"


def write(home: Path, count: int) -> Path:
    """Writes `count` models, and the config directory that lists them and the flow."""
    directory = home / "catalog"
    for group in ("model", "flow"):
        (directory / group).mkdir(parents=True, exist_ok=True)
    (home / "models").mkdir(exist_ok=True)
    (directory / "flow" / f"{FLOW}.yaml").write_text(_FLOW)
    for number in range(count):
        path = home / "models" / f"{name_of(number)}.onnx"
        onnx.save(model(number), str(path))
        (directory / "model" / f"{name_of(number)}.yaml").write_text(_MODEL.format(path=path))
    return directory


def model(number: int) -> onnx.ModelProto:
    """Convolutions alone, as 7.5 has no FP32 matrix products; `number` decides how many, how wide, and of what."""
    random = np.random.default_rng(number)
    nodes, weights, last, channels = [], [], "x", 3
    for layer in range(1 + number % 4):
        wide = int(random.integers(4, 24))
        kernel = int(random.choice([1, 3, 5]))
        shape = (wide, channels, kernel, kernel)
        weights.append(numpy_helper.from_array(random.normal(0, 0.1, shape).astype(np.float32), f"w{layer}"))
        pads = [kernel // 2] * 4
        nodes.append(helper.make_node("Conv", [last, f"w{layer}"], [f"c{layer}"], f"conv{layer}", pads=pads))
        activation = str(random.choice(_ACTIVATIONS))
        nodes.append(helper.make_node(activation, [f"c{layer}"], [f"a{layer}"], f"act{layer}"))
        last, channels = f"a{layer}", wide
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["y"], "pool"))
    graph = helper.make_graph(
        nodes,
        name_of(number),
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, channels, 1, 1])],
        weights,
    )
    opsets = [helper.make_opsetid("", _OPSET)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION)
