"""Surgery changes the graph, never what it computes nor what a caller sees of it."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from benchmarks import torch_exports
from stages.stage import StageError
from stages.surgery import DEFAULT, STAGE, SurgeryConfig
from tests.stages.rewriting import DIGITS, TARGETS, ops, outputs, parsed, plan_bytes, rng, run, saved


def operated(model: onnx.ModelProto, tmp_path: Path, **config: Any) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """The model after surgery, and what its passes say of themselves, all in one mapping."""
    path, metrics = run(STAGE, tmp_path / "out", SurgeryConfig(**config), onnx=saved(model, tmp_path / "in.onnx"))
    did = {name: value for each in metrics["passes"] for name, value in each.items()}
    return onnx.load(str(path)), {**did, **metrics}


def folding(**options: int) -> list[Any]:
    return [{"pass": "fold", **options} if name == "fold" else name for name in DEFAULT]


def test_constant_nodes_become_initializers_and_what_they_feed_is_folded(tmp_path: Path) -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[n, 3] x) => (float[n, 3] y) {
        one = Constant<value_float = 1.0>()
        three = Constant<value_floats = [1.0, 2.0, 3.0]>()
        sum = Add(one, three)
        y = Mul(x, sum) }""")
    after, metrics = operated(model, tmp_path)
    assert [node.op_type for node in after.graph.node] == ["Mul"]
    assert numpy_helper.to_array(after.graph.initializer[0]).tolist() == [2.0, 3.0, 4.0]
    assert (metrics["nodes_before"], metrics["nodes_after"], metrics["folded"]) == (4, 1, 1)


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [("start=1", [3, 8, 5]), ("start=-2", [8, 5]), ("start=1, end=-1", [3, 8]), ("start=2, end=1", [])],
)
def test_shape_of_static_dims_is_folded_with_its_bounds(tmp_path: Path, bounds: str, expected: list[int]) -> None:
    model = parsed(f"""<ir_version: 10, opset_import: ["": 20]> g (float[n, 3, 8, 5] x) => (int64[k] y) {{
        y = Shape<{bounds}>(x) }}""")
    after, _ = operated(model, tmp_path)
    assert not after.graph.node
    assert numpy_helper.to_array(after.graph.initializer[0]).tolist() == expected


def test_shape_with_a_dynamic_dim_stays(tmp_path: Path) -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[n, 3] x) => (int64[2] y, int64 z) {
        y = Shape(x)
        z = Size(x) }""")
    after, _ = operated(model, tmp_path)
    assert [node.op_type for node in after.graph.node] == ["Shape", "Size"]


@pytest.mark.parametrize("declaration", ["(int64[2] y) <float[7, 7] r>", "(int64[2] y, float[7, 7] r)"])
def test_a_wrong_declared_shape_does_not_become_a_constant(tmp_path: Path, declaration: str) -> None:
    model = parsed(f"""<ir_version: 10, opset_import: ["": 20]> g (float[n, 3] x) => {declaration} {{
        r = Relu(x)
        y = Shape(r) }}""")
    after, _ = operated(model, tmp_path)
    assert outputs(after, {"x": np.zeros((2, 3), np.float32)})[0].tolist() == [2, 3]


def test_a_shape_found_by_folding_reveals_the_next_constant(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[2, 12] x) => (float[4] y) {
        to = Concat<axis=0>(a, b)
        cube = Reshape(x, to)
        dims = Shape(cube)
        y = Cast<to=1>(dims) }""",
        a=np.array([2, 3], np.int64),
        b=np.array([2, 2], np.int64),
    )
    after, _ = operated(model, tmp_path)
    assert not after.graph.node
    assert numpy_helper.to_array(after.graph.initializer[0]).tolist() == [2, 3, 2, 2]


def test_a_large_result_stays_a_node_and_is_named(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[1000] x) => (float[1000, 1000] y) {
        big = Expand(one, to)
        y = Add(x, big) }""",
        one=[1.0],
        to=np.array([1000, 1000], np.int64),
    )
    after, metrics = operated(model, tmp_path)
    assert [node.op_type for node in after.graph.node] == ["Expand", "Add"]
    assert "larger than 1048576 bytes" in metrics["not_folded"]["big"]
    assert metrics["bytes_after"] < 2_000
    allowed, _ = operated(model, tmp_path, passes=folding(max_bytes=4_000_000))
    assert [node.op_type for node in allowed.graph.node] == ["Add"]


def test_a_large_weight_is_transposed_once_and_for_all(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 64] x) => (float[n, 64] y) {
        t = Transpose(w)
        y = MatMul(x, t) }""",
        w=rng().standard_normal((64, 64)),
    )
    after, _ = operated(model, tmp_path, passes=folding(max_bytes=16))
    assert [node.op_type for node in after.graph.node] == ["MatMul"]


