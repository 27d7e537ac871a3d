"""Multiply-accumulates of convolutions and matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from stages.macs import macs
from stages.profiles import Profile, Range
from tests.stages.rewriting import outputs, parsed

small = st.integers(1, 4)


def one(operator: str, x: list[int], w: list[int], **attributes: Any) -> onnx.ModelProto:
    """A node of this operator, all of whose weights are 1."""
    node = helper.make_node(operator, ["x", "w"], ["y"], name="n", **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.ones(w, np.float32), "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def counted(model: onnx.ModelProto) -> int:
    """By ONNX Runtime: of ones, without padding, each multiply-accumulate adds 1 to the sum of all outputs."""
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    (y,) = outputs(model, {"x": np.ones(shape, np.float32)})
    return round(float(y.sum()))


@settings(max_examples=25, deadline=None)
@given(small, small, small, small, st.tuples(small, small), st.tuples(small, small), st.integers(1, 2))
def test_convolutions_take_what_the_sum_of_ones_says(
    batch: int, group: int, c: int, m: int, kernel: tuple[int, int], more: tuple[int, int], stride: int
) -> None:
    size = [k + extra for k, extra in zip(kernel, more, strict=True)]
    common = {"group": group, "strides": [stride, stride]}
    conv = one("Conv", [batch, group * c, *size], [group * m, c, *kernel], **common)
    deconv = one("ConvTranspose", [batch, group * c, *size], [group * c, m, *kernel], **common)
    for model in (conv, deconv):
        assert macs(model, None) == {"n": counted(model)}


@settings(max_examples=25, deadline=None)
@given(small, small, small, st.lists(small, max_size=2), st.booleans(), st.booleans())
def test_matrix_products_take_what_the_sum_of_ones_says(
    m: int, k: int, n: int, batch: list[int], left: bool, right: bool
) -> None:
    gemm = one("Gemm", [k, m] if left else [m, k], [n, k] if right else [k, n], transA=int(left), transB=int(right))
    assert macs(gemm, None) == {"n": counted(gemm)}
    matmul = one("MatMul", [*batch, m, k], [k, n])
    assert macs(matmul, None) == {"n": counted(matmul)}
    batched = one("MatMul", [*batch, m, k], [*batch, k, n])
    assert macs(batched, None) == {"n": counted(batched)}


def test_a_dynamic_model_counts_at_the_profiles_opt_and_an_unnamed_node_goes_by_its_output() -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 3] y) { y = MatMul(x, w) }""",
        w=np.ones((4, 3)),
    )
    ends = {"x": Range((1, 4), (6, 4), (9, 4))}
    assert macs(model, Profile("default", ends)) == {"node_of_y": 6 * 4 * 3}
    assert macs(model, None) == {"node_of_y": None}


def test_what_a_shape_tensor_holds_at_opt_is_counted_with() -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[24] x, int64[2] s) => (float[a, b] y) {
        r = Reshape(x, s)
        y = MatMul(r, w) }""",
        w=np.ones((4, 3)),
    )
    ends = {"s": Range((1, 4), (6, 4), (6, 4), values=True)}
    assert macs(model, Profile("default", ends)) == {"node_of_y": 6 * 4 * 3}


def test_weights_behind_q_and_dq_count_and_what_is_no_product_does_not() -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[2, 4] x) => (float[2, 3] y) {
        q = QuantizeLinear(w, s, z)
        d = DequantizeLinear(q, s, z)
        m = MatMul(x, d)
        y = Relu(m) }""",
        w=np.ones((4, 3)),
        s=np.float32(0.1),
        z=np.int8(0),
    )
    assert macs(model, None) == {"node_of_m": 2 * 4 * 3}


@pytest.mark.parametrize("operator", ["Conv", "MatMul"])
def test_what_has_no_known_shape_has_no_known_number(operator: str) -> None:
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20, "acme": 1]> g (float[2, 4, 5, 5] x) => (float[a, b, c, d] y) {{
        m = acme.Odd(x)
        y = {operator}(m, w) }}""",
        w=np.ones((3, 4, 3, 3)),
    )
    assert macs(model, None) == {"node_of_y": None}


def test_shapes_that_are_computed_in_the_graph_are_followed() -> None:
    """As exporters write attention: a Reshape to sizes that come out of Shape and Range."""
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 6, 4] x) => (float[a, b, c] y) {
        shape = Shape(x)
        rows = Gather(shape, zero)
        range = Range(zero, rows, one)
        count = Size(range)
        first = Unsqueeze(count, axis)
        sizes = Concat<axis=0>(first, rest)
        r = Reshape(x, sizes)
        y = MatMul(r, w) }""",
        w=np.ones((8, 5)),
        zero=np.int64(0),
        one=np.int64(1),
        axis=np.array([0]),
        rest=np.array([3, 8]),
    )
    ends = {"x": Range((1, 6, 4), (7, 6, 4), (9, 6, 4))}
    assert macs(model, Profile("default", ends)) == {"node_of_y": 7 * 3 * 8 * 5}


def test_what_the_model_declares_of_a_tensor_is_not_believed_over_what_is_computed() -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 6, 4] x) => (float[a, b, c] y) {
        shape = Shape(x)
        rows = Gather(shape, zero)
        range = Range(zero, rows, one)
        count = Size(range)
        first = Unsqueeze(count, axis)
        sizes = Concat<axis=0>(first, rest)
        mask = Expand(unit, sizes)
        y = MatMul(mask, w) }""",
        zero=np.int64(0),
        one=np.int64(1),
        axis=np.array([0]),
        rest=np.array([4, 5]),
        unit=np.ones((1,)),
        w=np.ones((5, 300)),
    )
    model.graph.value_info.append(helper.make_tensor_value_info("mask", onnx.TensorProto.FLOAT, ["p", "q", "r"]))
    ends = {"x": Range((1, 6, 4), (2, 6, 4), (9, 6, 4))}
    assert macs(model, Profile("default", ends)) == {"node_of_y": 2 * 4 * 5 * 300}
