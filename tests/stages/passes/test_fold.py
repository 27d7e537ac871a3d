"""Folding: what is computed, what stays, and that the model never grows beyond its budget."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from tests.stages.passes.rewritten import node_ops, through
from tests.stages.rewriting import outputs, parsed


def folded(model: onnx.ModelProto, **options: int) -> onnx.ModelProto:
    return through(model, "adopt", {"pass": "fold", **options}, "drop_identities", "drop_dead")[0]


def test_a_dim_that_is_known_is_a_constant_though_another_is_not() -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[n, 3, 8] x) => (float[a, b] y) {
        s = Shape(x)
        one = Constant<value_ints = [1]>()
        two = Constant<value_ints = [2]>()
        three = Constant<value_ints = [3]>()
        zero = Constant<value_ints = [0]>()
        c = Gather(s, one)
        last = Slice(s, two, three)
        wide = Mul(c, last)
        n = Slice(s, zero, one)
        to = Concat<axis = 0>(n, wide)
        y = Reshape(x, to) }""")
    after = folded(model)
    assert node_ops(after) == ["Shape", "Slice", "Concat", "Reshape"]
    feed = {"x": np.arange(48, dtype=np.float32).reshape(2, 3, 8)}
    assert outputs(after, feed)[0].tolist() == outputs(model, feed)[0].tolist()


BRANCHES = """<ir_version: 10, opset_import: ["": 20]> g (float[2, 3] x) => (float[a, b] y) {{
    rank = Size(x)
    six = Constant<value_int = {size}>()
    same = Equal(rank, six)
    d = Neg(x)
    y = If (same) <
        then_branch = yes () => (float[a, b] r) {{ k = Constant<value_float = 2.0>()
            d2 = Mul(d, k)
            r = Relu(d2) }},
        else_branch = no () => (float[a, b] r) {{ r = Identity(d) }}
    > }}"""


@pytest.mark.parametrize(("size", "left"), [(6, ["Neg", "Mul", "Relu"]), (7, ["Neg"])])
def test_an_if_with_a_constant_condition_becomes_the_branch_that_is_taken(size: int, left: list[str]) -> None:
    model = parsed(BRANCHES.format(size=size))
    after = folded(model)
    assert node_ops(after) == left
    feed = {"x": np.array([[-1, 2, -3], [4, -5, 6]], np.float32)}
    assert outputs(after, feed)[0].tolist() == outputs(model, feed)[0].tolist()


def test_a_branch_that_is_taken_keeps_clear_of_names_outside() -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y, float[2] z) {
        yes = Constant<value_int = 1>()
        c = Cast<to = 9>(yes)
        y = If (c) < then_branch = t () => (float[2] p) { q = Neg(x)
            p = Relu(q) }, else_branch = e () => (float[2] p) { p = Identity(x) } >
        z = If (c) < then_branch = t () => (float[2] p) { q = Exp(x)
            p = Relu(q) }, else_branch = e () => (float[2] p) { p = Identity(x) } > }""")
    after = folded(model)
    assert sorted(node_ops(after)) == ["Exp", "Neg", "Relu", "Relu"]
    feed = {"x": np.array([-1.5, 2], np.float32)}
    assert [o.tolist() for o in outputs(after, feed)] == [o.tolist() for o in outputs(model, feed)]


def test_subgraphs_are_entered() -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[2] x, bool c) => (float[2] y) {
        y = If (c) <
            then_branch = t () => (float[2] p) { a = Constant<value_float = 2.0>()
                b = Constant<value_float = 3.0>()
                s = Add(a, b)
                p = Mul(x, s) },
            else_branch = e () => (float[2] q) { q = Identity(x) }
        > }""")
    after = folded(model)
    then = next(a.g for a in after.graph.node[0].attribute if a.name == "then_branch")
    assert [node.op_type for node in then.node] == ["Mul"]
    feed = {"x": np.array([1, 2], np.float32), "c": np.array(True)}
    assert outputs(after, feed)[0].tolist() == [5, 10]


def test_what_a_body_declares_of_its_shapes_is_not_believed() -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[n] x, bool c) => (int64[1] y) {
        y = If (c) < then_branch = t () => (int64[1] p) { r = Relu(x)
            p = Shape(r) }, else_branch = e () => (int64[1] q) { q = Shape(x) } > }""")
    then = next(a.g for a in model.graph.node[0].attribute if a.name == "then_branch")
    then.value_info.append(onnx.helper.make_tensor_value_info("r", onnx.TensorProto.FLOAT, [7]))
    feed = {"x": np.zeros(2, np.float32), "c": np.array(True)}
    assert outputs(folded(model), feed)[0].tolist() == [2]


def test_a_node_that_cannot_be_run_does_not_keep_the_others_from_being_folded() -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y, float[3] z) {
        a = Constant<value_floats = [1.0, 2.0]>()
        b = Constant<value_floats = [1.0, 2.0, 3.0]>()
        sum = Add(a, a)
        wrong = Add(a, b)
        y = Mul(x, sum)
        z = Identity(wrong) }""")
    after, did = through(model, "adopt", "fold")
    assert "Mul" in node_ops(after)
    assert "sum" in {tensor.name for tensor in after.graph.initializer}
    assert list(did["not_folded"]) == ["wrong"]  # type: ignore[call-overload]


def constant_bytes(model: onnx.ModelProto) -> int:
    return sum(numpy_helper.to_array(tensor).nbytes for tensor in model.graph.initializer)


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    budget=st.integers(0, 3000),
    largest=st.integers(0, 2000),
)
def test_constants_never_grow_beyond_the_budget(sizes: list[int], budget: int, largest: int) -> None:
    lines = [f"b{i} = Expand(one, to{i})\n n{i} = Neg(b{i})\n y{i} = Add(x, n{i})" for i in range(len(sizes))]
    results = ", ".join(f"float[a{i}] y{i}" for i in range(len(sizes)))
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]> g (float[1] x) => ({results}) {{ {chr(10).join(lines)} }}""",
        one=[1.0],
        **{f"to{i}": np.array([size], np.int64) for i, size in enumerate(sizes)},
    )
    after = folded(model, max_bytes=largest, max_growth_bytes=budget)
    assert constant_bytes(after) <= constant_bytes(model) + budget
    feed = {"x": np.ones(1, np.float32)}
    assert [o.tolist() for o in outputs(after, feed)] == [o.tolist() for o in outputs(model, feed)]


def test_a_small_model_of_generators_stays_small() -> None:
    lines = "\n".join(f"b{i} = Expand(one, to)\n y{i} = Add(x, b{i})" for i in range(12))
    results = ", ".join(f"float[a{i}] y{i}" for i in range(12))
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]> g (float[1] x) => ({results}) {{ {lines} }}""",
        one=[1.0],
        to=np.array([262_144], np.int64),
    )
    after = folded(model)
    assert constant_bytes(after) <= 8_388_608 + constant_bytes(model)
    assert node_ops(after).count("Expand") == 12 - 8
