"""What the report of a plan's layers says, against what the model itself says: real plans of TensorRT-RTX."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stages import layer_report
from stages.builder_log import engine_layers
from stages.layer_report import Layer, ProfileLayers, Report, precision
from stages.stage import StageError
from tests.stages.rewriting import parsed, saved
from tests.stages.stage_runs import facts, run_stage
from tests.stages.test_plan import tensorrt_plan

PROFILES = {
    "few": {"x": {"min": [1, 8, 16, 16], "opt": [2, 8, 16, 16], "max": [4, 8, 16, 16]}},
    "many": {"x": {"min": [4, 8, 16, 16], "opt": [8, 8, 16, 16], "max": [16, 8, 16, 16]}},
}
CONV, GEMM = 16 * 8 * 9 * 16 * 16, 16 * 10
"""Multiply-accumulates of one sample: of the convolution of 8 channels (of 16 twice as many), and of the Gemm."""


def network() -> onnx.ModelProto:
    """Two convolutions that are to run in INT8, one in float32, and a Gemm whose weight alone is stored in INT8."""
    random = np.random.default_rng(0)

    def pair(name: str, scale: str) -> str:
        return f"{name}_q = QuantizeLinear({name}, {scale}, z)\n{name}_d = DequantizeLinear({name}_q, {scale}, z)"

    return parsed(
        f"""<ir_version: 10, opset_import: ["": 20]> g (float[n, 8, 16, 16] x) => (float[n, 10] y) {{
        {pair("x", "s")}
        {pair("w1", "s")}
        [conv1] c1 = Conv<pads=[1, 1, 1, 1]>(x_d, w1_d)
        [relu1] r1 = Relu(c1)
        {pair("r1", "s")}
        {pair("w2", "s")}
        [conv2] c2 = Conv<pads=[1, 1, 1, 1]>(r1_d, w2_d)
        [tanh2] t2 = Tanh(c2)
        [conv3] c3 = Conv<pads=[1, 1, 1, 1]>(t2, w3)
        [pool] p = GlobalAveragePool(c3)
        [flat] f = Flatten(p)
        {pair("w4", "s")}
        [gemm] y = Gemm(f, w4_d) }}""",
        w1=random.standard_normal((16, 8, 3, 3)),
        w2=random.standard_normal((16, 16, 3, 3)),
        w3=random.standard_normal((16, 16, 3, 3)),
        w4=random.standard_normal((16, 10)),
        s=np.float32(0.02),
        z=np.int8(0),
    )


def quantized(model: onnx.ModelProto) -> set[str]:
    """The products both of whose factors come out of a DequantizeLinear, counted off the graph."""
    made = {name: node for node in model.graph.node for name in node.output}
    products = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    return {
        node.name
        for node in products
        if all(name in made and made[name].op_type == "DequantizeLinear" for name in node.input[:2])
    }


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """Where the plan of `network` lies for two profiles, what the build answered, and its report."""
    out = tmp_path_factory.mktemp("layers")
    model = saved(network(), out / "net.onnx")
    answer, log = run_stage("build", out, {"onnx": model}, given=facts(profiles=PROFILES))
    (out / "log").write_text(log)
    return out, answer["metrics"], json.loads((out / "layers.json").read_text())


def test_the_build_keeps_a_report_with_every_plan_that_says_the_same_later(built: Any) -> None:
    out, _, kept = built
    again = layer_report.of_plan(out / "model.plan", onnx.load(str(out / "net.onnx")), PROFILES)
    assert json.loads(json.dumps(again.document())) == kept
    assert Report.of(kept) == again


def test_each_profile_has_its_layers_and_its_own_opt(built: Any) -> None:
    few, many = built[2]["profiles"]
    assert (few["profile"], many["profile"]) == ("few", "many")
    for profile, samples in ((few, 2), (many, 8)):
        macs = sum(layer["macs"] for layer in profile["layers"])
        assert macs == samples * (CONV + 2 * CONV + 2 * CONV + GEMM)
        assert (profile["unplaced"], profile["uncounted"]) == ({}, [])


def test_the_share_of_int8_is_that_of_the_quantized_products(built: Any) -> None:
    """Counted off the Q/DQ of the model: two of four products, 3 of 5 parts of the convolutions' MACs."""
    _, metrics, report = built
    asked = quantized(network())
    assert asked == {"conv1", "conv2"}
    for profile in report["profiles"]:
        own = {n for layer in profile["layers"] if layer["precision"] == "INT8" for n in layer["nodes"]}
        assert asked <= own and not own & {"conv3", "gemm"}
    share = metrics["precisions"]["INT8"]
    assert share["products"] == 0.5
    assert share["macs"] == pytest.approx(3 * CONV / (5 * CONV + GEMM), abs=1e-5)
    assert metrics["quantized_kept"] == len(asked)


