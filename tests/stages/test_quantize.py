"""Quantization: Q/DQ where TensorRT fuses them, with scales that keep the results."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stages import cast, onnx_graph, surgery
from stages.allowed import NotAllowedError
from stages.quantization import place
from stages.quantize import STAGE, QuantizeConfig
from stages.stage import StageError
from tests.stages.rewriting import (
    DIGITS,
    TARGETS,
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


def data_for(model: onnx.ModelProto, samples: int = 64) -> dict[str, np.ndarray]:
    value = model.graph.input[0]
    dims = [d.dim_value for d in value.type.tensor_type.shape.dim[1:]]
    dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
    return {value.name: np.random.default_rng(1).standard_normal((samples, *dims)).astype(dtype)}


def ranges_of(model: onnx.ModelProto, feed: dict[str, np.ndarray], path: Path, attention: str = "none") -> Path:
    """The largest magnitude of each activation on `feed`, as a `ranges.json`."""
    observed = onnx.ModelProto()
    observed.CopyFrom(model)
    onnx_graph.adopt_weights(observed)
    tensors = place(observed, attention=attention).activations
    computed = [name for name in tensors if name not in feed]
    known = [value.name for value in observed.graph.output]
    observed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in computed if name not in known)
    names = [value.name for value in observed.graph.output]
    found = {**feed, **dict(zip(names, outputs(observed, feed), strict=True))}
    amax = {name: {"amax": float(np.abs(found[name]).max())} for name in tensors}
    path.write_text(json.dumps({"tensors": amax}))
    return path


def quantized(model: onnx.ModelProto, tmp_path: Path, **config: Any) -> tuple[Path, dict[str, Any]]:
    """Surgery-less: quantizes `model` as it is."""
    path = saved(model, tmp_path / "in.onnx")
    ranges = ranges_of(model, data_for(model), tmp_path / "ranges.json", config.get("attention", "none"))
    return run(STAGE, tmp_path / "out", QuantizeConfig(**config), onnx=path, ranges=ranges)


def makers(path: Path) -> dict[str, onnx.NodeProto]:
    return {name: node for node in onnx.load(str(path)).graph.node for name in node.output}


def is_dequantized(path: Path, name: str) -> bool:
    return name in makers(path) and makers(path)[name].op_type == "DequantizeLinear"


def initializer(path: Path, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(t) for t in onnx.load(str(path)).graph.initializer if t.name == name)


def test_operators_of_a_domain_that_is_not_imported_are_left_alone(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 12, "acme": 1]> g (float[n, 4] x) => (float[n, 4] y) {
        product = MatMul(x, w)
        y = acme.Mystery(product) }""",
        w=np.eye(4),
    )
    del model.opset_import[1]
    ranges = tmp_path / "ranges.json"
    ranges.write_text(json.dumps({"tensors": {"x": {"amax": 1.0}}}))
    path, metrics = run(STAGE, tmp_path / "out", onnx=saved(model, tmp_path / "in.onnx"), ranges=ranges)
    assert metrics["qdq_pairs"] == 2
    assert [entry.domain for entry in onnx.load(str(path)).opset_import] == [""]


@pytest.mark.parametrize("projection", [False, True])
def test_exactly_one_input_of_the_residual_add_has_qdq(tmp_path: Path, projection: bool) -> None:
    path, _ = quantized(residual_block(rng(), projection), tmp_path)
    add = makers(path)["sum"]
    assert [is_dequantized(path, name) for name in add.input] == [False, True]


def test_inputs_and_weights_have_qdq_and_biases_have_none(tmp_path: Path) -> None:
    path, metrics = quantized(residual_block(rng()), tmp_path)
    weighted = [n for n in onnx.load(str(path)).graph.node if n.op_type in ("Conv", "Gemm")]
    assert all(is_dequantized(path, n.input[0]) and is_dequantized(path, n.input[1]) for n in weighted)
    assert not any(is_dequantized(path, n.input[2]) for n in weighted if len(n.input) > 2)
    assert (metrics["quantized"], metrics["weighted"], metrics["in_float"]) == (4, 4, [])
    assert metrics["qdq_pairs"] == 4 + 5  # weights, and x, stem, first, shortcut, flat


