"""`backend=tensorrt` from the command line to a published plan, on a machine that is made up.

The bindings of TensorRT are real, and so are cuda-python and Polygraphy; the libraries under them are stand-ins with
one GPU, an L4, that copies the input to the output, or scales it. What is shown is that the pipeline makes the calls,
and keeps the facts; tests/pipelines/test_on_gpu.py shows the rest where there is a GPU.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from tests.pipelines.conftest import Forge
from tests.stages.stage_runs import model, save
from tests.stages.stand_in_libraries import make_machine

BINDINGS = Path(__file__).parents[2] / ".venv-bindings"
COPY = ("flow=fp32", "model=onnx", "model.path=copy.onnx", "model.dims.n=[1,2,8]")
LOCAL = (*COPY, "backend=tensorrt", "targets=[local]")

pytestmark = pytest.mark.skipif(not BINDINGS.is_dir(), reason="the bindings are not here: make bindings")


@pytest.fixture
def machine(tmp_path, request):
    """A command line on a machine with an L4 and this version of TensorRT."""
    (tmp_path / "machine").mkdir()
    node = helper.make_node("Identity", ["x"], ["y"], name="copy0")
    save(model([node], {"x": ["n", 4]}, {"y": ["n", 4]}), tmp_path / "copy.onnx")
    return Forge(tmp_path, make_machine(tmp_path / "machine", BINDINGS / request.param))


@pytest.mark.parametrize("machine", ["11.4.0.106"], indirect=True)
def test_a_plan_is_built_executed_and_published_beside_one_of_the_other_backend(machine, request):
    version = request.node.callspec.params["machine"]
    ran = machine.build(*LOCAL[:-1], "targets=[local,a10]", "targets.a10.backend=tensorrt_rtx")
    assert ran.code == 0, ran.err
    plans = {plan["target"]: (plan["backend"], plan["backend_version"]) for plan in ran.document["plans"]}
    assert plans["local"] == ("tensorrt", version) and plans["a10"][0] == "tensorrt_rtx"
    executed = {target: ran.step("validate", target)["metrics"] for target in ("local", "a10")}
    assert executed["local"]["engine_executed"] and executed["local"]["engine"]["max_abs_error"] == 0.0
    assert executed["a10"]["reason"] == "no GPU of 8.6 here"
    record = machine("inspect", "--json", ran.step("build", "local")["key"]).document
    assert record["facts"]["gpu"] == "NVIDIA L4" and record["facts"]["backend_version"] == version
    assert {*machine.status(*LOCAL).states().values()} == {"cached"}


@pytest.mark.parametrize("machine", ["11.4.0.106"], indirect=True)
def test_new_weights_are_put_into_the_plan_that_is_there_and_compared(machine, tmp_path):
    """The one GPU computes what the model does, with the weights that its plan was given."""
    overrides = ("flow=refit", "model=onnx", "model.path=scale.onnx", "model.dims.n=[1,2,8]", *LOCAL[-2:])
    ran, plans = {}, {}
    for scale in (1.0, 2.0):
        nodes = [helper.make_node("Mul", ["x", "w"], ["s"]), helper.make_node("Add", ["s", "b"], ["y"])]
        weights = {"w": np.full(512, scale, np.float32), "b": np.full(1, scale, np.float32)}
        save(model(nodes, {"x": ["n", 512]}, {"y": ["n", 512]}, weights), tmp_path / "scale.onnx")
        ran[scale] = machine.build(*overrides)
        assert ran[scale].code == 0, ran[scale].err
        put_in, validated = (ran[scale].step(step, "local")["metrics"] for step in ("refit", "validate"))
        assert (put_in["method"], put_in["weights"], put_in["compared"]["difference"]) == ("refit", 2, 0.0)
        assert validated["engine_executed"] and validated["engine"]["max_abs_error"] == 0.0
        plans[scale] = ran[scale].step("refit", "local")["outputs"]["plan"]["digest"]
    assert ran[2.0].step("build", "local")["state"] == "cached" and plans[1.0] != plans[2.0]


@pytest.mark.parametrize("machine", ["10.13.3.9"], indirect=True)
def test_a_knob_that_this_version_lacks_is_refused_while_the_run_is_planned(machine):
    for override, said in {
        "steps.build.config.build_route=-a": "tensorrt 11.1 and later ha",
        "steps.build.config.require_user_allocation=true": "tensorrt_rtx has it",
        "steps.build.config.preview_features.multidevice_runtime_10_16=true": "tensorrt 10.16 and later, below 11 has",
    }.items():
        ran = machine.status(*LOCAL, override)
        assert ran.code == 2 and said in ran.err


@pytest.mark.parametrize("machine", ["11.4.0.106"], indirect=True)
def test_targets_whose_gpu_is_not_here_are_refused_together(machine):
    ran = machine.build(*COPY, "backend=tensorrt", "targets=[l4,a10,h100]")
    assert ran.code == 4
    assert "a10" in ran.err and "h100" in ran.err and "NVIDIA L4 (8.9)" in ran.err and "l4:" not in ran.err
