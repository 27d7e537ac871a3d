"""Models whose weights are large, made in no time and no memory: rows of numbers, repeated."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

SIDE = 4096
"""Of a weight: 64 MiB in float32. Five of them are more than trtforge keeps inside an ONNX file."""


def save(directory: Path, weights: int) -> Path:
    """Saves a model of so many MatMuls with (4096, 4096) weights, each in an external file of its own."""
    directory.mkdir(parents=True, exist_ok=True)
    rows = (np.random.default_rng(0).standard_normal((64, SIDE)) / 64).astype(np.float32)
    nodes, tensors = [], []
    for index in range(weights):
        with (directory / f"w{index}.bin").open("wb") as file:
            for _ in range(SIDE // 64):
                file.write((rows * (index + 1)).tobytes())
        tensor = TensorProto(name=f"w{index}", data_type=TensorProto.FLOAT, dims=[SIDE, SIDE])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"w{index}.bin")
        tensors.append(tensor)
        result = "y" if index == weights - 1 else f"h{index}"
        nodes.append(helper.make_node("MatMul", [f"h{index - 1}" if index else "x", f"w{index}"], [f"m{index}"]))
        nodes.append(helper.make_node("Tanh", [f"m{index}"], [result], name=f"tanh{index}"))
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, SIDE]) for name in "xy")
    graph = helper.make_graph(nodes, "heavy", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    path = directory / "heavy.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def flip(path: Path, offset: int) -> None:
    """Changes the lowest bit of one byte."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def locations(path: Path) -> set[str]:
    """The external files that the model at `path` names."""
    model = onnx.load(str(path), load_external_data=False)
    return {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
