"""`trtforge layers`."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from artifacts.store import Store
from pipelines import layers

DIGITS = Path(__file__).parents[2] / "conf/data/digits/digits.onnx"


@pytest.fixture(scope="module")
def store(default_store):
    return Store(default_store)


@pytest.fixture(scope="module")
def plan(store):
    return layers.plan_of("digits@l4", store)


def told(built, *arguments):
    ran = built("layers", "--json", *arguments)
    assert ran.code == 0, ran.err
    return ran.document


def test_the_share_of_int8_is_what_q_and_dq_of_the_model_ask_for(built, plan, store):
    """Counted off the ONNX file that the builder was given: every product reads two dequantized tensors."""
    model = onnx.load(str(plan.inputs(store)["onnx"][0]))
    made = {name: node.op_type for node in model.graph.node for name in node.output}
    products = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm", "MatMul")]
    asked = [node for node in products if {made.get(name) for name in node.input[:2]} == {"DequantizeLinear"}]
    (profile,) = told(built, "digits@l4")["profiles"]
    assert profile["precisions"]["INT8"]["products"] == len(asked) == len(products) == 7
    # 8 samples at opt: the stem, and what docs/quantization.md has, by hand.
    by_hand = {"node_conv2d": 8 * 32 * 64 * 9, "node_linear": 8 * 48 * 10}
    own = {node: layer["macs"] for layer in profile["layers"] if layer["product"] for node in layer["nodes"]}
    assert {node: own[node] for node in by_hand} == by_hand
    assert sum(layer["macs"] for layer in profile["layers"]) == profile["precisions"]["INT8"]["macs"]


def test_what_was_kept_is_what_is_read_anew(plan, store):
    kept = layers.report_of(plan, store)
    assert plan.record.outputs["layers"].bytes > 1000
    anew = layers.report_of(layers.Plan(plan.path, None), store)
    assert anew.model_reason and not kept.model_reason
    assert [layer.reads for layer in anew.profiles[0].layers] == [layer.reads for layer in kept.profiles[0].layers]


def test_a_record_without_a_report_gets_one_with_macs_all_the_same(plan, store):
    """Of a trtforge that kept none."""
    old = replace(plan.record, outputs={"plan": plan.record.outputs["plan"]})
    report = layers.report_of(layers.Plan(plan.path, old), store)
    assert report.document() == layers.report_of(plan, store).document()


def test_a_plan_outside_of_the_store_is_known_by_its_content(built, plan, tmp_path):
    copy = shutil.copy(plan.path, tmp_path / "copy.plan")
    found = told(built, str(copy))
    assert (found["path"], found["key"]) == (str(copy), plan.record.key)
    assert found["profiles"] == told(built, "digits@l4")["profiles"]


def test_people_get_the_shares_and_a_line_for_each_layer(built):
    out = built("layers", "digits@l4").out
    assert "INT8            7         7  14.2 M (100.0 %)" in out
    assert "no times: not asked for" in out
    for name in ("node_conv2d_5", "node_linear", "__myl_MulAdd"):
        assert name in out


def test_times_need_a_gpu_of_the_plan(built):
    ran = built("layers", "digits@a10", "--time")
    assert (ran.code, ran.out) == (2, "")
    assert "no GPU of 8.6 here" in ran.err and "leave out --time" in ran.err


def test_what_is_no_plan_is_refused_in_one_line(built, plan):
    assert "not a plan" in built("layers", str(DIGITS)).err
    key = plan.record.fields["inputs"]["onnx"]
    assert "not a plan" in built("layers", key).err
    quantize = next(r["key"] for r in built("ls", "--records", "--json").document["records"] if r["step"] == "quantize")
    ran = built("layers", quantize)
    assert ran.code == 2 and "a step quantize, which makes no plan" in ran.err
    assert json.loads(built("layers", "--json", "nothing").out)["ok"] is False
