"""Casting: low where the schemas allow it, Casts only at the boundaries, nothing that a low float cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from stages import surgery
from stages.cast import STAGE, CastConfig
from stages.stage import StageError
from tests.stages.rewriting import DIGITS, TARGETS, ops, outputs, parsed, plan_bytes, residual_block, run, saved, sqnr


def rng() -> np.random.Generator:
    """The same numbers in every test, whatever ran before."""
    return np.random.default_rng(0)


X = rng().standard_normal((4, 4, 8, 8)).astype(np.float32)


def lowered(model: onnx.ModelProto, tmp_path: Path, **config: Any) -> tuple[Path, dict[str, Any]]:
    path, metrics = run(STAGE, tmp_path / "out", CastConfig(**config), onnx=saved(model, tmp_path / "in.onnx"))
    onnx.checker.check_model(str(path), full_check=True)
    return path, metrics


def types(path: Path) -> dict[str, int]:
    model = onnx.shape_inference.infer_shapes(onnx.load(str(path)), strict_mode=True)
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in model.graph.initializer}


def test_a_network_is_low_throughout_with_casts_at_its_ends_only(tmp_path: Path) -> None:
    model = residual_block(rng())
    path, metrics = lowered(model, tmp_path)
    assert ops(path)[0] == ops(path)[-1] == "Cast"
    assert ops(path).count("Cast") == metrics["casts"] == 2
    assert (metrics["kept"], metrics["kept_weighted"]) == (0, [])
    assert types(path)["w1"] == TensorProto.FLOAT16
    assert types(path)["x"] == types(path)["y"] == TensorProto.FLOAT
    assert sqnr(outputs(model, {"x": X})[0], outputs(path, {"x": X})[0]) > 50


def test_inputs_and_outputs_become_low_when_asked(tmp_path: Path) -> None:
    path, _ = lowered(residual_block(rng()), tmp_path, keep_io_types=False)
    assert "Cast" not in ops(path)
    assert types(path)["x"] == types(path)["y"] == TensorProto.FLOAT16


def test_kept_nodes_stay_float32_and_are_named(tmp_path: Path) -> None:
    path, metrics = lowered(residual_block(rng()), tmp_path, keep=["first_*"])
    assert types(path)["w1"] == TensorProto.FLOAT
    assert types(path)["w2"] == TensorProto.FLOAT16
    assert metrics["kept_weighted"] == ["first_conv"]


def test_a_pattern_without_a_node_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no node is called 'nonesuch'"):
        lowered(residual_block(rng()), tmp_path, keep=["nonesuch"])


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_operators_of_a_domain_that_is_not_imported_are_left_alone(tmp_path: Path, precision: str) -> None:
    """bf16 also raises the opset from 20 to 22."""
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20, "acme": 1]> g (float[n, 4] x) => (float[n, 4] y) {
        before = MatMul(x, w)
        odd = acme.Mystery(before)
        y = Relu(odd) }""",
        w=np.eye(4),
    )
    del model.opset_import[1]
    path, metrics = run(STAGE, tmp_path / "out", CastConfig(precision), onnx=saved(model, tmp_path / "in.onnx"))
    after = onnx.load(str(path))
    assert [node.op_type for node in after.graph.node] == ["Cast", "MatMul", "Cast", "Mystery", "Relu"]
    assert [entry.domain for entry in after.opset_import] == [""]
    assert metrics["opset"] == (22 if precision == "bf16" else 20)


@pytest.mark.parametrize("value", [7e4, -1e9])
def test_a_weight_that_float16_cannot_hold_keeps_its_node_in_float32(tmp_path: Path, value: float) -> None:
    model = residual_block(rng())
    weight = next(t for t in model.graph.initializer if t.name == "w1")
    array = numpy_helper.to_array(weight).copy()
    array[0, 0, 0, 0] = value
    weight.CopyFrom(numpy_helper.from_array(array, "w1"))
    path, metrics = lowered(model, tmp_path)
    assert metrics["out_of_range"] == metrics["kept_weighted"] == ["first_conv"]
    np.testing.assert_array_equal(
        numpy_helper.to_array(next(t for t in onnx.load(str(path)).graph.initializer if t.name == "w1")), array
    )
    assert lowered(model, tmp_path, precision="bf16")[1]["out_of_range"] == []


def test_a_constant_that_would_become_zero_keeps_its_node_in_float32(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) { y = Add(x, epsilon) }""",
        epsilon=np.float32(1e-12).reshape(()),
    )
    assert lowered(model, tmp_path)[1]["out_of_range"] == ["y"]


def test_a_weight_read_both_ways_exists_twice(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {
        a = MatMul(x, w)
        b = MatMul(x, w)
        y = Add(a, b) }""",
        w=rng().standard_normal((4, 4)),
    )
    path, _ = lowered(model, tmp_path, keep=["b"])
    kinds = sorted(t.data_type for t in onnx.load(str(path)).graph.initializer)
    assert kinds == [TensorProto.FLOAT, TensorProto.FLOAT16]


