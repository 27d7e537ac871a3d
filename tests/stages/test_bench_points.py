"""Where a plan is timed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import helper

from stages.batches import model_inputs
from stages.bench_points import points
from stages.profiles import profiles_of
from stages.stage import StageError
from tests.stages.shape_tensors import ranges, shaper
from tests.stages.stage_runs import classifier, model, save

SIZES = {"min": [1, 4], "opt": [4, 4], "max": [8, 4]}


def named(path: Path, profiles: Any, *wanted: str) -> list[str]:
    found = points(model_inputs(onnx.load(path)), profiles_of(profiles), wanted, seed=0)
    return [f"{point.index} {point.name}" for point in found]


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    node = helper.make_node("Identity", ["x"], ["y"])
    return save(model([node], {"x": ["n", 4]}, {"y": ["n", 4]}), tmp_path_factory.mktemp("points") / "model.onnx")


def test_points_are_of_all_profiles_or_of_one(dynamic: Path) -> None:
    both = {"b": {"x": SIZES}, "a": {"x": SIZES}}
    assert named(dynamic, both, "opt", "min") == ["0 a.min", "0 a.opt", "1 b.min", "1 b.opt"]
    assert named(dynamic, both, "b.max", "a.opt") == ["0 a.opt", "1 b.max"]


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [
        ({"min": [4, 4], "opt": [4, 4], "max": [4, 4]}, ["opt"]),
        ({"min": [1, 4], "opt": [4, 4], "max": [4, 4]}, ["min", "opt"]),
        ({"min": [4, 4], "opt": [4, 4], "max": [8, 4]}, ["opt", "max"]),
    ],
)
def test_ends_of_one_shape_are_one_point_and_it_is_opt(sizes: Any, kept: list[str], dynamic: Path) -> None:
    assert named(dynamic, {"p": {"x": sizes}}, "min", "opt", "max") == [f"0 p.{end}" for end in kept]


def test_a_model_of_fixed_shapes_has_one_point(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx", batch=3)
    assert named(path, {}, "min", "max") == ["0 opt"]
    (point,) = points(model_inputs(onnx.load(path)), (), ["opt"], seed=0)
    assert point.samples == 3


def test_a_profile_that_is_not_there_is_named_with_those_that_are(dynamic: Path) -> None:
    with pytest.raises(StageError) as caught:
        named(dynamic, {"large": {"x": SIZES}, "small": {"x": SIZES}}, "smal.opt")
    assert caught.value.what == "points: 'smal.opt': the model has no profile 'smal'"
    assert caught.value.next_step == "it has large, small"


def test_a_shape_tensor_has_its_values_and_counts_no_samples(tmp_path: Path) -> None:
    inputs = model_inputs(onnx.load(shaper(tmp_path / "model.onnx")))
    found = {point.end: point for point in points(inputs, profiles_of({"default": ranges()}), ["min", "max"], seed=0)}
    assert found["max"].feed["sizes"].tolist() != found["min"].feed["sizes"].tolist()
    assert found["max"].samples == 1, "x has one; the four sizes are none"
