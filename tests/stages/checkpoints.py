"""Checkpoints for tests: safetensors files of numpy arrays, written without the code under test."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

DTYPES = {
    "float32": "F32", "float64": "F64", "float16": "F16", "bfloat16": "BF16", "float8_e4m3fn": "F8_E4M3",
    "int64": "I64", "int32": "I32", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip


def save(path: Path, arrays: Mapping[str, np.ndarray]) -> Path:
    """Writes the arrays by name, in the order given."""
    header, values, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, array in arrays.items():
        values.append(np.ascontiguousarray(array).tobytes())
        end = offset + len(values[-1])
        header[name] = {"dtype": DTYPES[array.dtype.name], "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(values))
    return path


def weights_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """The values of the graph's initializers, by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def with_weights(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of `model` whose initializers of these names have these values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(arrays[tensor.name]), tensor.name))
    return copy