def test_random_numbers_and_qdq_are_left_alone(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y, float[4] r) {
        codes = QuantizeLinear(w, s, z)
        back = DequantizeLinear(codes, s, z)
        r = RandomNormal<shape=[4]>()
        y = MatMul(x, back) }""",
        w=np.eye(4, dtype=np.float32),
        s=np.float32(0.1).reshape(()),
        z=np.int8(0).reshape(()),
    )
    after, _ = operated(model, tmp_path)
    assert sorted(n.op_type for n in after.graph.node) == sorted(n.op_type for n in model.graph.node)


def test_identities_go_and_the_outputs_keep_their_names(tmp_path: Path) -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y, float[n] z, float[n] w) {
        a = Identity(x)
        r = Relu(a)
        b = Identity(r)
        y = Identity(b)
        z = Identity(r)
        w = Identity(x) }""")
    after, _ = operated(model, tmp_path)
    feed = {"x": np.array([-1.0, 2.0], np.float32)}
    assert [v.name for v in after.graph.output] == ["y", "z", "w"]
    assert [o.tolist() for o in outputs(after, feed)] == [o.tolist() for o in outputs(model, feed)]
    assert [node.op_type for node in after.graph.node] == ["Relu", "Identity", "Identity"]


def test_dead_nodes_and_unused_initializers_go(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) {
        dead = Mul(x, k)
        deader = Relu(dead)
        y = Relu(x) }""",
        k=[2.0],
        unused=[3.0],
    )
    after, metrics = operated(model, tmp_path)
    assert (len(after.graph.node), len(after.graph.initializer)) == (1, 0)
    dead = next(each for each in metrics["passes"] if "initializers_dropped" in each)
    assert (dead["dropped"], dead["initializers_dropped"]) == (2, 2)


CAPTURING = """<ir_version: 10, opset_import: ["": 20]> g (float[n] x, bool c) => (float[n] y) {
    doubled = Mul(x, two)
    same = Identity(doubled)
    small = Identity(half)
    y = If (c) <
        then_branch = yes () => (float[n] p) { p = Add(same, small) },
        else_branch = no () => (float[n] q) { q = Identity(doubled) }
    > }"""


@pytest.mark.parametrize("condition", [True, False])
def test_what_a_subgraph_captures_survives(tmp_path: Path, condition: bool) -> None:
    model = parsed(CAPTURING, two=[2.0], half=[0.5])
    after, _ = operated(model, tmp_path)
    feed = {"x": np.array([1.0, -3.0], np.float32), "c": np.array(condition)}
    onnx.checker.check_model(after, full_check=True)
    assert outputs(after, feed)[0].tolist() == outputs(model, feed)[0].tolist()


def test_what_a_subgraph_captures_keeps_its_name_where_an_output_is_the_same(tmp_path: Path) -> None:
    model = parsed(
        CAPTURING.replace("(float[n] y)", "(float[n] y, float[n] z)").replace(
            "same =", "z = Identity(doubled)\n same ="
        ),
        two=[2.0],
        half=[0.5],
    )
    after, _ = operated(model, tmp_path)
    feed = {"x": np.array([1.0, -3.0], np.float32), "c": np.array(False)}
    assert [o.tolist() for o in outputs(after, feed)] == [o.tolist() for o in outputs(model, feed)]


NORMED = {
    "Conv": (
        "Conv<group={group}, kernel_shape=[3, 3]>",
        lambda group: (6, 6 // group, 3, 3),
    ),
    "ConvTranspose": (
        "ConvTranspose<group={group}, kernel_shape=[3, 3]>",
        lambda group: (6, 6 // group, 3, 3),
    ),
}


def normed(op: str, group: int, bias: bool, extra: str = "", returns: str = "") -> onnx.ModelProto:
    call, shape = NORMED[op]
    draw = rng()
    norm = {name: draw.standard_normal(6) for name in ("gamma", "beta", "mean")}
    return parsed(
        f"""<ir_version: 10, opset_import: ["": 20]> g (float[n, 6, 8, 8] x) => (float[n, 6, h, w] y {returns}) {{
        c = {call.format(group=group)}(x, w{", b" if bias else ""})
        y = BatchNormalization<epsilon=0.01>(c, gamma, beta, mean, var)
        {extra} }}""",
        w=draw.standard_normal(shape(group)),
        **({"b": draw.standard_normal(6)} if bias else {}),
        **norm,
        var=draw.uniform(0.1, 3, 6),
    )


@pytest.mark.parametrize("op", NORMED)
@pytest.mark.parametrize("group", [1, 2, 6])
@pytest.mark.parametrize("bias", [True, False])
def test_batch_normalization_goes_into_the_convolution_before_it(
    tmp_path: Path, op: str, group: int, bias: bool
) -> None:
    model = normed(op, group, bias)
    after, metrics = operated(model, tmp_path)
    feed = {"x": rng().standard_normal((2, 6, 8, 8)).astype(np.float32)}
    assert [node.op_type for node in after.graph.node] == [op]
    assert metrics["fused"] == 1
    np.testing.assert_allclose(outputs(after, feed)[0], outputs(model, feed)[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("extra", "returns"), [("z = Relu(c)", ", float[n, 6, h, w] z"), ("", ", float[n, 6, h, w] c")]
)
def test_a_convolution_that_something_else_reads_keeps_its_normalization(
    tmp_path: Path, extra: str, returns: str
) -> None:
    after, metrics = operated(normed("Conv", 1, True, extra, returns), tmp_path)
    assert metrics["fused"] == 0
    assert "BatchNormalization" in [node.op_type for node in after.graph.node]


def test_fusing_can_be_left_out(tmp_path: Path) -> None:
    passes = [name for name in DEFAULT if name != "fuse_conv_bn"]
    after, _ = operated(normed("Conv", 1, True), tmp_path, passes=passes)
    assert [node.op_type for node in after.graph.node] == ["Conv", "BatchNormalization"]


def test_an_unsorted_graph_comes_out_sorted(tmp_path: Path) -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) {
        a = Relu(x)
        b = Neg(a)
        y = Abs(b) }""")
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    after, _ = operated(model, tmp_path)
    onnx.checker.check_model(after)
    assert [node.op_type for node in after.graph.node] == ["Relu", "Neg", "Abs"]


