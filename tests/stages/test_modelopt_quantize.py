"""modelopt in the place of our own: by one override, with the same data, and refused in plain words where it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from stages import modelopt_quantize, quantization
from stages.modelopt_quantize import STAGE, ModeloptQuantizeConfig
from stages.stage import StageError
from tests.stages.rewriting import DIGITS, outputs, residual_block, run, saved, sqnr


def names(folder: Path) -> set[str]:
    return {each.name for each in folder.iterdir()}


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Path]:
    data = np.random.default_rng(0).standard_normal((32, 4, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=data)
    return {
        "onnx": saved(residual_block(np.random.default_rng(1)), tmp_path / "block.onnx"),
        "calibration": tmp_path / "data.npz",
    }


def test_without_modelopt_the_error_says_what_to_install(
    given: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(modelopt_quantize, "NEEDED", ("modelopt_of_nobody", "numpy"))
    with pytest.raises(StageError, match="not installed: modelopt_of_nobody") as caught:
        run(STAGE, tmp_path / "out", **given)
    assert "pip install 'trtforge[modelopt]'" in caught.value.next_step


def test_what_is_not_allowed_is_refused_before_anything_runs() -> None:
    with pytest.raises(ValueError, match="method"):
        ModeloptQuantizeConfig(method="mse")


def quantized(path: Path) -> list[str]:
    """The convolutions and matrix products that read a dequantized tensor, by their names."""
    graph = onnx.load(str(path)).graph
    made = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return [node.name for node in graph.node if node.op_type in ("Conv", "Gemm") and node.input[0] in made]


needs_modelopt = pytest.mark.modelopt


@needs_modelopt
@pytest.mark.parametrize("method", ["entropy", "max"])
def test_the_model_has_qdq_and_computes_nearly_the_same(given: dict[str, Path], tmp_path: Path, method: str) -> None:
    before = names(tmp_path)
    config = ModeloptQuantizeConfig(method=method)
    path, metrics = run(STAGE, tmp_path / "out", config, {"batch_size": 8}, **given)
    assert (metrics["samples"], metrics["batches"], metrics["method"]) == (32, 4, method)
    x = {"x": np.load(given["calibration"])["x"]}
    assert sqnr(outputs(given["onnx"], x)[0], outputs(path, x)[0]) > 20
    assert names(tmp_path / "out") == {"model.onnx"}
    assert names(tmp_path) == before | {"out"}


@needs_modelopt
def test_nodes_that_are_skipped_stay_in_float(tmp_path: Path) -> None:
    given = {"onnx": DIGITS / "digits.onnx", "calibration": DIGITS / "calibration.npz"}
    everything, _ = run(STAGE, tmp_path / "all", ModeloptQuantizeConfig(method="max"), **given)
    skipped = quantized(everything)[0]
    path, metrics = run(STAGE, tmp_path / "fewer", ModeloptQuantizeConfig(method="max", skip=[skipped]), **given)
    assert metrics["skipped"] == [skipped]
    assert set(quantized(path)) == set(quantized(everything)) - {skipped}


@needs_modelopt
def test_a_model_with_qdq_is_refused(given: dict[str, Path], tmp_path: Path) -> None:
    done, _ = run(STAGE, tmp_path / "out", **given)
    assert quantization.is_quantized(onnx.load(str(done)))
    with pytest.raises(StageError, match="already"):
        run(STAGE, tmp_path / "again", **{**given, "onnx": done})
