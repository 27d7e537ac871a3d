"""Casting: low where the schemas allow it, Casts only at the boundaries, nothing that a low float cannot hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from stages import surgery
from stages.allowed import NotAllowedError
from stages.cast import STAGE, CastConfig
from stages.stage import StageError
from tests.stages.rewriting import (
    DIGITS,
    TARGETS,
    ops,
    outputs,
    parsed,
    plan_bytes,
    plan_graph_of,
    residual_block,
    rng,
    run,
    saved,
    sqnr,
)

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


def test_a_batch_normalization_with_a_variance_that_float16_cannot_hold_stays_float32(tmp_path: Path) -> None:
    """The OCR detector of PP-OCRv4 has one of 9.8e7: clamped to 65,504, its channel would be 39 times too large."""
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) {
        a = Conv<pads=[1, 1, 1, 1]>(x, w)
        b = BatchNormalization(a, scale, bias, mean, variance)
        y = Relu(b) }""",
        w=rng().standard_normal((4, 4, 3, 3)),
        **{name: rng().standard_normal(4) for name in ("bias", "mean")},
        scale=[1, 1e4, 1, 1.0],
        variance=[1, 9.8e7, 1, 2.0],
    )
    path, metrics = lowered(model, tmp_path)
    assert (metrics["out_of_range"], metrics["low"]) == (["b"], 2)
    assert sqnr(outputs(model, {"x": X})[0], outputs(path, {"x": X})[0]) > 50


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


def reference(path: Path, feeds: dict[str, Any]) -> list[Any]:
    """What ONNX's reference evaluator computes, whose float16 is float16: ONNX Runtime's CPU hides what overflows."""
    from onnx.reference import ReferenceEvaluator

    with np.errstate(all="ignore"):
        return list(ReferenceEvaluator(onnx.load(str(path))).run(None, feeds))


TRAPS = {
    "an activation": "a = Mul(x, thousand)\n b = Mul(a, thousand)\n c = Mul(b, thousandth)\n y = Mul(c, thousandth)",
    "the sum inside a mean": "a = Mul(x, thousand)\n m = ReduceMean(a)\n y = Add(x, m)",
    "the sum inside a pool": "a = Mul(x, thousand)\n m = AveragePool<kernel_shape=[8, 8]>(a)\n y = Add(x, m)",
    "the squares inside a norm": "a = Mul(x, hundred)\n m = ReduceL2(a)\n y = Add(x, m)",
    "the exponential inside": "a = Mul(x, four)\n s = Softplus(a)\n y = Add(x, s)",
    "a divisor": "a = Abs(x)\n b = Mul(a, thousandth)\n c = Mul(b, millionth)\n y = Div(c, c)",
}

SHOWN = ("an activation", "the squares inside a norm", "a divisor")
"""Where the reference evaluator fails without data; inside the others it computes in more than float16."""


@pytest.fixture(scope="module")
def loud(tmp_path_factory: pytest.TempPathFactory) -> tuple[np.ndarray, Path]:
    """A batch whose values, some 9.6 at most, are small; what the traps make of them is not."""
    x = np.abs(rng().standard_normal((2, 1, 8, 8))).astype(np.float32) + 0.5
    x[0, 0, 0, 0] = 9.6
    path = tmp_path_factory.mktemp("loud") / "x.npz"
    np.savez(path, x=x)
    return x, path


