"""Placement as a whole: which inputs get Q/DQ; each rule has its tests in `placement/`."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.quantization import is_quantized, nothing_to_quantize, place
from tests.stages.placement.placed import graph
from tests.stages.rewriting import parsed, residual_block


def gated() -> onnx.ModelProto:
    """A residual squeeze-and-excitation behind a projection, and a Concat."""
    body = """a = Conv(x, w)
        b = Conv(x, w)
        c = Add(a, b)
        d = Conv(c, w)
        p = GlobalAveragePool(d)
        q = Conv(p, w)
        s = HardSigmoid(q)
        m = Mul(d, s)
        e = Add(d, m)
        f = Concat<axis=1>(e, c)
        g = Conv(f, v)
        y = Add(g, c)"""
    return graph(body, w=(32, 32, 1, 1), v=(32, 64, 1, 1))


MODELS = {"projection": residual_block(np.random.default_rng(0), projection=True), "gated": gated()}


@pytest.mark.parametrize("name", MODELS)
@given(data=st.data())
def test_skipping_only_takes_away(name: str, data: st.DataObject) -> None:
    model = MODELS[name]
    labels = [node.output[0] for node in model.graph.node]
    skipped = set(data.draw(st.lists(st.sampled_from(labels), unique=True)))
    every, left = place(model), place(model, skipped)
    assert set(left.reads) <= set(every.reads)
    assert set(left.quantized) == set(every.quantized) - skipped
    for group in left.shared:
        assert any(set(group) <= set(other) for other in every.shared)


def test_reads_stand_in_the_order_of_the_graph_and_once_each() -> None:
    reads = place(residual_block(np.random.default_rng(0))).reads
    assert [(read.node, read.input) for read in reads] == sorted({(read.node, read.input) for read in reads})


def test_what_could_run_quantized_is_named_beside_what_does() -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x, float[4, n] z) => (float[n, n] y) {
        y = MatMul(x, z) }""")
    placement = place(model)
    assert (placement.reads, placement.weighted, placement.quantized) == ((), ("y",), ())


def test_subgraphs_stay_in_float() -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[2, 2] x, bool c) => (float[2, 2] y) {
        h = MatMul(x, w)
        y = If (c) <then_branch = t () => (float[2, 2] a) { a = MatMul(h, w) },
                    else_branch = e () => (float[2, 2] b) { b = Identity(h) }> }""",
        w=np.eye(2),
    )
    assert place(model).weighted == place(model).quantized == ("h",)


def test_a_model_with_pairs_is_known_by_them() -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) {
        q = QuantizeLinear(x, s)
        y = DequantizeLinear(q, s) }""",
        s=np.float32(1),
    )
    assert is_quantized(model)
    assert not is_quantized(residual_block(np.random.default_rng(0)))
    assert "flow=qat" in nothing_to_quantize(model).next_step
