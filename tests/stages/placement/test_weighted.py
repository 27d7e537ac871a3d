"""Placement: inputs and weights of convolutions and matrix products."""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from stages.quantization import place
from tests.stages.placement.placed import built, graph, quantized
from tests.stages.rewriting import outputs, parsed, sqnr

LINEAR = {"x": "4, 6, 8", "y": "4, 6, 5"}


def weight_reads(model: Any) -> list[tuple[str, str, int | None]]:
    """The operator that reads each quantized weight, the weight, and its axis."""
    nodes = model.graph.node
    return [(nodes[r.node].op_type, r.tensor, r.axis) for r in place(model).reads if r.axis is not None]


@pytest.mark.parametrize(
    ("call", "shape", "axis"),
    [
        ("Conv", (6, 4, 1, 1), 0),
        ("Conv<group=2>", (6, 2, 1, 1), 0),
        ("ConvTranspose", (4, 6, 1, 1), 1),
        ("ConvTranspose<group=2>", (4, 3, 1, 1), 1),
    ],
)
def test_the_channels_of_a_convolution_are_on_this_axis(call: str, shape: tuple[int, ...], axis: int) -> None:
    model = graph(f"y = {call}(x, w)", "n, 4, 8, 8", "n, 6, 8, 8", w=shape)
    assert [read.axis for read in place(model).reads] == [None, axis]


@pytest.mark.parametrize(("call", "shape", "axis"), [("Gemm", (4, 6), 1), ("Gemm<transB=1>", (6, 4), 0)])
def test_the_channels_of_a_gemm_follow_transb_and_its_bias_has_no_pair(
    call: str, shape: tuple[int, ...], axis: int
) -> None:
    model = graph(f"y = {call}(x, w, b)", "n, 4", "n, 6", w=shape, b=(6,))
    assert [(read.input, read.axis) for read in place(model).reads] == [(0, None), (1, axis)]


def test_a_weight_in_a_constant_node_is_a_weight() -> None:
    model = graph("w = Constant<value = float[2, 2] {1.0, 2.0, 3.0, 4.0}>()\n y = MatMul(x, w)", "n, 2")
    assert weight_reads(model) == [("MatMul", "w", 1)]


BEHIND = {
    "Identity": ("v = Identity(w)", (8, 5), 1),
    "Transpose": ("v = Transpose<perm=[1, 0]>(w)", (5, 8), 0),
    "Transpose without perm": ("v = Transpose(w)", (5, 8), 0),
    "Reshape": ("v = Reshape(w, s)", (2, 4, 5), 2),
    "two of them": ("u = Transpose<perm=[2, 0, 1]>(w)\n v = Reshape(u, s)", (4, 5, 2), 1),
}


@pytest.mark.parametrize("how", BEHIND)
def test_a_weight_behind_shape_operators_is_quantized_where_it_lies(tmp_path: Path, how: str) -> None:
    made, shape, axis = BEHIND[how]
    scales = np.logspace(-2, 1, 5).reshape([5 if d == axis else 1 for d in range(len(shape))])
    weight = np.random.default_rng(0).standard_normal(shape) * scales
    model = graph(f"{made}\n y = MatMul(x, v)", **LINEAR, w=weight, s=np.array([8, 5]))
    assert weight_reads(model)[0][1:] == ("w", axis)
    feed = {"x": np.random.default_rng(1).uniform(-3, 3, (4, 6, 8)).astype(np.float32)}
    expected, found = outputs(model, feed)[0], outputs(quantized(model, tmp_path), feed)[0]
    # Per channel, on the right axis: the channels differ 1,000-fold.
    assert all(sqnr(expected[..., i], found[..., i]) > 28 for i in range(5))


@given(data=st.data())
def test_the_axis_behind_transposes_and_reshapes_is_that_of_the_channels(data: st.DataObject) -> None:
    """However a weight of numbered channels is turned, each slice along the axis holds one channel."""
    sizes = data.draw(st.lists(st.integers(1, 4), min_size=2, max_size=4))
    order = data.draw(st.permutations(range(len(sizes))))
    turned = [sizes[i] for i in order]
    merged = data.draw(st.sampled_from([turned, [prod(turned[:-1]), turned[-1]], [*turned[:-2], prod(turned[-2:])]]))
    model = graph(
        f"u = Transpose<perm={order}>(w)\n v = Reshape(u, s)\n y = MatMul(x, v)",
        "n, 3",
        "n, 3",
        w=tuple(sizes),
        s=merged,
    )
    read = next((read for read in place(model).reads if read.axis is not None), None)
    seen = np.broadcast_to(np.arange(merged[-1]), merged).reshape(turned)
    channels = seen.transpose(np.argsort(order))
    if read is None:
        assert len(merged) < 2 or merged[-1] not in turned[-1:] or merged[-1] == 1
        return
    assert read.axis is not None
    for index in range(sizes[read.axis]):
        assert len(np.unique(channels.take(index, read.axis))) == 1


def test_a_transposed_weight_that_others_read_too_stays_in_float() -> None:
    model = graph("v = Transpose(w)\n a = MatMul(x, v)\n y = Add(a, v)", "n, 5", w=(5, 5))
    assert place(model).reads == ()


def test_a_table_that_is_also_the_last_weight_is_quantized_for_the_product_only(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (int64[4, 6] ids) => (float[4, 6, 9] y) {
        x = Gather(w, ids)
        v = Transpose(w)
        y = MatMul(x, v) }""",
        w=np.random.default_rng(0).standard_normal((9, 8)),
    )
    assert weight_reads(model) == [("Transpose", "w", 0)]


@pytest.mark.parametrize(
    ("body", "x", "y", "shape", "axis"),
    [
        ("y = MatMul(x, w)", "4, 6, 8", "4, 6, 5", (4, 8, 5), 2),
        ("y = MatMul(w, x)", "4, 8, 6", "4, 5, 6", (5, 8), 0),
    ],
    ids=["a batch of weights", "the weight on the left"],
)
def test_matrix_products_of_other_forms_run_in_int8(
    tmp_path: Path, body: str, x: str, y: str, shape: tuple[int, ...], axis: int
) -> None:
    model = graph(body, x, y, w=shape)
    assert weight_reads(model) == [("MatMul", "w", axis)]
    assert [each.reads[:2] for each in built(model, tmp_path) if each.is_weighted] == [("int8", "int8")]


@pytest.mark.parametrize("body", ["y = MatMul(x, x)", "y = MatMul(x, v)", "c = MatMul(w, w)\n y = MatMul(x, c)"])
def test_products_of_activations_and_with_vectors_or_computed_weights_stay_in_float(body: str) -> None:
    model = graph(body, "4, 4", w=(4, 4), v=(4,))
    assert place(model).reads == ()
    assert "y" in place(model).weighted


def test_an_integer_weight_stays_as_it_is() -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (int32[4, 4] x) => (int32[4, 4] y) { y = MatMul(x, w) }""",
        w=np.eye(4, dtype=np.int32),
    )
    assert numpy_helper.to_array(model.graph.initializer[0]).dtype == np.int32
    assert place(model).reads == ()
