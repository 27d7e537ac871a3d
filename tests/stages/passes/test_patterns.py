"""Patterns that give way to a plugin's node, and nodes that are inserted."""

from __future__ import annotations

import numpy as np
import pytest

from stages.stage import StageError
from tests.stages.passes.rewritten import node_ops, through
from tests.stages.rewriting import outputs, parsed

SILU = """<ir_version: 10, opset_import: ["": 20]> g (float[4] x) => (float[4] y) {
    a = Relu(x)
    s = Sigmoid(a)
    m = Mul(s, a)
    t = Sigmoid(m)
    y = Mul(m, t) }"""
FIND = "s = Sigmoid(x)\n y = Mul(x, s)"


def test_every_match_becomes_the_plugins_node_with_its_attributes() -> None:
    put = 'y = acme.Silu<plugin_version = "2", alpha = 0.5>(x)'
    after, did = through(parsed(SILU), {"pass": "replace", "find": FIND, "put": put})
    assert node_ops(after) == ["Relu", "Silu", "Silu"]
    assert {attribute.name for attribute in after.graph.node[1].attribute} == {"plugin_version", "alpha"}
    assert [entry.domain for entry in after.opset_import] == ["", "acme"]
    assert len(did["replaced"]) == 2  # type: ignore[arg-type]


def test_a_replacement_of_several_nodes_computes_the_same() -> None:
    put = "h = HardSwish(x)\n z = Sub(h, h)\n s = Sigmoid(x)\n m = Mul(x, s)\n y = Add(m, z)"
    after, _ = through(parsed(SILU), {"pass": "replace", "find": FIND, "put": put})
    feed = {"x": np.linspace(-2, 2, 4, dtype=np.float32)}
    np.testing.assert_allclose(outputs(after, feed)[0], outputs(parsed(SILU), feed)[0], rtol=1e-6)


@pytest.mark.parametrize(
    "text",
    [
        SILU.replace("float[4] y)", "float[4] y, float[4] s, float[4] t)"),
        SILU.replace("y = Mul(m, t)", "y = Mul(a, t)").replace("m = Mul(s, a)", "m = Mul(s, x)"),
    ],
    ids=["something else reads the middle", "another input"],
)
def test_what_is_not_the_pattern_stays_and_a_pattern_without_a_match_is_an_error(text: str) -> None:
    with pytest.raises(StageError, match="matches nowhere"):
        through(parsed(text), {"pass": "replace", "find": FIND, "put": "y = acme.Silu(x)"})


def test_an_attribute_of_the_pattern_must_be_there() -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[2, 4] x) => (float[2, 4] y) {
        a = Softmax<axis = 0>(x)
        y = Softmax<axis = 1>(a) }""")
    after, _ = through(model, {"pass": "replace", "find": "y = Softmax<axis = 1>(x)", "put": "y = Relu(x)"})
    assert node_ops(after) == ["Softmax", "Relu"]


@pytest.mark.parametrize(
    ("find", "put", "words"),
    [
        ("y = Relu<alpha = >(x)", "y = Neg(x)", "cannot be read"),
        ("y = Relu(x)", "y = Neg(z)", "reads z"),
        ("y = Relu(x)", "z = Neg(x)", "gives no y"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_refused(find: str, put: str, words: str) -> None:
    with pytest.raises(StageError, match=words):
        through(parsed(SILU), {"pass": "replace", "find": find, "put": put})


@pytest.mark.parametrize(("tensor", "expected"), [("a", 2.0), ("y", 2.0), ("x", 2.0)])
def test_a_node_on_a_tensor_is_read_by_all_that_read_the_tensor(tensor: str, expected: float) -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[1] x) => (float[1] y) {
        a = Relu(x)
        y = Abs(a) }""")
    twice = "two = Constant<value_float = 2.0>()\n y = Mul(x, two)"
    after, _ = through(model, {"pass": "insert", "tensor": tensor, "nodes": twice})
    assert [value.name for value in after.graph.output] == ["y"]
    assert outputs(after, {"x": np.ones(1, np.float32)})[0].tolist() == [expected]


@pytest.mark.parametrize(
    ("tensor", "nodes", "words"),
    [("q", "y = Neg(x)", "no tensor 'q'"), ("x", "y = Add(x, q)", "no tensor 'q'"), ("x", "z = Neg(x)", "from x to y")],
)
def test_an_insertion_that_cannot_be_meant_is_refused(tensor: str, nodes: str, words: str) -> None:
    with pytest.raises(StageError, match=words):
        through(parsed(SILU), {"pass": "insert", "tensor": tensor, "nodes": nodes})