@pytest.mark.parametrize("trap", TRAPS)
def test_what_float16_cannot_hold_on_real_batches_stays_float32(
    trap: str, loud: tuple[np.ndarray, Path], tmp_path: Path
) -> None:
    x, batch = loud
    numbers = {"four": 4.0, "hundred": 100.0, "thousand": 1e3, "thousandth": 1e-3, "millionth": 1e-6}
    weights = {name: np.full(1, value, np.float32) for name, value in numbers.items() if name in TRAPS[trap]}
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]> g (float[n, 1, 8, 8] x) => (float[n, 1, 8, 8] y) {{
        {TRAPS[trap]} }}""",
        **weights,
    )
    onnx_file = saved(model, tmp_path / "in.onnx")
    blind, unchecked = run(STAGE, tmp_path / "blind", onnx=onnx_file)
    path, metrics = run(STAGE, tmp_path / "out", onnx=onnx_file, calibration=batch)
    expected = outputs(model, {"x": x})[0]
    assert (unchecked["overflow_checked"], metrics["overflow_checked"], metrics["overflow_samples"]) == (False, True, 2)
    assert unchecked["overflow_unchecked_reason"] == "there are no calibration data"
    assert metrics["overflow"] or metrics["underflow"]
    assert sqnr(expected, reference(path, {"x": x})[0]) > 40
    wrong = reference(blind, {"x": x})[0]
    if trap in SHOWN:
        assert not np.isfinite(wrong).all() or sqnr(expected, wrong) < 10


def test_nodes_kept_from_overflow_are_named_with_what_they_reach(loud: tuple[np.ndarray, Path], tmp_path: Path) -> None:
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]> g (float[n, 1, 8, 8] x) => (float[n, 1, 8, 8] y) {{
        {TRAPS["an activation"]} }}""",
        thousand=[1e3],
        thousandth=[1e-3],
    )
    _, metrics = run(STAGE, tmp_path, onnx=saved(model, tmp_path / "in.onnx"), calibration=loud[1])
    assert metrics["overflow"] == {"b": pytest.approx(9.6e6), "c": pytest.approx(9.6e6)}
    assert (metrics["low"], metrics["kept"]) == (2, 2)


def test_what_infinity_masks_out_is_no_overflow(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x, bool[n, 4] mask) => (float[n, 4] y) {
        masked = Where(mask, x, low)
        y = Softmax(masked) }""",
        low=np.array(-np.inf, np.float32),
    )
    x, mask = rng().standard_normal((2, 4)).astype(np.float32), np.array([[True, False, True, True]] * 2)
    np.savez(tmp_path / "x.npz", x=x, mask=mask)
    path, metrics = run(STAGE, tmp_path, onnx=saved(model, tmp_path / "in.onnx"), calibration=tmp_path / "x.npz")
    assert (metrics["overflow"], metrics["kept"]) == ({}, 0)
    assert sqnr(outputs(model, {"x": x, "mask": mask})[0], reference(path, {"x": x, "mask": mask})[0]) > 50


def test_what_divides_by_a_tiny_constant_stays_float32_without_data_too(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {
        squares = Mul(x, x)
        sum = ReduceSum(squares, axis)
        shifted = Add(sum, epsilon)
        norm = Sqrt(shifted)
        y = Div(x, norm) }""",
        axis=np.array([1]),
        epsilon=np.float32(1e-12).reshape(()),
    )
    path, metrics = lowered(model, tmp_path)
    assert metrics["out_of_range"] == ["shifted", "norm", "y"]
    zeros = np.zeros((1, 4), np.float32)
    assert reference(path, {"x": zeros})[0].tolist() == zeros.tolist()


def test_batches_of_another_model_are_refused(loud: tuple[np.ndarray, Path], tmp_path: Path) -> None:
    model = saved(residual_block(rng()), tmp_path / "in.onnx")
    with pytest.raises(StageError, match=r"'x' is float32 \(2, 1, 8, 8\)"):
        run(STAGE, tmp_path, onnx=model, calibration=loud[1])


