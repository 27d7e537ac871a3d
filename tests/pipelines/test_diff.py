"""`trtforge diff`."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest

from artifacts.store import Store
from conf.errors import ConfigError
from pipelines import diff as comparing
from tests.pipelines.conftest import Forge

DIGITS = Path(__file__).parents[2] / "conf/data/digits/digits.onnx"
STREAMS = "steps.build.config.max_aux_streams=5"
NOT_VALIDATED = ("~steps.validate", "~steps.publish")


@pytest.fixture(scope="module")
def forge(tmp_path_factory, default_store):
    """A store that holds the default plans, that of flow fp16, and one more that an override changed."""
    home = tmp_path_factory.mktemp("diff")
    shutil.copytree(default_store, home / ".trtforge", symlinks=True)
    forge = Forge(home)
    for overrides in (("flow=fp16",), (STREAMS, *NOT_VALIDATED)):
        ran = forge.build("targets=[l4]", *overrides)
        assert ran.code == 0, ran.err
    forge.after = ran.step("build", "l4")["key"]
    forge.default = forge.status("targets=[l4]")
    forge.before = forge.default.step("build", "l4")["key"]
    return forge


@pytest.fixture(scope="module")
def quantized(forge):
    """What int8 has otherwise than fp16."""
    ran = forge("diff", "--json", "digits/fp16@l4", forge.before)
    assert ran.code == 0, ran.err
    return ran.document


def test_the_two_are_named_with_what_made_them(quantized, forge):
    a, b = quantized["a"], quantized["b"]
    assert (a["what"], a["model"], a["flow"], a["target"]) == ("digits/fp16@l4", "digits", "fp16", "l4")
    assert (b["key"], b["flow"], quantized["same"]) == (forge.before, "int8", False)


def test_steps_that_only_one_has_are_told_and_what_follows_from_them_once(quantized):
    told = {(each["step"], each["words"]) for each in quantized["settings"]}
    only = {(step, f"only {side} has this step") for side, step in [("a", "cast"), *(("b", s) for s in INT8_STEPS)]}
    assert told == {*only, ("build", "input onnx: quantize.onnx instead of cast.onnx, flow fp16 -> int8")}


INT8_STEPS = ("calibrate", "ranges", "quantize")


def test_every_product_is_told_with_what_it_computes_in(quantized):
    (profile,) = quantized["profiles"]
    assert {(each["a"], each["b"]) for each in profile["products"]} == {("FP16", "INT8")}
    nodes = {node.name for node in onnx.load(str(DIGITS)).graph.node if node.op_type in ("Conv", "Gemm")}
    assert {each["node"] for each in profile["products"]} == nodes
    int8, fp16 = profile["precisions"]["INT8"], profile["precisions"]["FP16"]
    assert (int8["a"]["products"], int8["b"]["products"]) == (0, 7)
    assert int8["b"]["macs"] == fp16["a"]["macs"] > 0


def test_what_is_fused_otherwise_is_told_by_layers_and_nodes(quantized):
    (profile,) = quantized["profiles"]
    split = next(each for each in profile["fusions"] if "node_relu_1" in each["nodes"])
    assert split["a"] == ["node_conv2d_1"] and len(split["b"]) == 2
    counts = profile["layers"]
    assert counts["a"] == counts["same"] + counts["retyped"] + sum(len(each["a"]) for each in profile["fusions"])


def test_sizes_and_accuracy_are_those_of_plan_and_record(quantized, forge):
    a, b = (Path(quantized[side]["path"]).stat().st_size for side in "ab")
    assert quantized["sizes"]["plan_bytes"] == {"a": a, "b": b}
    metrics = forge.default.step("validate", "l4")["metrics"]
    assert quantized["accuracy"]["max_abs_error"]["b"] == metrics["max_abs_error"]
    assert quantized["latency"] == {}


def test_an_override_is_named_as_why_names_it(forge):
    ran = forge("diff", "--json", forge.before, forge.after)
    assert ran.code == 0, ran.err
    (setting,) = ran.document["settings"]
    assert (setting["step"], setting["field"], setting["after"]) == ("build", "config.max_aux_streams", 5)
    assert setting["because"] == f"override {STREAMS}"
    assert setting["words"].startswith("steps.build.config.max_aux_streams") and "by override" in setting["words"]
    profile = ran.document["profiles"][0]
    assert profile["products"] == [] and profile["layers"]["same"] > 0


def test_people_get_tables_and_short_lists(forge):
    out = forge("diff", "digits/fp16@l4", forge.before).out
    for text in (
        "cast: only a has this step",
        "plan_bytes",
        "node_linear: FP16 -> INT8",
        "INT8       0 -> 7",
        "sqnr_db",
    ):
        assert text in out, text


def test_a_plan_has_nothing_otherwise_than_itself_by_whatever_name(forge):
    path = forge.default.step("build", "l4")["outputs"]["plan"]["path"]
    found = forge("diff", "--json", path, forge.before).document
    assert found["same"] and found["settings"] == [] and found["sizes"] == {} and found["accuracy"] == {}
    assert found["profiles"][0]["layers"]["a"] == found["profiles"][0]["layers"]["same"]
    assert "the same bytes" in forge("diff", path, forge.before).out


def test_two_onnx_files_are_compared_node_by_node(forge, tmp_path):
    model = onnx.load(str(DIGITS))
    next(node for node in model.graph.node if node.name == "node_relu_1").op_type = "Sigmoid"
    onnx.save(model, str(tmp_path / "other.onnx"))
    ran = forge("diff", "--json", str(DIGITS), str(tmp_path / "other.onnx"))
    assert ran.code == 0, ran.err
    assert (ran.document["kind"], ran.document["settings"]) == ("onnx", [])
    assert [line for line in ran.document["changes"] if "node_relu_1" in line]


def test_steps_that_make_onnx_are_compared_with_their_settings(forge):
    keys = {step: forge.default.step(step)["key"] for step in ("surgery", "quantize")}
    found = forge("diff", "--json", keys["surgery"], keys["quantize"]).document
    assert found["kind"] == "onnx" and any("QuantizeLinear" in line for line in found["changes"])
    assert {each["step"] for each in found["settings"]} == {"calibrate", "ranges", "quantize"}


@pytest.mark.parametrize(
    ("one", "other", "what"),
    [
        ("nothing", "digits/fp16@l4", "nothing: no file"),
        ("digits/fp16@l4", str(DIGITS), "is a plan"),
        ("cut.plan", "digits/fp16@l4", "truncated"),
        ("text.onnx", str(DIGITS), "text.onnx"),
    ],
)
def test_what_cannot_be_read_is_an_error_of_the_call(forge, one, other, what, monkeypatch):
    monkeypatch.chdir(forge.home)
    (forge.home / "cut.plan").write_bytes(b"vtrt" + bytes(20))
    (forge.home / "text.onnx").write_text("no model")
    with pytest.raises(ConfigError, match=what):
        comparing.diff(one, other, Store(forge.store))


def test_an_error_of_the_call_ends_with_2_and_one_line(forge):
    ran = forge("diff", "nothing", "digits/fp16@l4")
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: nothing: no file") and ran.err.count("error: ") == 1


def test_numbers_are_found_below_others_and_flags_are_none():
    metrics = {"a": {"b": 1.5, "ok": True}, "n": 2, "text": "x", "list": [1]}
    assert dict(comparing._leaves(metrics)) == {"a.b": 1.5, "n": 2}