def test_a_tensor_has_one_pair_however_many_read_it(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {
        a = MatMul(x, w)
        b = MatMul(x, v)
        c = MatMul(x, w)
        d = Add(a, b)
        y = Add(c, d) }""",
        w=np.eye(4),
        v=np.eye(4),
    )
    path, metrics = quantized(model, tmp_path)
    sources = Counter(n.input[0] for n in onnx.load(str(path)).graph.node if n.op_type == "QuantizeLinear")
    assert sources == {"x": 1, "w": 1, "v": 1}
    assert metrics["qdq_pairs"] == 3


def test_everything_is_int8_symmetric_with_one_scale_a_channel(tmp_path: Path) -> None:
    model = residual_block(rng())
    path, _ = quantized(model, tmp_path)
    weight = initializer(path, "w1")
    scale = initializer(path, "w1_scale")
    np.testing.assert_allclose(scale, np.abs(weight).max(axis=(1, 2, 3)) / 127, rtol=1e-6)
    for node in onnx.load(str(path)).graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero = initializer(path, node.input[2])
            assert zero.dtype == np.int8
            assert not zero.any()
            assert (initializer(path, node.input[1]) > 0).all()


def test_a_channel_of_zeros_has_a_positive_scale(tmp_path: Path) -> None:
    weight = rng().standard_normal((4, 3)).astype(np.float32)
    weight[:, 1] = 0
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 3] y) { y = MatMul(x, w) }""",
        w=weight,
    )
    path, _ = quantized(model, tmp_path)
    assert initializer(path, "w_scale")[1] == pytest.approx(1 / 127)
    assert plan_bytes(path, "SM86") > 0


def test_skipped_nodes_stay_in_float_and_are_named(tmp_path: Path) -> None:
    path, metrics = quantized(residual_block(rng()), tmp_path, skip=["second", "y*"])
    assert metrics["skipped"] == ["second", "y"]
    assert metrics["quantized"] == 2
    assert not any(is_dequantized(path, name) for name in makers(path)["second"].input)
    assert not any(is_dequantized(path, name) for name in makers(path)["sum"].input)


WRONG_CHOICES: list[tuple[dict[str, Any], str]] = [
    ({"skip": ["nonesuch*"]}, "skip: no node is called 'nonesuch"),
    ({"skip": ["*"]}, "leaves nothing"),
    ({"only": ["nonesuch"]}, "only: no node is called 'nonesuch'"),
    ({"only": ["second"], "skip": ["second"]}, "leaves nothing"),
    ({"skip_ops": ["MatMul"]}, "skip_ops: the model has no operator 'MatMul'"),
    ({"only_ops": ["ConvTranspose"]}, "only_ops: the model has no operator"),
    ({"skip_sensitive": 1}, "how sensitive each layer is"),
]


@pytest.mark.parametrize(("choice", "says"), WRONG_CHOICES, ids=str)
def test_choices_must_match_and_must_leave_something(tmp_path: Path, choice: dict[str, Any], says: str) -> None:
    with pytest.raises(StageError, match=says):
        quantized(residual_block(rng()), tmp_path, **choice)


@pytest.mark.parametrize("choice", [{"precision": "int4"}, {"attention": "all"}, {"only_ops": ["Add"]}])
def test_values_that_are_not_allowed_are_refused_at_once(choice: dict[str, Any]) -> None:
    with pytest.raises(NotAllowedError):
        QuantizeConfig(**choice)


CHOICES: list[tuple[dict[str, Any], set[str], int]] = [
    ({"only": ["second", "y"]}, {"second", "y"}, 1),
    ({"only": ["first_conv"]}, {"first_conv"}, 0),
    ({"skip_ops": ["Gemm"]}, {"stem_conv", "first_conv", "second"}, 1),
    ({"skip_ops": ["Add"]}, {"stem_conv", "first_conv", "second", "y"}, 0),
    ({"only_ops": ["Gemm"]}, {"y"}, 0),
    ({"only_ops": ["Conv"], "skip": ["second"]}, {"stem_conv", "first_conv"}, 0),
]


