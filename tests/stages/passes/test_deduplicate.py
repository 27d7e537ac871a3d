"""Equal initializers become one; equal means type, shape and bits."""

from __future__ import annotations

import numpy as np

from tests.stages.passes.rewritten import through
from tests.stages.rewriting import outputs, parsed

TEXT = """<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) {
    p = Add(x, a)
    q = Mul(p, b)
    r = Add(q, c)
    s = Add(r, d)
    y = Add(s, e) }"""


def test_equal_initializers_become_one_and_others_stay() -> None:
    weights = {"a": [1.0, 2.0], "b": [1.0, 2.0], "c": [[1.0, 2.0]], "d": [0.0], "e": [-0.0]}
    model = parsed(TEXT.replace("float[2] y", "float[1, 2] y"), **weights)
    after, did = through(model, "deduplicate")
    assert [tensor.name for tensor in after.graph.initializer] == ["a", "c", "d", "e"]
    assert (did["dropped"], did["dropped_bytes"]) == (1, 8)
    feed = {"x": np.array([3, 4], np.float32)}
    assert outputs(after, feed)[0].tolist() == outputs(model, feed)[0].tolist()


def test_an_initializer_that_is_returned_stays() -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y, float[2] b) { y = Add(x, a) }""",
        a=[1.0, 2.0],
        b=[1.0, 2.0],
    )
    after, _ = through(model, "deduplicate")
    assert [tensor.name for tensor in after.graph.initializer] == ["a", "b"]
