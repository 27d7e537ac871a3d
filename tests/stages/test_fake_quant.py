"""A plan is held to what the Q/DQ of its model ask for: real plans of TensorRT-RTX, and what counts as asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto

from stages import fake_quant, plan_graph
from stages.build import STAGE
from stages.build_config import BuildConfig
from stages.fake_quant import Product, asked, compared
from stages.plan_graph import Graph, Operation
from stages.stage import StageError
from tests.stages.rewriting import parsed, saved
from tests.stages.stage_runs import facts, run_stage

CODES = "s = Constant<value = float {0.05}>() z = Constant<value = int8 {0}>()"


def pair(source: str, made: str, zero: str = "z") -> str:
    """Q and DQ."""
    return f"{made}_q = QuantizeLinear({source}, s, {zero}) {made} = DequantizeLinear({made}_q, s, {zero})"


def model(body: str, shape: str = "4, 8, 16, 16", **weights: Any) -> ModelProto:
    return parsed(
        f'<ir_version: 10, opset_import: ["": 20]> g (float[{shape}] x) => (float[a, b, c, d] y) {{ {CODES} {body} }}',
        **weights,
    )


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A convolution, one without a name behind a pool, and a transposed one, all with Q/DQ."""
    weights = np.random.default_rng(0).standard_normal((3, 8, 8, 3, 3)) / 8
    body = f"""{pair("x", "xd")} {pair("w0", "wd0")} c = Conv<pads = [1, 1, 1, 1]>(xd, wd0) r = Relu(c)
        {pair("r", "rd")} p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(rd) {pair("w1", "wd1")}
        e = Conv<pads = [1, 1, 1, 1]>(p, wd1) {pair("e", "ed")} {pair("w2", "wd2")}
        y = ConvTranspose<strides = [2, 2]>(ed, wd2)"""
    proto = model(body, **{f"w{index}": weight for index, weight in enumerate(weights)})
    next(node for node in proto.graph.node if node.op_type == "Conv").name = 'first "conv"]'
    return saved(proto, tmp_path_factory.mktemp("three") / "model.onnx")


@pytest.fixture(scope="module")
def lenient(three: Path) -> tuple[dict[str, Any], Path]:
    """What the build for 8.9 says where products in float are allowed, and its plan."""
    out = three.parent / "lenient"
    answer, _ = run_stage("build", out, {"onnx": three}, BuildConfig(allow_fake_quant=True))
    return answer, out / "model.plan"


def test_a_product_that_the_plan_computes_in_float_fails_the_build_by_name(three: Path, tmp_path: Path) -> None:
    answer, _ = run_stage("build", tmp_path, {"onnx": three})
    assert "the plan for 8.9 computes 1 of 3 quantized convolutions" in answer["what"]
    assert answer["what"].endswith("in float: ConvTranspose 'y'")
    assert "steps.quantize.config.skip_ops=[ConvTranspose]" in answer["next"]
    assert "steps.build.config.allow_fake_quant=true" in answer["next"]


def test_on_a_capability_without_int8_convolutions_all_of_them_fail_the_build(three: Path, tmp_path: Path) -> None:
    answer, _ = run_stage("build", tmp_path, {"onnx": three}, given=facts("7.5"))
    assert "the plan for 7.5 computes 3 of 3 quantized" in answer["what"]
    assert "Conv 'first \"conv\"]', Conv 'e'" in answer["what"]
    assert "flow=fp16" in answer["next"]


def test_where_it_is_allowed_the_record_says_what_was_kept_and_what_was_not(
    lenient: tuple[dict[str, Any], Path],
) -> None:
    metrics = lenient[0]["metrics"]
    assert (metrics["quantized_asked"], metrics["quantized_kept"]) == (3, 2)
    assert (metrics["quantized_in_float"], metrics["quantized_not_found"]) == (["y"], [])
    assert metrics["quantized_unchecked_reason"] is None


def test_a_plan_whose_layout_is_not_known_is_not_judged_and_says_so(
    three: Path, lenient: tuple[dict[str, Any], Path], tmp_path: Path
) -> None:
    content, later = lenient[1].read_bytes(), tmp_path / "later.plan"
    later.write_bytes(content.replace(b"header {\n  version = 5\n", b"header {\n  version = 6\n"))
    found = fake_quant.checked(three.read_bytes(), later, "8.9", allowed=False)
    assert found["quantized_unchecked_reason"] == "the plan's graph has layout version 6, and only 5 is known"
    assert (found["quantized_asked"], found["quantized_kept"], found["quantized_in_float"]) == (3, None, None)
    with pytest.raises(StageError, match="layout version 6"):
        plan_graph.read(later)