@pytest.mark.parametrize(("choice", "expected", "adds"), CHOICES, ids=[str(choice) for choice, *_ in CHOICES])
def test_layers_are_chosen_by_name_and_by_operator(
    tmp_path: Path, choice: dict[str, Any], expected: set[str], adds: int
) -> None:
    path, metrics = quantized(residual_block(rng()), tmp_path, **choice)
    found = {name for name, node in makers(path).items() if node.op_type in ("Conv", "Gemm")}
    assert {name for name in found if is_dequantized(path, makers(path)[name].input[0])} == expected
    assert metrics["residual_adds"] == adds


SENSITIVE = {"stem_conv": 9.0, "first_conv": 30.0, "second": 12.5, "sum": 12.0, "y": None}


def with_table(tmp_path: Path, table: dict[str, Any], **config: Any) -> dict[str, Any]:
    model = residual_block(rng())
    path = saved(model, tmp_path / "in.onnx")
    text = json.dumps({"layers": {name: {"sqnr_db": value} for name, value in table.items()}})
    (tmp_path / "sensitivity.json").write_text(text)
    files = {
        "onnx": path,
        "ranges": ranges_of(model, data_for(model), tmp_path / "r.json"),
        "sensitivity": tmp_path / "sensitivity.json",
    }
    return run(STAGE, tmp_path / "out", QuantizeConfig(**config), **files)[1]


@pytest.mark.parametrize(
    ("config", "skipped"),
    [
        ({}, []),
        ({"skip_sensitive": 1}, ["stem_conv"]),
        ({"skip_sensitive": 2}, ["stem_conv", "sum"]),
        ({"min_sqnr_db": 12.5}, ["stem_conv", "sum"]),
        ({"min_sqnr_db": 10.0, "skip_sensitive": 3}, ["second", "stem_conv", "sum"]),
        ({"skip_sensitive": 1, "skip": ["y"]}, ["stem_conv", "y"]),
    ],
)
def test_the_most_sensitive_layers_stay_in_float(tmp_path: Path, config: dict[str, Any], skipped: list[str]) -> None:
    assert with_table(tmp_path, SENSITIVE, **config)["skipped"] == skipped


def test_a_table_of_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="of another model: no node is called elsewhere"):
        with_table(tmp_path, {"elsewhere": 1.0, "y": 2.0}, skip_sensitive=1)


