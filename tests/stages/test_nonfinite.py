"""Where NaN and infinities first appear."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper

from stages import nonfinite
from tests.stages.stage_runs import model, save

NAMES = [f"t{index}" for index in range(9)]


def chain(path: Path, wrong: str = "Exp", elem: int = TensorProto.FLOAT) -> Path:
    """x -> Relu x 4 -> `wrong` -> Clip -> Relu …: what is infinite does not stay so."""
    operators = ["Relu", "Relu", "Relu", "Relu", wrong, "Clip", "Relu", "Relu", "Relu"]
    nodes = [
        helper.make_node(
            operator, [before, *(["low", "high"] if operator == "Clip" else [])], [name], name=f"{operator}{index}"
        )
        for index, (operator, before, name) in enumerate(zip(operators, ["x", *NAMES], NAMES, strict=False))
    ]
    ends = np.array([0.0, 5.0], helper.tensor_dtype_to_np_dtype(elem))
    nodes.append(helper.make_node("Div", ["t8", "t4"], ["y"], name="Div9"))
    weights = {"low": ends[0:1].reshape(()), "high": ends[1:].reshape(())}
    return save(model(nodes, {"x": ["n", 3]}, {"y": ["n", 3]}, weights, elem), path)


@pytest.mark.parametrize("at_once", [1, 4, 64])
def test_the_first_node_is_named_also_where_what_comes_after_it_is_finite_again(
    at_once: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nonfinite, "AT_ONCE", at_once)
    x = np.array([[1, 1, 1], [1, 1000, 1]], np.float32)
    found = nonfinite.origin([chain(tmp_path / "m.onnx")], {"x": x}, 1)
    assert found == "it first appears in Exp 'Exp4', whose output 't4' has inf"


def test_only_the_sample_that_it_was_seen_in_is_run() -> None:
    batch = {"x": np.zeros((4, 2), np.float32), "scale": np.array(1.0)}
    one, whole = nonfinite._smallest_first(batch, 2)
    assert one["x"].shape == (1, 2) and one["scale"].shape == () and whole is batch


def test_a_model_that_only_the_reference_evaluator_runs_is_looked_into_as_well(tmp_path: Path) -> None:
    x = np.full((1, 3), 1000, ml_dtypes.bfloat16)
    found = nonfinite.origin([chain(tmp_path / "m.onnx", elem=TensorProto.BFLOAT16)], {"x": x}, 0)
    assert "Exp 'Exp4', whose output 't4' has inf" in found


def test_an_input_that_is_not_finite_is_named_instead_of_a_layer(tmp_path: Path) -> None:
    x = np.array([[1, np.nan, 1]], np.float32)
    assert nonfinite.origin([chain(tmp_path / "m.onnx")], {"x": x}, 0) == "the input 'x' already holds nan"


def test_what_cannot_be_found_again_is_said(tmp_path: Path) -> None:
    found = nonfinite.origin([chain(tmp_path / "m.onnx")], {"x": np.ones((1, 3), np.float32)}, 0)
    assert found == "the node that it comes from was not found: run once more, every tensor is finite"
