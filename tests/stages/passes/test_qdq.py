"""The Q/DQ that models come with: what is refused, by name, and the passes that mend it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from stages import surgery
from stages.stage import StageError
from tests.stages.passes.rewritten import node_ops, through
from tests.stages.rewriting import outputs, parsed, plan_graph_of, rng, run, saved

PAIRS = """xq = QuantizeLinear(x, xs, xz)
    xd = DequantizeLinear(xq, xs, xz)
    wd = DequantizeLinear<axis=0>(w, ws, wz)"""


def qat(body: str = "y = Conv(xd, wd)", pairs: str = PAIRS, operator: int = 20, **weights: Any) -> onnx.ModelProto:
    """A convolution with Q/DQ around it and the weight as codes, as quantization-aware training leaves it."""
    given = {
        "xs": np.float32(0.05),
        "xz": np.int8(0),
        "w": rng().integers(-127, 127, (6, 4, 3, 3)).astype(np.int8),
        "ws": np.linspace(0.001, 0.01, 6, dtype=np.float32),
        "wz": np.zeros(6, np.int8),
        **weights,
    }
    head = f'<ir_version: 10, opset_import: ["": {operator}]> g (float[2, 4, 8, 8] x) => (float[2, 6, 6, 6] y)'
    model = parsed(f"{head} {{ {pairs}\n {body} }}", **{k: v for k, v in given.items() if v is not None})
    onnx.checker.check_model(model, full_check=True)
    return model


def feed() -> dict[str, np.ndarray]:
    return {"x": rng().standard_normal((2, 4, 8, 8)).astype(np.float32)}


def refusal(model: onnx.ModelProto) -> StageError:
    with pytest.raises(StageError) as caught:
        through(model, "check_qdq")
    return caught.value


def test_symmetric_int8_passes_and_is_counted() -> None:
    assert through(qat(), "check_qdq")[1] == {"quantize": 1, "dequantize": 2}


def test_a_model_without_pairs_passes() -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) { y = Relu(x) }""")
    assert through(model, "check_qdq")[1] == {"quantize": 0, "dequantize": 0}