def test_a_circle_is_an_error(tmp_path: Path) -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) {
        a = Add(x, y)
        y = Relu(a) }""")
    with pytest.raises(StageError, match="circle"):
        operated(model, tmp_path)


def test_shape_inference_that_fails_is_told_and_the_model_goes_through(tmp_path: Path) -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[2, 3] x) => (float[2, 3] y) {
        a = Identity(x)
        y = MatMul(a, x) }""")
    after, metrics = operated(model, tmp_path)
    assert metrics["shape_inference"] != "ok"
    assert [node.op_type for node in after.graph.node] == ["MatMul"]


def test_weights_listed_as_inputs_are_weights(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 3, opset_import: ["": 8]> g (float[2] x, float[2] k, float[2] j) => (float[2] y) {
        sum = Add(k, j)
        y = Add(x, sum) }""",
        k=[1.0, 2.0],
        j=[3.0, 4.0],
    )
    after, _ = operated(model, tmp_path)
    assert [value.name for value in after.graph.input] == ["x"]
    assert outputs(after, {"x": np.zeros(2, np.float32)})[0].tolist() == [4.0, 6.0]


def test_a_negative_dimension_is_dynamic_and_nothing_is_computed_from_it(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, m, 3] x) => (int64[1] y, int64[2] z) {
        flat = Flatten<axis=2>(x)
        y = Shape<end=1>(flat)
        z = Shape<end=2>(x) }"""
    )
    for dim in model.graph.input[0].type.tensor_type.shape.dim[:2]:
        dim.dim_value = -1
    after, _ = operated(model, tmp_path)
    x = np.zeros((2, 5, 3), np.float32)
    assert [found.tolist() for found in outputs(after, {"x": x})] == [[10], [2, 5]]


