"""A quantized model that takes its weights last: what status foresees, what runs, what `why` tells, which ranges."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from tests.pipelines.conftest import Forge
from tests.pipelines.planning import DIGITS

pytestmark = pytest.mark.xdist_group("refit flow")  # they share one build

RUN = ("runner=local", "flow=int8", "refit.ranges=keep", "targets=[l4]")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store in which the digits are built, and then with other weights."""
    forge = Forge(tmp_path_factory.mktemp("before"))
    ran = forge.build(*RUN)
    assert ran.code == 0, ran.err
    return forge.store


@pytest.fixture
def forge(tmp_path, store):
    shutil.copytree(store, tmp_path / ".trtforge", symlinks=True)
    return Forge(tmp_path)


def nudged(path: Path, factor: float = 1.001) -> str:
    model = onnx.load(DIGITS / "digits.onnx")
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        tensor.CopyFrom(numpy_helper.from_array((values * factor).astype(values.dtype), tensor.name))
    onnx.save(model, path)
    return f"model.path={path}"


def with_another_operator(path: Path) -> tuple[str, str]:
    model = onnx.load(DIGITS / "digits.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type = "Tanh"
    onnx.save(model, path)
    return f"model.path={path}", f"node {node.name}: Relu -> Tanh"


def test_with_new_weights_status_foresees_a_cached_build_and_kept_ranges_are_not_calibrated_again(forge, tmp_path):
    given = nudged(tmp_path / "new.onnx")
    stands = forge.status(*RUN, given)
    assert {name for name, state in stands.states().items() if state == "cached"} == {"ranges", "build[l4]"}
    assert "if the structure stays as it was" in stands.step("build", "l4")["reason"]

    before = forge.status(*RUN)
    assert set(before.states().values()) == {"cached"}
    ran = forge.build(*RUN, given)
    assert ran.code == 0, ran.err
    assert {name for name, state in ran.states().items() if state == "cached"} == {"ranges", "build[l4]"}
    assert "calibrate" not in ran.states()
    assert ran.step("build", "l4")["key"] == stands.step("build", "l4")["key"] == before.step("build", "l4")["key"]
    assert ran.step("ranges")["outputs"] == before.step("ranges")["outputs"]
    assert ran.step("split")["outputs"]["structure"] == before.step("split")["outputs"]["structure"]
    assert ran.step("split")["outputs"]["weights"] != before.step("split")["outputs"]["weights"]
    assert ran.document["plans"][0]["validated"]


def test_recalibrated_ranges_are_other_weights_of_the_same_structure(forge, tmp_path):
    given = nudged(tmp_path / "new.onnx", 1.3)
    stands = forge.status(*RUN, "refit.ranges=recalibrate", given)
    assert stands.step("build", "l4")["state"] == "cached"
    ran = forge.build(*RUN, "refit.ranges=recalibrate", given)
    assert {name for name, state in ran.states().items() if state == "cached"} == {"build[l4]"}
    assert ran.step("ranges")["state"] == "built"
    again = forge.status(*RUN, given)  # keeps what was calibrated last
    assert set(again.states().values()) == {"cached"}


def test_of_another_structure_nothing_is_foreseen_the_build_runs_and_why_names_the_node(forge, tmp_path):
    given, change = with_another_operator(tmp_path / "other.onnx")
    stands = forge.status(*RUN, given).states()
    assert {name for name, state in stands.items() if state == "cached"} == {"ranges"}
    ran = forge.build(*RUN, "refit.ranges=recalibrate", given)
    assert ran.step("build", "l4")["state"] == "built"
    told = forge("why", "build", *RUN, "refit.ranges=recalibrate", given)
    assert f"input onnx: split gave another structure; {change}" in told.out
    assert change in forge("why", "build", "--json", *RUN, "refit.ranges=recalibrate", given).out


def test_where_a_plan_may_not_be_rebuilt_and_no_gpu_is_here_no_machine_can_build_it(forge):
    records = forge.records()
    ran = forge.build(*RUN, "refit.fallback=fail")
    assert ran.code == 4
    assert "no GPU of 8.9 here" in ran.err
    assert forge.records() == records


def test_without_ranges_to_keep_they_are_calibrated_and_the_user_is_told(forge):
    ran = forge("build", *RUN, "model.name=another")
    assert ran.code == 0, ran.err
    assert "refit.ranges=keep: flow int8 has kept none of another yet: they are calibrated" in ran.err


def test_kept_ranges_of_tensors_that_are_called_otherwise_now_are_refused_by_name(forge, tmp_path):
    model = onnx.load(DIGITS / "digits.onnx")
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    (reader,) = (other for other in model.graph.node if node.output[0] in other.input and other.op_type == "Conv")
    for other in model.graph.node:
        other.input[:] = ["renamed" if name == node.output[0] else name for name in other.input]
    node.output[0] = "renamed"
    assert "renamed" in reader.input
    onnx.save(model, tmp_path / "renamed.onnx")
    ran = forge("build", *RUN, f"model.path={tmp_path / 'renamed.onnx'}")
    assert ran.code == 1
    assert "the ranges are of another model: no range for renamed; no tensor for the range of relu" in ran.err
    assert "not refit.ranges=keep" in ran.err
