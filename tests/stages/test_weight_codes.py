"""Codes of weights: the nearest ones, and never half a step away from the weight."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator

from stages import weight_codes
from stages.weight_codes import FLOAT4, FORMATS, Coded, encode

NUMBERS = st.floats(-50, 50, width=32).map(lambda x: x if abs(x) > 1e-3 else 0.0)
KINDS = {"float32": np.float32, "float16": np.float16}


def decoded(coded: Coded, block: int | None, opset: int = 23) -> np.ndarray:
    """What ONNX says that the codes stand for, in float32."""
    coded.codes.name, coded.scale.name = "codes", "scale"
    scale, nodes, tensors = "scale", [], [coded.codes, coded.scale]
    if coded.scale_of_scales is not None:
        coded.scale_of_scales.name = "whole"
        tensors.append(coded.scale_of_scales)
        nodes.append(onnx.helper.make_node("DequantizeLinear", ["scale", "whole"], ["scales"]))
        scale = "scales"
    blocks = {"block_size": block} if block else {}
    nodes.append(onnx.helper.make_node("DequantizeLinear", ["codes", scale], ["y"], axis=coded.axis, **blocks))
    kind = TensorProto.FLOAT if coded.scale_of_scales is not None else coded.scale.data_type
    output = onnx.helper.make_tensor_value_info("y", kind, None)
    graph = onnx.helper.make_graph(nodes, "g", [], [output], tensors)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return np.asarray(ReferenceEvaluator(model).run(None, {})[0], np.float32)


def steps(coded: Coded, weight: np.ndarray, block: int | None, axis: int) -> np.ndarray:
    """The scale of each weight, in the weight's shape."""
    scale = numpy_helper.to_array(coded.scale).astype(np.float32)
    if coded.scale_of_scales is not None:
        scale = scale * numpy_helper.to_array(coded.scale_of_scales)
    if block:
        return np.repeat(scale, block, axis=1 - axis)
    return np.broadcast_to(scale.reshape([-1 if d == axis else 1 for d in range(weight.ndim)]), weight.shape)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("precision", "block"), [("int8", None), ("int8", 4), ("int4", 4), ("int4", None)])
@settings(max_examples=25, deadline=None)
@given(weight=hnp.arrays(np.float32, (3, 8), elements=NUMBERS), axis=st.integers(0, 1), data=st.data())
def test_no_weight_moves_by_more_than_half_a_step(
    precision: str, block: int | None, kind: str, weight: np.ndarray, axis: int, data: Any
) -> None:
    weight = (weight if axis == 0 else weight.T).astype(KINDS[kind])
    coded = encode(numpy_helper.from_array(weight), axis, block, FORMATS[precision])
    moved = np.abs(decoded(coded, block) - weight.astype(np.float32))
    rounding = np.abs(weight.astype(np.float32)) * 2.0**-10 if kind == "float16" else 1e-5
    assert (moved <= steps(coded, weight, block, axis) * 0.5001 + rounding).all()


@settings(max_examples=40, deadline=None)
@given(weight=hnp.arrays(np.float32, (3, 32), elements=NUMBERS), axis=st.integers(0, 1))
def test_no_weight_in_float4_moves_by_more_than_half_of_the_gap_it_lies_in(weight: np.ndarray, axis: int) -> None:
    weight = weight if axis == 0 else weight.T
    coded = encode(numpy_helper.from_array(weight), axis, 16, FORMATS["nvfp4"])
    step = steps(coded, weight, 16, axis)
    exact = np.abs(weight) / step
    gap = np.select([exact < 2, exact < 4, exact <= 6], [0.5, 1.0, 2.0], 2 * (exact - 6))  # beyond 6 it is cut off
    assert (np.abs(decoded(coded, 16) - weight) <= (gap / 2 + 1e-4) * step + 1e-6).all()
    assert exact.max() < 6.5  # the float8 scale is within 1/16 of what the largest weight asks for


@settings(max_examples=40, deadline=None)
@given(weight=hnp.arrays(np.float32, (2, 32), elements=NUMBERS), precision=st.sampled_from(sorted(FORMATS)))
def test_a_clip_search_never_makes_the_squared_error_larger(weight: np.ndarray, precision: str) -> None:
    tensor = numpy_helper.from_array(weight)

    def error(search: bool) -> float:
        coded = encode(tensor, 0, 16, FORMATS[precision], search)
        return float(((decoded(coded, 16) - weight).astype(np.float64) ** 2).sum())

    assert error(True) <= error(False) * (1 + 1e-4) + 1e-9


def test_a_clip_search_gives_up_an_outlier_that_nothing_is_multiplied_with() -> None:
    random = np.random.default_rng(0)
    weight = random.standard_normal((1, 128)).astype(np.float32)
    weight[0, 0] = 8
    importance = np.ones(128, np.float32)
    importance[0] = 1e-3
    tensor = numpy_helper.from_array(weight)
    moved = {
        name: np.abs(decoded(encode(tensor, 0, 128, FORMATS["int4"], True, counts), 128) - weight)[0]
        for name, counts in (("seen", importance), ("unseen", None))
    }
    assert moved["seen"][0] > moved["unseen"][0]
    assert moved["seen"][1:].mean() < 0.75 * moved["unseen"][1:].mean()


def test_four_bits_are_packed_low_half_first_as_onnx_reads_them() -> None:
    weight = np.array([[7, -7, 1, 0, -3]], np.float32)
    codes = encode(numpy_helper.from_array(weight), 0, None, FORMATS["int4"]).codes
    assert codes.raw_data == bytes([0x97, 0x01, 0x0D])
    assert numpy_helper.to_array(codes).astype(np.float32).tolist() == weight.tolist()
    floats = np.array([[*FLOAT4, *(-x for x in FLOAT4)]], np.float32)
    assert decoded(encode(numpy_helper.from_array(floats), 0, 16, FORMATS["nvfp4"]), 16).tolist() == floats.tolist()


@pytest.mark.parametrize("precision", FORMATS)
def test_zeros_stay_zeros_with_scales_that_are_not(precision: str) -> None:
    coded = encode(numpy_helper.from_array(np.zeros((2, 16), np.float16)), 0, 16, FORMATS[precision])
    assert (numpy_helper.to_array(coded.scale).astype(np.float32) > 0).all()
    assert not decoded(coded, 16).any()


@pytest.mark.parametrize("precision", FORMATS)
def test_a_tensor_worked_on_in_parts_is_the_same(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = numpy_helper.from_array(np.random.default_rng(0).standard_normal((32, 7)).astype(np.float32))
    whole = encode(tensor, 1, 16, FORMATS[precision])
    monkeypatch.setattr(weight_codes, "PART_BYTES", 256)
    assert encode(tensor, 1, 16, FORMATS[precision]) == whole
