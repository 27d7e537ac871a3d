"""What the tests of placement share: a graph as text, and what is placed in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from stages.plan_graph import Operation
from stages.quantization import place
from stages.quantize import STAGE, QuantizeConfig
from tests.stages.rewriting import parsed, plan_graph_of, run, saved


def graph(body: str, x: str = "4, 32, 16, 16", y: str = "", **weights: Any) -> onnx.ModelProto:
    """A model of the nodes of `body` from `x` of this shape to `y`; weights given as a shape are random."""
    rng = np.random.default_rng(0)
    values = {
        name: rng.standard_normal(value) / np.sqrt(np.prod(value[1:])) if isinstance(value, tuple) else value
        for name, value in weights.items()
    }
    head = f'<ir_version: 10, opset_import: ["": 20]> g (float[{x}] x) => (float[{y or x}] y)'
    return parsed(f"{head} {{ {body} }}", **values)


def reads(model: onnx.ModelProto, operator: str, **options: Any) -> list[tuple[str, int]]:
    """The tensor and the number of each input that nodes of `operator` read quantized."""
    nodes = model.graph.node
    return [
        (read.tensor, read.input)
        for read in place(model, **options).reads
        if nodes[read.node].op_type == operator and read.axis is None
    ]


def quantized(model: onnx.ModelProto, directory: Path, **config: Any) -> Path:
    """`model` with Q/DQ, every activation in the range of 3."""
    found = place(model, attention=config.get("attention", "none")).activations
    ranges = directory / "ranges.json"
    ranges.write_text(json.dumps({"tensors": {name: {"amax": 3.0} for name in found}}))
    path = saved(model, directory / "in.onnx")
    return run(STAGE, directory / "out", QuantizeConfig(**config), onnx=path, ranges=ranges)[0]


def built(model: onnx.ModelProto, directory: Path, capability: str = "SM89", **config: Any) -> list[Operation]:
    """The operations of the plan of `model` with Q/DQ."""
    return plan_graph_of(quantized(model, directory, **config), capability)
