"""Wrong calls and bad models: one clear line, what to do next, the right exit code, and nothing kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

DIGITS = Path(__file__).parents[2] / "conf/data/digits/digits.onnx"
ANY = ("model=onnx", "flow=fp32", "targets=[l4]")


def network(path, *, batch="batch", operator="Relu", weight=None):
    """Conv, then `operator`, over `x` (batch, 3, 8, 8)."""
    weight = np.random.default_rng(0).normal(size=(4, 3, 3, 3)).astype(np.float32) if weight is None else weight
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv1", pads=[1, 1, 1, 1]),
        helper.make_node(operator, ["c"], ["y"], name="last"),
    ]
    shape = [batch, 4] if operator == "Det" else [batch, 4, 8, 8]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return f"model.path={path}"


def check_told(ran, code, *words):
    assert ran.code == code, (ran.code, ran.err)
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, ran.err
    assert "Traceback" not in ran.err
    assert any(line.startswith("next: ") for line in ran.err.splitlines())
    for word in words:
        assert word in ran.err


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["flow=int9"], ["int9", "int8"]),
        (["targets=[a1O]"], ["a1O", "a10"]),
        (["model.pth=x"], ["pth", "path"]),
        (["modl.path=x"], ["modl", "model"]),
        (["steps.build.config.optimisation_level=5"], ["optimisation_level", "optimization_level"]),
        (["steps.build.config.optimization_level=high"], ["optimization_level", "high"]),
        (["steps.biuld.config.tf32=false"], ["biuld", "build"]),
        (["steps.build.stage=bild"], ["bild", "build"]),
        (["steps.build.inputs.onnx=quantise.onnx"], ["quantise", "quantize"]),
        (["steps.build.inputs.onnx=validate.report"], ["wait for one another"]),
        (["backend=trt"], ["trt", "tensorrt_rtx"]),
        (["runner=loc"], ["loc", "local"]),
        (["+foo=1"], ["foo"]),
        (["model.path='a"], ["quote"]),
        (["targets=[]"], ["targets=[l4]"]),
        (["model=onnx"], ["model.path"]),
        (["model=onnx", "model.path=/nope.onnx"], ["/nope.onnx", "no such file"]),
        (["model.calibration.path=/nope"], ["/nope"]),
        (["model.dims.batch=[8,4,2]"], ["min", "order"]),
        (["model.dims.btch=[1,2,4]"], ["btch", "batch"]),
        (["model.profiles.default.images={min:[1,1,8],opt:[1,1,8,8],max:[1,1,8,8]}"], ["3 dims", "4"]),
        (["model.profiles.default.images={min:[1,2,8,8],opt:[1,1,8,8],max:[1,1,8,8]}"], ["dim 1", "fixes it at 1"]),
        (["model.profiles.default.image={min:[1],opt:[1],max:[1]}"], ["image", "images"]),
        (["model.source=torch"], ["torch"]),
        (["model.name=a/b"], ["a/b"]),
    ],
)
def test_a_wrong_call_is_refused_with_what_would_be_right(built, overrides, words):
    before = built.records()
    check_told(built("build", "runner=local", *overrides), 2, *words)
    assert built.records() == before


def signature_of_digits(forge):
    """The record that says what the model looks like is no result of a step; it may be there."""
    records = (forge.store / "records").glob("*.json")
    return {path.stem for path in records if '"stage": "signature"' in path.read_text()}


def test_dynamic_inputs_without_a_profile_are_refused_with_the_override_to_type(forge):
    ran = forge("build", "runner=local", *ANY, network(forge.home / "net.onnx"))
    check_told(ran, 2, "x (batch, 3, 8, 8)", "model.dims.batch=[1,8,32]", "model.profiles.default.x={min:[1,3,8,8]")
    override = next(part for part in ran.err.replace(",  ", " ").split() if part.startswith("model.dims.")).rstrip(",")
    assert forge.build(*ANY, f"model.path={forge.home}/net.onnx", override).code == 0


def test_the_long_form_of_the_suggestion_works_as_it_is_printed(forge):
    ran = forge("build", "runner=local", *ANY, network(forge.home / "net.onnx", batch=None))
    check_told(ran, 2, "x (?, 3, 8, 8)")
    override = ran.err.partition("give their shapes: ")[2].strip().strip("'")
    assert forge.status(*ANY, f"model.path={forge.home}/net.onnx", override).states()["build[l4]"] == "waiting"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"hello, this is not a model\n" * 20, "not an ONNX"),
        (DIGITS.read_bytes()[:100_000], "truncated"),
        (bytes(range(256)) * 40, "not an ONNX"),
    ],
    ids=["empty", "text", "truncated", "noise"],
)
def test_a_file_that_is_no_model_is_refused_before_anything_runs(forge, content, words):
    (forge.home / "net.onnx").write_bytes(content)
    check_told(forge("build", "runner=local", *ANY, f"model.path={forge.home}/net.onnx"), 2, "net.onnx", words)
    assert not forge.records()


def test_an_unsupported_operator_is_named_with_its_node_and_its_file(forge):
    path = forge.home / "net.onnx"
    ran = forge("build", "runner=local", *ANY, network(path, batch=1, operator="Det"))
    check_told(ran, 1, "Det", "last", "build[l4]", f"(model: {path}; log: ")
    assert not list((forge.store / "refs/plans").glob("*"))


def test_a_nan_weight_is_refused_by_name_and_nothing_is_kept(forge):
    weight = np.ones((4, 3, 3, 3), np.float32)
    weight[1, 2, 0, 0] = np.nan
    ran = forge("build", "runner=local", *ANY, network(forge.home / "net.onnx", batch=1, weight=weight))
    check_told(ran, 1, "'w'", "NaN")
    assert forge.records() == signature_of_digits(forge)


def test_external_data_counts_and_must_be_there(forge):
    network(forge.home / "net.onnx", batch=1)
    model = onnx.load(forge.home / "net.onnx")
    onnx.save(model, forge.home / "net.onnx", save_as_external_data=True, location="net.bin", size_threshold=0)
    path = f"model.path={forge.home}/net.onnx"
    export = ("model=onnx", "flow=export")  # what comes after it reads what it made
    assert forge.build(*export, path).code == 0
    data = forge.home / "net.bin"
    data.write_bytes(data.read_bytes()[:-4] + b"\0\0\0\0")
    assert forge.status(*export, path).states()["export"] == "missing"
    data.unlink()
    check_told(forge("build", "runner=local", *export, path), 2, "net.bin")


def test_what_no_one_can_build_is_refused_by_name_before_anything_runs(forge):
    check_told(forge("build", "targets=[h100,l4]"), 4, "h100", "9.0", "targets=[l4]")
    check_told(forge("build", "targets=[l4]", "backend=tensorrt"), 4, "tensorrt is not installed")
    assert not forge.store.exists()


def test_int8_without_calibration_batches_is_refused(forge):
    override = network(forge.home / "net.onnx", batch=1)
    ran = forge("build", "model=onnx", "flow=int8", "targets=[l4]", override)
    check_told(ran, 2, "calibration", "model.calibration.path")


def test_with_json_an_error_is_a_document_too(forge):
    ran = forge("build", "--json", "flow=int9")
    assert ran.code == 2
    assert ran.document["ok"] is False
    assert "int9" in ran.document["error"]
    assert "int8" in ran.document["next"]


def test_a_traceback_is_for_debug_only(forge):
    assert "Traceback" in forge("build", "--debug", "flow=int9").err


def test_a_store_that_cannot_be_made_is_one_line(forge):
    (forge.home / "file").write_text("")
    check_told(forge("build", "runner=local", f"store.root={forge.home}/file/store"), 2, "file/store", "store.root")