def test_fp8_is_e4m3_with_scales_of_448_and_builds_where_there_is_fp8(tmp_path: Path) -> None:
    model = residual_block(rng())
    path, metrics = quantized(model, tmp_path, precision="fp8")
    onnx.checker.check_model(str(path), full_check=True)
    tensors = {tensor.name: tensor for tensor in onnx.load(str(path)).graph.initializer}
    zeros = {n.input[2] for n in onnx.load(str(path)).graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    assert {tensors[name].data_type for name in zeros} == {TensorProto.FLOAT8E4M3FN}
    np.testing.assert_allclose(initializer(path, "w1_scale"), np.abs(initializer(path, "w1")).max((1, 2, 3)) / 448)
    assert (metrics["precision"], metrics["opset"]) == ("fp8", 20)
    feed = data_for(model, 32)
    assert sqnr(outputs(model, feed)[0], outputs(path, feed)[0]) > 20
    for target in ("SM89", "SM120"):
        weighted = [each for each in plan_graph_of(path, target) if each.is_weighted]
        assert {each.reads[:2] for each in weighted} == {("fp8_e4m3", "fp8_e4m3")}


LARGE = """<ir_version: 10, opset_import: ["": 20]> g (float[n, 3, 16, 16] x) => (float[n, 4, 16, 16] y) {
    [large] t = Conv <pads = [3, 3, 3, 3]> (x, w7)
    [small] y = Conv <pads = [1, 1, 1, 1]> (t, w3) }"""


@pytest.mark.parametrize(("precision", "skipped"), [("int8", []), ("fp8", ["large"])])
def test_fp8_leaves_a_kernel_in_float_that_is_larger_than_any_fp8_convolution(
    precision: str, skipped: list[str], tmp_path: Path
) -> None:
    weights = {"w7": rng().standard_normal((4, 3, 7, 7)), "w3": rng().standard_normal((4, 4, 3, 3))}
    _, metrics = quantized(parsed(LARGE, **weights), tmp_path, precision=precision)
    assert metrics["skipped"] == skipped


def test_fp8_raises_an_old_opset(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 7, opset_import: ["": 13]> g (float[n, 4] x) => (float[n, 4] y) { y = MatMul(x, w) }""",
        w=np.eye(4),
    )
    path, metrics = quantized(model, tmp_path, precision="fp8")
    onnx.checker.check_model(str(path), full_check=True)
    assert metrics["opset"] == 19


def test_ranges_of_another_model_are_refused_by_tensor_name(tmp_path: Path) -> None:
    path = saved(residual_block(rng()), tmp_path / "in.onnx")
    (tmp_path / "r.json").write_text(json.dumps({"tensors": {"x": {"amax": 1, "max": 1}, "elsewhere": {"amax": 2}}}))
    with pytest.raises(StageError, match=r"no range for stem, .*no tensor for the range of elsewhere"):
        run(STAGE, tmp_path, onnx=path, ranges=tmp_path / "r.json")


@pytest.mark.parametrize("text", ["", "[]", '{"tensors": {"x": {}}}', '{"tensors": {"x": {"amax": -1}}}'])
def test_what_is_no_ranges_file_is_refused(tmp_path: Path, text: str) -> None:
    path = saved(residual_block(rng()), tmp_path / "in.onnx")
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(StageError, match=r"r\.json"):
        run(STAGE, tmp_path, onnx=path, ranges=tmp_path / "r.json")


def test_a_model_that_has_qdq_is_not_quantized_twice(tmp_path: Path) -> None:
    path, _ = quantized(residual_block(rng()), tmp_path)
    with pytest.raises(StageError, match="already") as caught:
        run(STAGE, tmp_path / "again", onnx=path, ranges=tmp_path / "ranges.json")
    assert "flow" in caught.value.next_step


def test_a_model_without_weights_has_nothing_to_quantize(tmp_path: Path) -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) { y = Relu(x) }""")
    (tmp_path / "r.json").write_text('{"tensors": {}}')
    with pytest.raises(StageError, match="nothing to quantize: 0 of 1 nodes"):
        run(STAGE, tmp_path, onnx=saved(model, tmp_path / "in.onnx"), ranges=tmp_path / "r.json")


def test_an_old_opset_is_raised_and_the_result_is_valid(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 6, opset_import: ["": 11]> g (float[n, 8, 6, 6] x) => (float[n, 4, 4, 4] y) {
        c = Conv(x, w)
        s = ReduceSum<axes=[2], keepdims=1>(c)
        y = Add(c, s) }""",
        w=rng().standard_normal((4, 8, 3, 3)),
    )
    path, metrics = quantized(model, tmp_path)
    onnx.checker.check_model(str(path), full_check=True)
    assert metrics["opset"] == 13
    feed = data_for(model, 8)
    assert sqnr(outputs(model, feed)[0], outputs(path, feed)[0]) > 25


def test_a_float16_model_gets_float16_scales(tmp_path: Path) -> None:
    low, _ = run(
        cast.STAGE,
        tmp_path / "low",
        cast.CastConfig(keep_io_types=False),
        onnx=saved(residual_block(rng()), tmp_path / "f32.onnx"),
    )
    path, _ = quantized(onnx.load(str(low)), tmp_path)
    onnx.checker.check_model(str(path), full_check=True)
    assert initializer(path, "w1_scale").dtype == initializer(path, "x_scale").dtype == np.float16
    assert plan_bytes(path, "SM86") > 0


KINDS = {
    "Conv with groups": ("Conv<group=2>", (8, 6, 6), (4, 4, 3, 3), "n, 4, 4, 4"),
    "ConvTranspose": ("ConvTranspose", (8, 6, 6), (8, 4, 3, 3), "n, 4, 8, 8"),
    "ConvTranspose with groups": ("ConvTranspose<group=2>", (8, 6, 6), (8, 4, 3, 3), "n, 8, 8, 8"),
    "Gemm": ("Gemm", (16,), (16, 8), "n, 8"),
    "Gemm transposed": ("Gemm<transB=1>", (16,), (8, 16), "n, 8"),
    "MatMul": ("MatMul", (5, 16), (16, 8), "n, 5, 8"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_weighted_operator_keeps_its_results_and_builds(tmp_path: Path, kind: str) -> None:
    call, sample, shape, result = KINDS[kind]
    dims = ", ".join(map(str, sample))
    channels = np.logspace(-2, 1, shape[0 if call in ("Conv<group=2>", "Gemm<transB=1>") else 1], dtype=np.float32)
    axis = 0 if call in ("Conv<group=2>", "Gemm<transB=1>") else 1
    weight = rng().standard_normal(shape) * channels.reshape([-1 if d == axis else 1 for d in range(len(shape))])
    model = parsed(
        f"""<ir_version: 10, opset_import: ["": 20]> g (float[n, {dims}] x) => (float[{result}] y) {{
        y = {call}(x, w) }}""",
        w=weight,
    )
    path, _ = quantized(model, tmp_path)
    onnx.checker.check_model(str(path), full_check=True)
    feed = data_for(model, 16)
    expected, found = outputs(model, feed)[0], outputs(path, feed)[0]
    assert sqnr(expected, found) > 28
    # Per channel: the channels differ 1,000-fold, and a scale on the wrong axis would drown the smallest.
    if call != "ConvTranspose<group=2>":
        smallest = (slice(None), slice(None), 0) if call == "MatMul" else (slice(None), 0)
        assert sqnr(expected[smallest], found[smallest]) > 28
    assert all(plan_bytes(path, target) > 0 for target in TARGETS)


@pytest.mark.parametrize("projection", [False, True])
def test_a_residual_block_keeps_its_results_and_builds(tmp_path: Path, projection: bool) -> None:
    model = residual_block(rng(), projection)
    path, _ = quantized(model, tmp_path)
    feed = data_for(model, 32)
    assert sqnr(outputs(model, feed)[0], outputs(path, feed)[0]) > 20
    assert all(plan_bytes(path, target) > 0 for target in TARGETS)


@pytest.mark.parametrize("precision", [None, "fp16", "bf16"])
def test_the_digits_keep_their_accuracy_in_int8_and_build(tmp_path: Path, precision: str | None) -> None:
    clean, _ = run(surgery.STAGE, tmp_path / "surgery", onnx=DIGITS / "digits.onnx")
    images = np.load(DIGITS / "calibration.npz")["images"]
    ranges = ranges_of(onnx.load(str(clean)), {"images": images}, tmp_path / "ranges.json")
    path, metrics = run(STAGE, tmp_path / "int8", onnx=clean, ranges=ranges)
    if precision:
        path, _ = run(cast.STAGE, tmp_path / precision, cast.CastConfig(precision), onnx=path)
    assert metrics["quantized"] == metrics["weighted"] == 7
    onnx.checker.check_model(str(path), full_check=True)
    graphs = [plan_graph_of(path, target) for target in TARGETS]
    assert [{each.reads[:2] for each in graph if each.is_weighted} for graph in graphs] == [{("int8", "int8")}] * 2
    if precision == "bf16":
        return  # ONNX Runtime has no bfloat16 convolution on the CPU
    holdout = np.load(DIGITS / "holdout.npz")
    feed = {"images": holdout["images"]}
    before, after = outputs(DIGITS / "digits.onnx", feed)[0], outputs(path, feed)[0]
    accuracy = [float((logits.argmax(axis=1) == holdout["labels"]).mean()) for logits in (before, after)]
    assert accuracy[1] >= accuracy[0] - 0.003
    assert sqnr(before, after) > 30


def test_nothing_but_int8_comes_out_of_q(tmp_path: Path) -> None:
    path, _ = quantized(residual_block(rng()), tmp_path)
    inferred = onnx.shape_inference.infer_shapes(onnx.load(str(path)), strict_mode=True)
    types = {v.name: v.type.tensor_type.elem_type for v in inferred.graph.value_info}
    codes = [n.output[0] for n in inferred.graph.node if n.op_type == "QuantizeLinear"]
    assert {types[name] for name in codes} == {TensorProto.INT8}