def test_a_model_that_cannot_be_run_here_is_cast_and_says_that_nobody_looked(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20, "acme": 1]> g (float[n, 4] x) => (float[n, 4] y) {
        odd = acme.Mystery(x)
        y = Relu(odd) }"""
    )
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("odd", TensorProto.FLOAT, ["n", 4]))
    np.savez(tmp_path / "x.npz", x=np.zeros((1, 4), np.float32))
    _, metrics = run(STAGE, tmp_path, onnx=saved(model, tmp_path / "in.onnx"), calibration=tmp_path / "x.npz")
    assert (metrics["low"], metrics["overflow_checked"]) == (1, False)
    assert "cannot load" in str(metrics["overflow_unchecked_reason"])


def test_one_model_holds_several_precisions(tmp_path: Path) -> None:
    model = residual_block(rng())
    path, metrics = lowered(model, tmp_path, layers={"first*": "bf16", "y": "fp32"})
    found = types(path)
    assert [found[name] for name in ("w0", "w1", "w2", "wg")] == [
        TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.FLOAT16, TensorProto.FLOAT,
    ]  # fmt: skip
    assert metrics["kept_weighted"] == ["y"]
    assert ops(path).count("Cast") == metrics["casts"] == 4  # x, before and after the block of bf16, before the Gemm
    assert plan_bytes(path, "SM86") > 0
    only, metrics = lowered(model, tmp_path, precision="fp32", layers={"stem*": "fp16"})
    assert (metrics["low"], metrics["casts"]) == (2, 2)
    assert sqnr(outputs(model, {"x": X})[0], outputs(only, {"x": X})[0]) > 50


def test_a_weight_is_there_once_for_each_precision_that_reads_it(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 22]> g (float[n, 4] x) => (float[n, 4] y) {
        a = MatMul(x, w)
        b = MatMul(a, w)
        y = MatMul(b, w) }""",
        w=rng().standard_normal((4, 4)),
    )
    path, _ = lowered(model, tmp_path, layers={"b": "bf16", "y": "fp32"})
    kinds = sorted(t.data_type for t in onnx.load(str(path)).graph.initializer)
    assert kinds == [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16]


def test_two_patterns_that_ask_different_things_of_a_node_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"'first_conv' matches 'first\*', which says bf16, and '\*conv', which says"):
        lowered(residual_block(rng()), tmp_path, layers={"first*": "bf16", "*conv": "fp32"})


def test_a_precision_that_there_is_not_is_refused_with_the_pattern() -> None:
    with pytest.raises(NotAllowedError, match=r"layers\.a\*: got 'fp8'; allowed: fp16, bf16, fp32"):
        CastConfig(layers={"a*": "fp8"})


QUANTIZED = """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) {
    xq = QuantizeLinear(x, scale, zero)
    xd = DequantizeLinear(xq, scale, zero)
    wd = DequantizeLinear<axis=0>(wq, scales, zeros)
    a = Conv<pads=[1, 1, 1, 1]>(xd, wd)
    b = Conv<pads=[1, 1, 1, 1]>(xd, wd)
    y = Add(a, b) }"""


def quantized() -> onnx.ModelProto:
    """Two convolutions of the same quantized tensors."""
    return parsed(
        QUANTIZED,
        scale=np.float32(0.03).reshape(()),
        zero=np.array(0, np.int8),
        wq=rng().integers(-127, 128, (4, 4, 3, 3)).astype(np.int8),
        scales=np.full(4, 1e-3, np.float32),
        zeros=np.zeros(4, np.int8),
    )


@pytest.mark.parametrize(("layers", "pairs"), [({}, 2), ({"a": "fp32"}, 4), ({"a": "fp32", "b": "fp32"}, 2)])
def test_no_cast_parts_a_dequantizer_from_what_reads_it(tmp_path: Path, layers: dict[str, str], pairs: int) -> None:
    path, _ = lowered(quantized(), tmp_path, layers=layers)
    nodes = onnx.load(str(path)).graph.node
    made_by = {name: node.op_type for node in nodes for name in node.output}
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    assert all(made_by[name] == "DequantizeLinear" for node in convolutions for name in node.input)
    assert sum(node.op_type == "DequantizeLinear" for node in nodes) == pairs
    assert sqnr(outputs(quantized(), {"x": X})[0], outputs(path, {"x": X})[0]) > 50


def test_convolutions_stay_int8_where_the_rest_is_of_two_other_types(tmp_path: Path) -> None:
    path, _ = lowered(quantized(), tmp_path, layers={"a": "fp32"})
    convolutions = [operation for operation in plan_graph_of(path, "SM86") if operation.is_weighted]
    assert {operation.reads[:2] for operation in convolutions} == {("int8", "int8")}