def test_weights_count_in_the_type_that_they_are_stored_in(built: Any) -> None:
    int8, float32 = (built[2]["profiles"][0]["precisions"][name]["weight_bytes"] for name in ("INT8", "FP32"))
    stored = 16 * 8 * 9 + 16 * 16 * 9
    assert stored <= int8 <= stored + 16 * 10
    assert float32 >= 4 * 16 * 16 * 9


def test_a_layer_says_which_nodes_it_computes_and_what_these_are(built: Any) -> None:
    layers = built[2]["profiles"][0]["layers"]
    product = next(layer for layer in layers if layer["product"] and "conv1" in layer["nodes"])
    assert dict(zip(product["nodes"], product["operators"], strict=True))["conv1"] == "Conv"
    assert product["macs"] == 2 * CONV and {*product["reads"][:2]} == {"int8"}
    fused = {node for layer in layers for node in layer["nodes"]}
    assert {"conv1", "relu1", "conv2", "tanh2", "conv3", "pool", "gemm"} <= fused


def test_without_the_model_there_are_types_and_no_macs(built: Any) -> None:
    report = layer_report.of_plan(built[0] / "model.plan", None, None)
    assert report.model_reason and [profile.profile for profile in report.profiles] == [None, None]
    assert {layer.macs for layer in report.profiles[0].layers} == {None}
    assert report.shares()["INT8"]["macs"] is None and report.shares()["INT8"]["products"] == 0.5


def test_products_that_no_layer_names_are_told_apart(built: Any) -> None:
    model = network()
    next(node for node in model.graph.node if node.name == "conv2").name = "renamed"
    (few, _) = layer_report.of_plan(built[0] / "model.plan", model, PROFILES).profiles
    assert few.unplaced == {"renamed": 2 * 2 * CONV}
    assert sum(layer.macs or 0 for layer in few.layers) == 2 * (3 * CONV + GEMM)


def test_a_plan_that_holds_no_text_says_so(tmp_path: Path) -> None:
    (tmp_path / "net.plan").write_bytes(tensorrt_plan())
    report = layer_report.of_plan(tmp_path / "net.plan", network(), PROFILES)
    assert "holds no graph as text" in str(report.unread_reason)
    assert (report.profiles, report.shares()) == ([], {})
    assert layer_report.metrics(report) == {"layers_run": None, "precisions": None}


LOG = """[VERBOSE] Engine Layer Information:
Layer(Reformat): x_quantized, Tactic: 0x00000000000003e8, x (Float[-1,8,16,16]) -> x_q (Int8[-1,8:32,16,16])
Layer(CaskConvolution): conv1 + PWN(relu1), Tactic: 0x4727434768e46395, x_q (Int8[-1,8:32,16,16]) -> r1 (Int8[-1,16,16,16])
Layer(CaskConvolution): conv2 + tanh2, Tactic: 0x4727434768e46395, r1 (Int8[-1,16,16,16]), b (Half[1]) -> t2 (Half[])
Layer(CudaDepthwiseConvolution): conv3, Tactic: 0xfffffffffffffffd, t2 (Half[-1,16,16,16]) -> c3 (Half[-1,16,16,16])
Layer(CaskGemmMatrixMultiply): gemm, Tactic: 0x0, (Unnamed Layer* 7) [Shuffle]_output (Half[-1,16]), w (Half[16,10]) -> y (Half[-1,10])
[VERBOSE] Adding 1 engine(s) to plan file.
"""  # noqa: E501 - a line of the log is a layer


