"""The optional fusing passes: fewer nodes, the same results."""

from __future__ import annotations

import numpy as np
import pytest

from tests.stages.passes.rewritten import node_ops, through
from tests.stages.rewriting import outputs, parsed

CONVS = {"Conv": (6, 2, 3, 3), "ConvTranspose": (4, 3, 3, 3)}


@pytest.mark.parametrize("op", CONVS)
@pytest.mark.parametrize("shape", [(6, 1, 1), (1, 6, 1, 1), (1,), ()])
def test_a_scale_and_a_shift_per_channel_go_into_the_convolution(op: str, shape: tuple[int, ...]) -> None:
    draw = np.random.default_rng(0).standard_normal
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]> g (float[n, 4, 8, 8] x) => (float[n, 6, h, w] y) {{
        c = {op}<group = 2>(x, k)
        m = Mul(s, c)
        y = Add(m, t) }}""",
        k=draw(CONVS[op]),
        s=draw(shape),
        t=draw(shape),
    )
    after, did = through(model, "fuse_conv_scale")
    assert node_ops(after) == [op]
    assert did["fused"] == 2
    feed = {"x": draw((2, 4, 8, 8)).astype(np.float32)}
    np.testing.assert_allclose(outputs(after, feed)[0], outputs(model, feed)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 6), (2, 6, 1, 1), (6,)])
def test_a_constant_that_is_not_per_channel_stays(shape: tuple[int, ...]) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[2, 4, 8, 8] x) => (float[2, 6, 6, 6] y) {
        c = Conv(x, k)
        y = Mul(c, s) }""",
        k=np.ones((6, 4, 3, 3), np.float32),
        s=np.ones(shape, np.float32),
    )
    assert node_ops(through(model, "fuse_conv_scale")[0]) == ["Conv", "Mul"]


def test_nodes_that_compute_the_same_become_one_and_outputs_stay() -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y, float[2] z, float[2] r) {
        a = Relu(x)
        b = Relu(x)
        c = Neg(a)
        d = Neg(b)
        y = Add(c, d)
        z = Exp(d)
        r = RandomNormalLike(x)
        u = RandomNormalLike(x)
        v = Add(r, u) }""")
    after, did = through(model, "merge_equal")
    assert did["merged"] == 2
    assert node_ops(after) == ["Relu", "Neg", "Add", "Exp", "RandomNormalLike", "RandomNormalLike", "Add"]
    feed = {"x": np.array([-1, 2], np.float32)}
    assert [o.tolist() for o in outputs(after, feed)[:2]] == [o.tolist() for o in outputs(model, feed)[:2]]