BIAS = "bd = DequantizeLinear(b, bs, bz)\n y = Conv(xd, wd, bd)"
WRONG: dict[str, tuple[onnx.ModelProto, str, str]] = {
    "an asymmetric activation": (qat(xz=np.int8(3)), r"QuantizeLinear 'xq': its zero point is not 0", "symmetrically"),
    "UINT8 codes": (qat(xz=np.uint8(0)), r"'xq': its codes are UINT8; allowed: INT8, ", "symmetrically"),
    "codes without zero point": (
        qat(pairs=PAIRS.replace(", xz)", ")")),
        r"'xq': its codes are UINT8; allowed: INT8, ",
        "symmetrically",
    ),
    "UINT8 about 128": (qat(xz=np.uint8(128)), r"'xq': its codes are UINT8 with zero point 128", "shift_uint8"),
    "an INT32 bias": (
        qat(BIAS, b=np.arange(6, dtype=np.int32), bs=np.float32(0.01), bz=np.int32(0)),
        r"DequantizeLinear 'bd': its codes are INT32",
        "fold_bias_qdq",
    ),
    "INT16 codes": (qat(operator=21, xz=np.int16(0)), r"'xq': its codes are INT16", "symmetrically"),
    "a computed scale": (
        qat(pairs="m = ReduceMax<keepdims=0>(x)\n xt = Div(m, xs)\n" + PAIRS.replace("(x, xs", "(x, xt")),
        r"'xq': its scale is computed",
        "fold",
    ),
    "a negative scale": (qat(xs=np.float32(-0.1)), r"'xq': a scale is 0, negative", "again"),
    "a weight along its inputs": (
        qat(pairs=PAIRS.replace("axis=0", "axis=1"), ws=np.full(4, 0.01, np.float32), wz=np.zeros(4, np.int8)),
        r"'wd': its scales are along axis 1 of the weight, the output channels along 0",
        "output channels",
    ),
    "an activation per channel": (
        qat(
            pairs=PAIRS.replace("xs, xz", "as, az").replace("Linear(x", "Linear<axis=1>(x"),
            **{"as": np.full(4, 0.05, np.float32), "az": np.zeros(4, np.int8)},
        ),
        r"'xd': an activation has 4 scales",
        "per tensor",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_this_is_refused_with_its_node_and_what_to_do(what: str) -> None:
    model, says, next_step = WRONG[what]
    error = refusal(model)
    assert next_step in error.next_step
    with pytest.raises(StageError, match=says):
        raise error


def test_operators_on_codes_are_refused() -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (uint8[2, 3] x) => (int32[2, 4] y) { y = MatMulInteger(x, w) }""",
        w=np.ones((3, 4), np.int8),
    )
    assert "MatMulInteger 'y'" in refusal(model).what


def test_further_nodes_are_named_up_to_five() -> None:
    error = refusal(qat(xz=np.int8(3), wz=np.full(6, 2, np.int8)))
    assert "; and 2 more: DequantizeLinear 'xd', DequantizeLinear 'wd'" in error.what


@pytest.mark.parametrize("body", ["t = Transpose<perm=[1, 0]>(wd)\n y = MatMul(x, t)", "y = Gemm<transB=1>(x, wd)"])
def test_the_axis_of_a_weight_is_followed_through_a_transpose(body: str) -> None:
    def model(axis: int, channels: int) -> onnx.ModelProto:
        return parsed(
            f"""<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 6] y) {{
            wd = DequantizeLinear<axis={axis}>(w, s, z)
            {body} }}""",
            w=np.ones((6, 4), np.int8),
            s=np.full(channels, 0.1, np.float32),
            z=np.zeros(channels, np.int8),
        )

    through(model(0, 6), "check_qdq")
    through(model(-2, 6), "check_qdq")
    assert "along axis 1" in refusal(model(1, 4)).what


def test_surgery_checks_before_anything_is_built(tmp_path: Path) -> None:
    path = saved(qat(xz=np.int8(3)), tmp_path / "qat.onnx")
    with pytest.raises(StageError, match="zero point"):
        run(surgery.STAGE, tmp_path / "out", onnx=path)


def test_surgery_keeps_the_pairs_and_the_codes(tmp_path: Path) -> None:
    model = qat()
    out, _ = run(surgery.STAGE, tmp_path / "out", onnx=saved(model, tmp_path / "qat.onnx"))
    after = onnx.load(str(out))
    assert sorted(node_ops(after)) == sorted(node_ops(model))
    assert any(
        tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) == 4 for tensor in after.graph.initializer
    )


@pytest.mark.parametrize("bias_scale", [np.float32(0.01), np.linspace(0.001, 0.01, 6, dtype=np.float32)])
@pytest.mark.parametrize("zero", [0, 5])
def test_an_int32_bias_becomes_the_float_that_it_stands_for(bias_scale: Any, zero: int) -> None:
    axis = "<axis=0>" if np.ndim(bias_scale) else ""
    model = qat(
        BIAS.replace("DequantizeLinear(b", f"DequantizeLinear{axis}(b"),
        b=rng().integers(-(2**30), 2**30, 6).astype(np.int32),
        bs=bias_scale,
        bz=np.full(np.shape(bias_scale), zero, np.int32),
    )
    after, did = through(model, "fold_bias_qdq")
    assert did == {"folded": 1}
    assert "b" not in {tensor.name for tensor in after.graph.initializer}
    np.testing.assert_allclose(outputs(after, feed())[0], outputs(model, feed())[0], rtol=1e-6)
    if not zero:
        through(after, "check_qdq")


def test_an_int32_bias_that_is_read_elsewhere_keeps_its_codes() -> None:
    body = f"{BIAS}\n c = Cast<to=1>(b)\n e = ReduceSum<keepdims=0>(c)"
    model = qat(body, b=np.arange(6, dtype=np.int32), bs=np.float32(0.01), bz=np.int32(0))
    after, _ = through(model, "fold_bias_qdq")
    assert "b" in {tensor.name for tensor in after.graph.initializer}


@given(codes=st.lists(st.integers(0, 255), min_size=6, max_size=6), zero=st.sampled_from([0, 127, 128, 129]))
def test_a_shift_keeps_every_code_and_leaves_other_zero_points(codes: list[int], zero: int) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[6] x) => (float[6] y) {
        wd = DequantizeLinear(w, s, z)
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        y = Add(d, wd) }""",
        w=np.array(codes, np.uint8),
        s=np.float32(0.5),
        z=np.uint8(zero),
    )
    after, did = through(model, "shift_uint8")
    assert did == {"shifted": 2 if zero == 128 else 0}
    inputs = {"x": np.linspace(-70, 70, 6, dtype=np.float32)}
    np.testing.assert_array_equal(outputs(after, inputs)[0], outputs(model, inputs)[0])


def test_codes_that_something_else_reads_are_not_shifted() -> None:
    body = "n = Cast<to=1>(xq)\n m = ReduceSum<keepdims=0>(n)\n y = Conv(xd, wd)"
    assert through(qat(body, xz=np.uint8(128)), "shift_uint8")[1] == {"shifted": 0}


def test_an_asymmetric_export_of_onnx_runtime_is_mended_by_name_and_runs_in_int8(tmp_path: Path) -> None:
    """UINT8 about 128 and an INT32 bias: TensorRT's parser refuses both; mended, the convolution reads INT8."""
    weights = numpy_helper.to_array(next(t for t in qat().graph.initializer if t.name == "w"))
    model = qat(
        BIAS,
        xz=np.uint8(128),
        w=(weights.astype(np.int16) + 128).astype(np.uint8),
        wz=np.full(6, 128, np.uint8),
        b=np.arange(6, dtype=np.int32),
        bs=np.float32(0.01),
        bz=np.int32(0),
    )
    config = surgery.SurgeryConfig(first=["shift_uint8", "fold_bias_qdq"])
    out, metrics = run(surgery.STAGE, tmp_path / "out", config, onnx=saved(model, tmp_path / "qat.onnx"))
    assert all(each["compared"] for each in metrics["comparisons"])  # type: ignore[union-attr,index,call-overload]
    assert [each.reads[:2] for each in plan_graph_of(out, "SM89") if each.is_weighted] == [("int8", "int8")]