@pytest.mark.parametrize(
    ("body", "operators"),
    [
        (f"{pair('x', 'xd')} {pair('w', 'wd')} y = Conv(xd, wd)", ["Conv"]),
        (f"{pair('x', 'xd')} {pair('w', 'wd')} t = Transpose(wd) y = Conv(xd, t)", ["Conv"]),
        (f"{pair('x', 'xd')} y = MatMul(xd, xd)", ["MatMul"]),
        # Only stored in codes: activations stay in float by intent.
        (f"{pair('w', 'wd')} y = Conv(x, wd)", []),
        (f"{pair('x', 'xd')} y = Conv(xd, w)", []),
        # Something is computed between DQ and the product.
        (f"{pair('x', 'xd')} r = Relu(xd) {pair('w', 'wd')} y = Conv(r, wd)", []),
        # Two scales: TensorRT cannot move DQ behind the Concat.
        (f"{pair('x', 'a')} {pair('x', 'b')} p = Concat<axis = 1>(a, b) {pair('w', 'wd')} y = Conv(p, wd)", []),
        # Weights in four bits are stored so, and multiplied in float.
        (
            f"i = Constant<value = int4 {{0}}>() {pair('x', 'xd')} {pair('w', 'wd', 'i')} y = Conv(xd, wd)",
            [],
        ),
        (f"{pair('x', 'xd')} y = Add(xd, xd)", []),
    ],
)
def test_asked_for_are_products_whose_factors_are_both_dequantized(body: str, operators: list[str]) -> None:
    assert [each.operator for each in asked(model(body, w=np.ones((8, 8, 1, 1)))).values()] == operators


def test_where_only_some_are_in_float_the_next_step_names_them_for_quantize(
    three: Path, lenient: tuple[dict[str, Any], Path]
) -> None:
    proto = onnx.load(str(three))
    proto.graph.node[-1].op_type = "Conv"  # so that it is not an operator as such
    with pytest.raises(StageError) as caught:
        fake_quant.checked(proto.SerializeToString(), lenient[1], "8.9", allowed=False)
    assert caught.value.next_step.startswith("leave them in float: 'steps.quantize.config.skip=[y]'; ")


READS = {"int8": ("int8", "int8", "float"), "weight only": ("half", "int8"), "float": ("float", "float")}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([*READS])), max_size=6))
def test_each_product_is_kept_or_in_float_or_not_found_and_kept_only_where_all_profiles_read_codes(
    found: list[tuple[str, str]],
) -> None:
    graphs = [
        Graph(0, (Operation("corrltn", "op", READS[reads], ("float",), (name, "x_dq")),)) for name, reads in found
    ]
    products = compared({name: Product(name, "Conv") for name in "abcd"}, graphs)
    for name in "abcd":
        all_reads = {reads for of, reads in found if of == name}
        assert (name in products.kept) == (all_reads == {"int8"})
        assert (name in products.in_float) == bool(all_reads - {"int8"})
        assert (name in products.not_found) == (not all_reads)


def test_a_function_beside_a_product_is_no_product_and_an_attention_is_one() -> None:
    epilogue = Operation("function", "__myl_MulAdd", ("float", "float"), ("float",), ("a",))
    attention = Operation("function", "_gemm_mha_v2", ("int8", "float", "int8", "int8"), ("half",), ("a", "b"))
    products = compared({name: Product(name, "MatMul") for name in "ab"}, [Graph(0, (epilogue, attention))])
    assert products.kept == ("a", "b")
    fusion = Operation("runtime_fusion", "__myl_FcAdd", ("float", "int8", "int8"), ("half",), ("a",))
    assert compared({"a": Product("a", "Gemm")}, [Graph(0, (fusion,))]).kept == ("a",)


def test_whether_products_in_float_are_allowed_is_in_the_key_where_a_plan_can_be_judged() -> None:
    assert STAGE.keyed is not None
    strict, allowed = BuildConfig(), BuildConfig(allow_fake_quant=True)
    rtx, tensorrt = facts(), {**facts(), "backend": "tensorrt", "backend_version": "10.13.3.9"}
    assert STAGE.keyed(strict, rtx) != STAGE.keyed(allowed, rtx)
    assert STAGE.keyed(strict, tensorrt) == STAGE.keyed(allowed, tensorrt)
    assert (STAGE.without_effect(allowed, rtx), STAGE.without_effect(allowed, tensorrt)) == ([], ["allow_fake_quant"])
