"""Names, order and opsets of a graph."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from stages import onnx_graph
from stages.onnx_opset import opset, raise_opset
from stages.stage import StageError
from tests.stages.rewriting import outputs, parsed

NESTED = """<ir_version: 10, opset_import: ["": 20]> g (float[n] x, bool c) => (float[n] y) {
    a = Relu(x)
    b = Neg(x)
    y = If (c) <
        then_branch = yes () => (float[n] p) {
            p = If (c) <
                then_branch = deep () => (float[n] q) { q = Abs(a) },
                else_branch = flat () => (float[n] r) { r = Add(x, w) }
            >
        },
        else_branch = no () => (float[n] s) { s = Identity(b) }
    > }"""


def test_names_read_at_any_depth_are_captured() -> None:
    model = parsed(NESTED, w=[1.0])
    assert onnx_graph.captured(model.graph) == {"a", "b", "c", "w", "x"}
    assert [n.op_type for n in onnx_graph.consumers(model.graph)["a"]] == ["If"]


def test_sorting_puts_a_node_behind_what_its_subgraphs_capture() -> None:
    model = parsed(NESTED, w=[1.0])
    onnx_graph.replace_nodes(model.graph, list(model.graph.node)[::-1])
    onnx_graph.sort(model.graph)
    onnx.checker.check_model(model)
    assert model.graph.node[-1].op_type == "If"


def test_a_sorted_graph_keeps_its_order() -> None:
    model = parsed(NESTED, w=[1.0])
    before = [node.output[0] for node in model.graph.node]
    onnx_graph.sort(model.graph)
    assert [node.output[0] for node in model.graph.node] == before


def test_fresh_names_are_never_given_twice() -> None:
    taken = {"a", "a_2"}
    assert [onnx_graph.fresh("a", taken), onnx_graph.fresh("a", taken), onnx_graph.fresh("b", taken)] == [
        "a_3",
        "a_4",
        "b",
    ]


def test_an_unnamed_node_goes_by_its_first_output() -> None:
    model = parsed(NESTED, w=[1.0])
    assert onnx_graph.matching(model.graph.node, ["a", "[b-c]"], "skip") == {"a", "b"}
    with pytest.raises(StageError, match=r"skip: no node is called 'z\*'; the model has 3 nodes: a, b, y"):
        onnx_graph.matching(model.graph.node, ["z*"], "skip")


def test_raising_the_opset_keeps_weights_names_and_results() -> None:
    weight = np.random.default_rng(0).standard_normal((64, 8)).astype(np.float32)
    model = parsed(
        """<ir_version: 6, opset_import: ["": 11]> g (float[n, 64] x) => (float[n] y) {
        product = MatMul(x, w)
        y = ReduceSum<axes=[1], keepdims=0>(product) }""",
        w=weight,
    )
    feed = {"x": np.random.default_rng(1).standard_normal((3, 64)).astype(np.float32)}
    before = outputs(model, feed)[0]
    raise_opset(model, 22)
    onnx.checker.check_model(model, full_check=True)
    assert opset(model) == 22
    assert [node.op_type for node in model.graph.node] == ["MatMul", "ReduceSum"]
    assert next(t for t in model.graph.initializer if t.name == "w").raw_data == weight.tobytes()
    np.testing.assert_array_equal(outputs(model, feed)[0], before)


def test_a_newer_opset_is_left_alone() -> None:
    model = parsed(NESTED, w=[1.0])
    raise_opset(model, 13)
    assert opset(model) == 20


def test_an_opset_that_cannot_be_raised_says_from_where_to_where() -> None:
    model = parsed("""<ir_version: 6, opset_import: ["": 11]> g (float[n] x) => (float[n] y) { y = NoSuchThing(x) }""")
    with pytest.raises(StageError, match=r"from opset 11 to 22: ONNX has no operator NoSuchThing$") as caught:
        raise_opset(model, 22)
    assert "opset 22 or newer" in caught.value.next_step