def test_of_a_plan_that_holds_no_text_the_log_of_its_build_tells(tmp_path: Path) -> None:
    (tmp_path / "net.plan").write_bytes(tensorrt_plan())
    report = layer_report.of_plan(tmp_path / "net.plan", network(), {"few": PROFILES["few"]}, LOG)
    assert (report.source, report.unread_reason) == ("log", None)
    (profile,) = report.profiles
    assert [(layer.precision, layer.nodes, layer.macs) for layer in profile.layers] == [
        ("FP32", (), 0),
        ("INT8", ("conv1", "relu1"), 2 * CONV),
        ("INT8", ("conv2", "tanh2"), 4 * CONV),
        ("FP16", ("conv3",), 4 * CONV),
        ("FP16", ("gemm",), 2 * GEMM),
    ]
    assert report.shares()["INT8"]["products"] == 0.5
    assert profile.layers[-1].reads == ("half", "half") and profile.layers[1].operators == ("Conv", "Relu")


def test_the_log_of_a_real_build_is_read(built: Any) -> None:
    """TensorRT-RTX tells of each profile's one fused layer, whose inside the plan itself has."""
    told = engine_layers((built[0] / "log").read_text())
    assert {each.kind for each in told} == {"Myelin"}
    assert {(each.reads, each.writes) for each in told} == {(("Float",), ("Float",))}
    assert all(each.name.startswith("{ForeignNode[") for each in told)


def test_a_log_without_layers_tells_of_none() -> None:
    assert engine_layers("") == engine_layers("[INFO] Engine Layer Information:\nnothing") == []


@pytest.mark.parametrize("tensor", ["x (Half[1,3:8,-1])", "x[Half(1,3,8)]", "(Unnamed Layer* 1) [Shuffle]_out[Half()]"])
def test_a_tensors_type_is_read_in_the_words_of_any_version(tensor: str) -> None:
    log = f"Engine Layer Information:\nLayer(Reformat): a, b, Tactic: 0, {tensor} -> y[Int8(1)], z[Float(1)]"
    (told,) = engine_layers(log)
    assert (told.name, told.reads, told.writes) == ("a, b", ("Half",), ("Int8", "Float"))


def test_a_report_of_another_format_is_refused(built: Any) -> None:
    with pytest.raises(StageError, match="format 2, and 1 is known"):
        Report.of({**built[2], "format": 2})


def test_a_product_that_several_layers_compute_is_divided_among_them() -> None:
    def layer(name: str, product: bool) -> Layer:
        return Layer(name, "k", product, "FP32", (), (), (), 0, ("gemm",))

    read = ProfileLayers(None, None, [layer("a", True), layer("b", True), layer("scale", False)], {})
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[1, 3] x) => (float[1, 5] y) { [gemm] y = MatMul(x, w) }""",
        w=np.ones((3, 5)),
    )
    found = layer_report.with_model(read, model, None)
    assert [each.macs for each in found.layers] == [8, 7, 0]
    lone = layer_report.with_model(replace(read, layers=read.layers[2:]), model, None)
    assert [each.macs for each in lone.layers] == [15]


@pytest.mark.parametrize(
    ("product", "factors", "types", "expected"),
    [
        (True, ["int8", "int8"], ["int8", "int8", "float"], "INT8"),
        (True, ["half", "int8"], ["half", "int8", "half"], "FP16"),
        (True, ["int8", "half"], ["int8", "half", "half"], "FP16"),
        (True, ["float", "int8", "int8"], ["float"], "INT8"),
        (True, ["fp8_e4m3", "fp8_e4m3"], ["float"], "FP8"),
        (True, ["bf16", "bf16", "float"], ["float"], "FP32"),
        (True, ["int32", "int32"], [], "INT32"),
        (False, ["int8"], ["int8", "int8", "int64"], "INT8"),
        (False, ["int8"], ["int8", "half"], "FP16"),
        (False, ["float"], ["float", "int8"], "FP32"),
        (False, [], ["int64"], "INT64"),
        (False, [], [], "?"),
        (False, [], ["new_type"], "?"),
    ],
)
def test_what_a_layer_computes_in(product: bool, factors: list[str], types: list[str], expected: str) -> None:
    assert precision(product, factors, types) == expected
