"""A model that takes shapes as inputs, for the tests beside this file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from tests.stages.stage_runs import save

SHAPE_TENSORS = {"sizes": [4], "flat": [2], "k": [1], "rows": []}


def ranges(**others: Any) -> dict[str, Any]:
    """A profile that gives the values of each: Resize, Reshape and TopK agree at min, opt and max."""
    values = {
        "sizes": ([1, 3, 8, 8], [1, 3, 16, 16], [1, 3, 32, 32]),
        "flat": ([3, 64], [3, 256], [3, 1024]),
        "k": ([1], [2], [4]),
        "rows": ([1], [2], [3]),
    }
    given = {
        name: {**dict(zip(("min", "opt", "max"), ends, strict=True)), "values": True} for name, ends in values.items()
    }
    return {**given, **others}


def shaper(path: Path) -> Path:
    """`x` (1, 3, 8, 8): resized to `sizes`, reshaped to `flat`, the `k` largest of each row, the first `rows` rows."""
    nodes = [
        helper.make_node("Resize", ["x", "", "", "sizes"], ["large"], mode="nearest"),
        helper.make_node("Reshape", ["large", "flat"], ["matrix"]),
        helper.make_node("TopK", ["matrix", "k"], ["best", "where"]),
        helper.make_node("Range", ["zero", "rows", "one"], ["first"]),
        helper.make_node("Gather", ["best", "first"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])
    others = [helper.make_tensor_value_info(name, TensorProto.INT64, shape) for name, shape in SHAPE_TENSORS.items()]
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["p", "q"])
    weights = [numpy_helper.from_array(np.array(value), name) for name, value in (("zero", 0), ("one", 1))]
    graph = helper.make_graph(nodes, "shaper", [x, *others], [y], weights)
    return save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10), path)