def test_operators_of_a_domain_that_is_not_imported_are_left_alone(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20, "acme": 1]> g (float[n, 4] x) => (float[n, 4] y) {
        odd = acme.Mystery(x)
        one = Constant<value_float = 1.0>()
        two = Add(one, one)
        y = Mul(odd, two) }"""
    )
    del model.opset_import[1]
    after, metrics = operated(model, tmp_path)
    assert [node.op_type for node in after.graph.node] == ["Mystery", "Mul"]
    assert metrics["shape_inference"] == "ok"
    assert [entry.domain for entry in after.opset_import] == [""]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    first, _ = run(STAGE, tmp_path / "a", onnx=DIGITS / "digits.onnx")
    second, _ = run(STAGE, tmp_path / "b", onnx=DIGITS / "digits.onnx")
    assert first.read_bytes() == second.read_bytes()


def test_digits_lose_their_normalizations_and_build(tmp_path: Path) -> None:
    path, metrics = run(STAGE, tmp_path, onnx=DIGITS / "digits.onnx")
    feed = {"images": np.load(DIGITS / "holdout.npz")["images"]}
    assert [each["fused"] for each in metrics["passes"] if "fused" in each] == [6]
    assert metrics["comparisons"][0]["compared"] is True
    assert metrics["comparisons"][0]["runs"] == 3
    assert set(ops(path)) == {"Conv", "Relu", "Add", "ReduceMean", "Gemm"}
    np.testing.assert_allclose(outputs(path, feed)[0], outputs(DIGITS / "digits.onnx", feed)[0], rtol=1e-4, atol=1e-4)
    assert all(plan_bytes(path, target) > 0 for target in TARGETS)


@cache
def backend_cases() -> tuple[Any, ...]:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases overflow and divide by zero on purpose
        return tuple(collect_testcases(None))


@pytest.mark.parametrize("part", range(8))
@pytest.mark.parametrize("constant", [False, True], ids=["as it is", "all inputs constant"])
def test_onnx_own_cases_compute_the_same_after_surgery(tmp_path: Path, part: int, constant: bool) -> None:
    """Every eighth case, and of those every third, so that a run takes seconds; `part` moves through all kinds."""
    compared = 0
    for case in backend_cases()[part :: 8 * 3]:
        if not all(isinstance(value, np.ndarray) for value in case.data_sets[0][0]):
            continue
        model = onnx.ModelProto()
        model.CopyFrom(case.model)
        feeds = {v.name: a for v, a in zip(model.graph.input, case.data_sets[0][0], strict=False)}
        if constant:
            model.graph.initializer.extend(
                onnx.helper.make_tensor(
                    v.name, v.type.tensor_type.elem_type, feeds[v.name].shape, feeds[v.name].tobytes(), raw=True
                )
                for v in model.graph.input
                if feeds[v.name].dtype != object and v.type.tensor_type.elem_type not in PACKED
            )
            if len(model.graph.initializer) < len(feeds):
                continue
            del model.graph.input[:]
            feeds = {}
        try:
            expected = outputs(model, feeds)
        except Exception:  # noqa: S112 - an operator that ONNX Runtime does not have
            continue
        # Their Q/DQ is asymmetric UINT8 as often as not, which is TensorRT's to refuse, not the passes' to keep.
        after, _ = operated(model, tmp_path, passes=[name for name in DEFAULT if name != "check_qdq"])
        same_interface(model, after)
        for one, other in zip(expected, outputs(after, feeds), strict=True):
            if np.asarray(one).dtype.kind == "f":  # fp16 on a CPU is rounded where ONNX Runtime puts its casts
                np.testing.assert_allclose(other, one, case.rtol, case.atol, err_msg=case.name)
            else:
                np.testing.assert_equal(np.asarray(one), np.asarray(other), err_msg=case.name)
        compared += 1
    assert compared > 30


PACKED = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1, 25, 26)
"""Types with several elements in a byte: `tobytes` does not give their stored form."""


def same_interface(one: onnx.ModelProto, other: onnx.ModelProto) -> None:
    for values, others in ((one.graph.input, other.graph.input), (one.graph.output, other.graph.output)):
        assert [(v.name, v.type) for v in values] == [(v.name, v.type) for v in others]


@pytest.mark.torch
@pytest.mark.parametrize("title", ["attention", "LSTM", "interpolation"])
def test_what_torch_exports_with_its_dims_fixed_still_loads_and_is_folded(tmp_path: Path, title: str) -> None:
    each = next(each for each in torch_exports.EXPORTED if each.title == title)
    pytest.importorskip("torch")
    model = torch_exports.exported(each, tmp_path)
    assert any(a.name == "start" for node in model.graph.node if node.op_type == "Shape" for a in node.attribute)
    after, metrics = operated(model, tmp_path)
    assert "Shape" not in [node.op_type for node in after.graph.node]
    assert metrics["comparisons"][0]["compared"] is True
