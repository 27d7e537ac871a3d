"""Placement: which inputs get Q/DQ."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from stages.quantization import is_quantized, place
from tests.stages.rewriting import parsed, residual_block


def rng() -> np.random.Generator:
    """The same numbers in every test, whatever ran before."""
    return np.random.default_rng(0)


def adds(model: onnx.ModelProto) -> list[tuple[str, int]]:
    nodes = model.graph.node
    return [(read.tensor, read.input) for read in place(model).reads if nodes[read.node].op_type == "Add"]


def test_exactly_one_input_of_a_residual_add_is_read_quantized() -> None:
    assert adds(residual_block(rng())) == [("shortcut", 1)]


def test_of_a_projection_the_shorter_branch_is_the_shortcut() -> None:
    assert adds(residual_block(rng(), projection=True)) == [("shortcut", 1)]


def test_an_add_stays_in_float_where_its_convolution_does() -> None:
    block = residual_block(rng())
    assert [read.tensor for read in place(block, {"second"}).reads if read.axis is None] == ["x", "stem", "flat"]


def test_skipping_only_takes_away() -> None:
    block = residual_block(rng(), projection=True)
    every = set(place(block).activations)
    for node in block.graph.node:
        assert set(place(block, {node.output[0]}).activations) <= every


def test_an_add_behind_an_activation_function_is_no_residual_of_a_convolution() -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) {
        c = Conv(x, w)
        r = Relu(c)
        y = Add(r, x) }""",
        w=np.ones((4, 4, 1, 1)),
    )
    assert adds(model) == []


def test_a_bias_that_is_added_later_does_not_hide_the_residual() -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) {
        c = Conv(x, w)
        d = Add(b, c)
        y = Add(x, d) }""",
        w=np.ones((4, 4, 1, 1)),
        b=np.ones((4, 1, 1)),
    )
    assert adds(model) == [("x", 0)]


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
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]> g (float[n, 4, 8, 8] x) => (float[n, 6, 8, 8] y) {{
        y = {call}(x, w) }}""",
        w=np.ones(shape),
    )
    assert [read.axis for read in place(model).reads] == [None, axis]


@pytest.mark.parametrize(("call", "shape", "axis"), [("Gemm", (4, 6), 1), ("Gemm<transB=1>", (6, 4), 0)])
def test_the_channels_of_a_gemm_follow_transb(call: str, shape: tuple[int, ...], axis: int) -> None:
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 6] y) {{ y = {call}(x, w, b) }}""",
        w=np.ones(shape),
        b=np.ones(6),
    )
    assert [(read.input, read.axis) for read in place(model).reads] == [(0, None), (1, axis)]


def test_a_product_of_two_activations_stays_in_float() -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x, float[4, n] z) => (float[n, n] y) {
        y = MatMul(x, z) }""")
    placement = place(model)
    assert (placement.reads, placement.weighted, placement.quantized) == ((), ("y",), ())


def test_a_weight_in_a_constant_node_is_a_weight() -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[n, 2] x) => (float[n, 2] y) {
        w = Constant<value = float[2, 2] {1.0, 2.0, 3.0, 4.0}>()
        y = MatMul(x, w) }""")
    assert [read.axis for read in place(model).reads] == [None, 1]
    assert not is_quantized(model)