def test_scales_that_the_schema_wants_in_float32_stay_so(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4, 8, 8] x) => (float[n, 4, 16, 16] y) {
        y = Resize<mode="nearest">(x, , scales) }""",
        scales=[1, 1, 2, 2.0],
    )
    path, metrics = lowered(model, tmp_path)
    assert types(path)["scales"] == TensorProto.FLOAT
    assert metrics["low"] == 1
    assert plan_bytes(path, "SM86") > 0


def test_arithmetic_on_shapes_stays_exact(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, m] x) => (float[k] y) {
        dims = Shape(x)
        real = Cast<to=1>(dims)
        more = Mul(real, three)
        count = ReduceProd<keepdims=1>(more)
        whole = Cast<to=7>(count)
        y = ConstantOfShape(whole) }""",
        three=[1, 3.0],
    )
    path, metrics = lowered(model, tmp_path)
    assert metrics["low"] == 0  # ONNX Runtime's CPU computes float16 in float32 and would not show the difference
    assert outputs(path, {"x": np.zeros((1, 2049), np.float32)})[0].shape == (6147,)


LOOPING = """<ir_version: 10, opset_import: ["": 20]> g (float[n] x, bool c) => (float[n] y) {
    doubled = Mul(x, two)
    chosen = If (c) <
        then_branch = yes () => (float[n] p) { p = Add(doubled, two) },
        else_branch = no () => (float[n] q) { q = Neg(doubled) }
    >
    y = Mul(chosen, two) }"""


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("keep_io_types", [True, False])
def test_what_a_subgraph_reads_stays_float32(tmp_path: Path, condition: bool, keep_io_types: bool) -> None:
    model = parsed(LOOPING, two=[2.0])
    path, metrics = lowered(model, tmp_path, keep_io_types=keep_io_types)
    x = np.array([1.0, -3.0], np.float32)
    found = outputs(path, {"x": x if keep_io_types else x.astype(np.float16), "c": np.array(condition)})[0]
    assert metrics["low"] == 2
    assert found.tolist() == outputs(model, {"x": x, "c": np.array(condition)})[0].tolist()


def test_bfloat16_raises_the_opset_so_that_convolutions_are_low(tmp_path: Path) -> None:
    model = residual_block(rng())
    path, metrics = lowered(model, tmp_path, precision="bf16")
    assert (metrics["opset"], metrics["kept"]) == (22, 0)
    assert types(path)["w1"] == TensorProto.BFLOAT16
    assert all(plan_bytes(path, target) > 0 for target in TARGETS)


def test_a_bfloat16_product_is_near_the_float32_one(tmp_path: Path) -> None:
    from onnx.reference import ReferenceEvaluator

    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 8] x) => (float[n, 3] y) { y = MatMul(x, w) }""",
        w=rng().standard_normal((8, 3)),
    )
    path, _ = lowered(model, tmp_path, precision="bf16")
    x = rng().standard_normal((16, 8)).astype(np.float32)
    found = ReferenceEvaluator(onnx.load(str(path))).run(None, {"x": x})[0]
    assert 30 < sqnr(outputs(model, {"x": x})[0], found) < 70


def test_deconvolutions_stay_float32_in_bfloat16_because_they_do_not_build(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4, 8, 8] x) => (float[n, 4, 10, 10] y) {
        r = Relu(x)
        y = ConvTranspose(r, w) }""",
        w=rng().standard_normal((4, 4, 3, 3)),
    )
    path, metrics = lowered(model, tmp_path, precision="bf16")
    assert metrics["kept_weighted"] == ["y"]
    assert plan_bytes(path, "SM86") > 0


def test_the_digits_in_float16_decide_the_same_and_build(tmp_path: Path) -> None:
    clean, _ = run(surgery.STAGE, tmp_path / "surgery", onnx=DIGITS / "digits.onnx")
    path, metrics = run(STAGE, tmp_path, onnx=clean)
    images = np.load(DIGITS / "holdout.npz")["images"]
    before, after = outputs(DIGITS / "digits.onnx", {"images": images})[0], outputs(path, {"images": images})[0]
    assert metrics["kept_weighted"] == []
    assert (before.argmax(axis=1) == after.argmax(axis=1)).all()
    assert sqnr(before, after) > 50
    assert all(plan_bytes(path, target) > 0 for target in TARGETS)
