"""The passes that change what a caller sees: names, types, dims, which part of the model, and further outputs."""

from __future__ import annotations

import numpy as np
import pytest

from stages.stage import StageError
from tests.stages.passes.rewritten import node_ops, through
from tests.stages.rewriting import outputs, parsed

NET = """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x, float[n, 4] z) => (float[n, 4] y, float[n, 4] w) {
    a = Relu(x)
    b = Neg(a)
    y = Add(b, z)
    w = Exp(z) }"""
X, Z = (np.linspace(low, 1, 8, dtype=np.float32).reshape(2, 4) for low in (-1, 0))


def test_marked_outputs_come_after_the_others_with_their_types() -> None:
    after, did = through(parsed(NET), {"pass": "mark_outputs", "tensors": ["[ab]"]})
    assert [value.name for value in after.graph.output] == ["y", "w", "a", "b"]
    assert did["marked"] == ["a", "b"]
    assert after.graph.output[2].type.tensor_type.shape.dim[0].dim_param == "n"
    assert outputs(after, {"x": X, "z": Z})[2].tolist() == np.maximum(X, 0).tolist()


def test_a_pattern_that_marks_nothing_is_an_error_with_the_names_that_there_are() -> None:
    with pytest.raises(StageError, match="no tensor 'aa'"):
        through(parsed(NET), {"pass": "mark_outputs", "tensors": ["aa"]})


def test_a_part_is_cut_out_between_tensors() -> None:
    after, _ = through(parsed(NET), {"pass": "extract", "inputs": ["a"], "outputs": ["b"]})
    assert node_ops(after) == ["Neg"]
    assert outputs(after, {"a": X})[0].tolist() == (-X).tolist()


def test_a_part_without_inputs_named_takes_those_that_it_needs() -> None:
    after, _ = through(parsed(NET), {"pass": "extract", "outputs": ["w"]})
    assert [value.name for value in after.graph.input] == ["z"]


def test_a_part_that_depends_on_an_input_that_is_not_listed_is_refused() -> None:
    with pytest.raises(StageError, match="also depend on the model's inputs z"):
        through(parsed(NET), {"pass": "extract", "inputs": ["b"], "outputs": ["y"]})


def test_tensors_and_inputs_change_places() -> None:
    after, _ = through(parsed(NET), {"pass": "rename", "tensors": {"x": "z", "z": "x", "y": "sum"}})
    assert [value.name for value in after.graph.input] == ["z", "x"]
    assert [value.name for value in after.graph.output] == ["sum", "w"]
    expected = outputs(parsed(NET), {"x": X, "z": Z})
    assert outputs(after, {"z": X, "x": Z})[0].tolist() == expected[0].tolist()


@pytest.mark.parametrize(("old", "new", "words"), [("no", "m", "no tensor 'no'"), ("a", "b", "cannot be called 'b'")])
def test_a_name_that_is_not_there_or_taken_is_refused(old: str, new: str, words: str) -> None:
    with pytest.raises(StageError, match=words):
        through(parsed(NET), {"pass": "rename", "tensors": {old: new}})


def test_inputs_and_outputs_are_cast_at_the_border() -> None:
    after, _ = through(parsed(NET), {"pass": "cast_io", "inputs": {"x": "float16"}, "outputs": {"w": "float64"}})
    half = X.astype(np.float16)
    got = outputs(after, {"x": half, "z": Z})
    expected = outputs(parsed(NET), {"x": half.astype(np.float32), "z": Z})
    assert got[0].tolist() == expected[0].tolist()
    assert (got[1].dtype, got[1].tolist()) == (np.float64, expected[1].tolist())


def test_a_cast_to_the_same_type_changes_nothing() -> None:
    after, _ = through(parsed(NET), {"pass": "cast_io", "inputs": {"x": "float32"}})
    assert after == parsed(NET)


def test_dims_are_fixed_by_their_name_everywhere() -> None:
    after, _ = through(parsed(NET), {"pass": "set_dims", "dims": {"n": 2}})
    shapes = [
        [dim.dim_value for dim in v.type.tensor_type.shape.dim] for v in (*after.graph.input, *after.graph.output)
    ]
    assert shapes == [[2, 4]] * 4


def test_a_fixed_dim_is_freed_and_what_follows_from_it() -> None:
    fixed = parsed(NET.replace("[n, 4]", "[2, 4]"))
    shapes = {"x": ["batch", 4], "z": ["batch", 4]}
    after, _ = through(fixed, {"pass": "set_dims", "inputs": shapes})
    assert {v.type.tensor_type.shape.dim[0].dim_param for v in (*after.graph.input, *after.graph.output)} == {"batch"}
    assert outputs(after, {"x": X[:1], "z": Z[:1]})[0].shape == (1, 4)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"dims": {"m": 1}}, "no dim 'm'"), ({"inputs": {"q": [1]}}, "no input 'q'"), ({"inputs": {"x": [1]}}, "2 dims")],
)
def test_dims_that_are_not_there_are_refused(options: dict[str, object], words: str) -> None:
    with pytest.raises(StageError, match=words):
        through(parsed(NET), {"pass": "set_dims", **options})
