"""Weights channels last, against numpy's transpose; and what is no safetensors file gives nothing."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.channels_last import channels_last

DTYPES = {np.dtype(np.float32): "F32", np.dtype(np.float16): "F16", np.dtype(np.int8): "I8", np.dtype(np.int64): "I64"}


def safetensors(tensors: dict[str, np.ndarray]) -> bytes:
    header: dict[str, object] = {"__metadata__": {"made": "here"}}
    content = b""
    for name, tensor in tensors.items():
        offsets = [len(content), len(content) + tensor.nbytes]
        header[name] = {"dtype": DTYPES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": offsets}
        content += tensor.tobytes()
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


def test_convolutions_come_channels_last_and_nothing_else_comes() -> None:
    rng = np.random.default_rng(0)
    shapes = {"conv": (4, 3, 5, 2), "gemm": (8, 8), "pointwise": (4, 3, 1, 1), "conv1d": (2, 6, 3), "bias": (4,)}
    tensors = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    expected = tensors["conv"].transpose(0, 2, 3, 1).tobytes() + tensors["conv1d"].transpose(0, 2, 1).tobytes()
    assert channels_last(safetensors(tensors)) == expected


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(st.integers(0, 4), min_size=3, max_size=5),
    dtype=st.sampled_from([*DTYPES]),
)
def test_every_shape_and_dtype_comes_as_numpy_transposes_it(shape: list[int], dtype: np.dtype) -> None:
    tensor = np.arange(np.prod(shape)).astype(dtype).reshape(shape)
    expected = np.moveaxis(tensor, 1, -1).tobytes() if np.prod(shape[2:]) > 1 else b""
    assert channels_last(safetensors({"w": tensor})) == expected


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\x08\x07\x12\x04onnx" * 100,
        (2).to_bytes(8, "little") + b"[]" + bytes(100),
        (20).to_bytes(8, "little") + b'{"w": {"shape": [1]}' + bytes(100),
        (2**62).to_bytes(8, "little") + bytes(100),
    ],
)
def test_what_is_no_safetensors_file_gives_nothing(content: bytes) -> None:
    assert channels_last(content) == b""


def test_a_tensor_that_is_not_all_there_gives_nothing() -> None:
    whole = safetensors({"w": np.zeros((2, 2, 2, 2), np.float32)})
    assert channels_last(whole[:-1]) == b""
