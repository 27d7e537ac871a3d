"""Sensitivity: each layer alone quantized, at the model's outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stages import quantize, sensitivity_table
from stages.placement.contract import Placement
from stages.quantization import place
from stages.sensitivity import STAGE, SensitivityConfig
from stages.stage import StageError
from tests.stages.rewriting import outputs, parsed, residual_block, run, saved, sqnr


def images(samples: int = 16) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((samples, 4, 8, 8)).astype(np.float32)


def ranges_of(model: onnx.ModelProto, attention: str = "none") -> dict[str, float]:
    return dict.fromkeys(place(model, attention=attention).activations, 3.0)


def measured(
    model: onnx.ModelProto, directory: Path, data: dict[str, np.ndarray], **config: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    np.savez(directory / "data.npz", **data)
    amax = {name: {"amax": value} for name, value in ranges_of(model, config.get("attention", "none")).items()}
    (directory / "ranges.json").write_text(json.dumps({"tensors": amax}))
    path, metrics = run(
        STAGE,
        directory / "out",
        SensitivityConfig(**config),
        onnx=saved(model, directory / "in.onnx"),
        ranges=directory / "ranges.json",
        calibration=directory / "data.npz",
    )
    return json.loads(path.read_text()), metrics


def alone(model: onnx.ModelProto, layer: str, feed: dict[str, np.ndarray]) -> float:
    """The SQNR with the pairs of one layer inserted, and no other, as `quantize` would."""
    candidate = onnx.ModelProto()
    candidate.CopyFrom(model)
    quantize.prepare(candidate)
    reads = tuple(read for read in place(candidate).reads if candidate.graph.node[read.node].output[0] == layer)
    quantize.insert(candidate, Placement(reads, (), ()), ranges_of(model))
    return sqnr(outputs(model, feed)[0], outputs(candidate, feed)[0])


def test_the_table_says_what_each_layer_costs_alone(tmp_path: Path) -> None:
    model = residual_block(np.random.default_rng(0))
    table, metrics = measured(model, tmp_path, {"x": images()})
    assert {layer: each["operator"] for layer, each in table["layers"].items()} == {
        "stem_conv": "Conv",
        "first_conv": "Conv",
        "second": "Conv",
        "sum": "Add",
        "y": "Gemm",
    }
    for layer, each in table["layers"].items():
        assert each["sqnr_db"] == pytest.approx(alone(model, layer, {"x": images()}), abs=0.05)
    assert (table["samples"], metrics["samples"], metrics["layers"]) == (16, 16, 5)
    assert set(metrics["worst"]) == set(table["layers"])


def test_the_table_says_what_becomes_of_each_tensor_and_who_reads_it(tmp_path: Path) -> None:
    model = residual_block(np.random.default_rng(0))
    table, metrics = measured(model, tmp_path, {"x": images() * 20})
    tensors = table["tensors"]
    assert set(tensors) == {read.tensor for read in place(model).reads}
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for name, each in tensors.items():
        assert each["kind"] == ("weight" if name in weights else "activation")
    # `x` is clipped at 3 by a range that was made up; a weight has a scale for each output channel.
    codes = np.clip(np.round(images() * 20 / (3 / 127)), -128, 127) * (3 / 127)
    assert tensors["x"]["sqnr_db"] == pytest.approx(sqnr(images() * 20, codes), abs=0.02)
    scale = np.abs(weights["w0"]).max(axis=(1, 2, 3), keepdims=True) / 127
    rounded = np.round(weights["w0"] / scale) * scale
    assert tensors["w0"]["sqnr_db"] == pytest.approx(sqnr(weights["w0"], rounded), abs=0.02)
    assert tensors["w0"]["layers"] == tensors["x"]["layers"] == ["stem_conv"]
    assert next(iter(metrics["worst_tensors"])) == min(tensors, key=lambda name: tensors[name]["sqnr_db"])


def test_a_layer_that_is_cut_off_is_the_worst_and_quantize_leaves_it_out(tmp_path: Path) -> None:
    model = residual_block(np.random.default_rng(0))
    table, _ = measured(model, tmp_path, {"x": images() * 20})  # far beyond the range of 3 at the first layer alone
    path = tmp_path / "out" / "sensitivity.json"
    assert sensitivity_table.worst(sensitivity_table.read(path), 1, None) == ["stem_conv"]
    assert table["layers"]["stem_conv"]["sqnr_db"] < 6
    config = quantize.QuantizeConfig(skip_sensitive=1)
    files = {"onnx": tmp_path / "in.onnx", "ranges": tmp_path / "ranges.json", "sensitivity": path}
    assert run(quantize.STAGE, tmp_path / "quantized", config, **files)[1]["skipped"] == ["stem_conv"]


def test_a_weight_behind_a_transpose_counts_for_its_product(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) {
        v = Transpose(w)
        y = MatMul(x, v) }""",
        w=np.random.default_rng(0).standard_normal((8, 8)),
    )
    assert list(measured(model, tmp_path, {"x": images()})[0]["layers"]) == ["y"]


def test_fp8_is_measured_as_fp8(tmp_path: Path) -> None:
    model = residual_block(np.random.default_rng(0))
    tables = {}
    for precision in ("int8", "fp8"):
        (tmp_path / precision).mkdir()
        tables[precision] = measured(model, tmp_path / precision, {"x": images()}, precision=precision)[0]["layers"]
    # 3 bits of mantissa and a large range: worse than INT8 on numbers about 1 within a range of 3.
    assert tables["fp8"]["first_conv"]["sqnr_db"] < tables["int8"]["first_conv"]["sqnr_db"]


def test_only_so_many_samples_are_run(tmp_path: Path) -> None:
    model = residual_block(np.random.default_rng(0))
    names = []
    for number in range(6):
        names.append(tmp_path / f"{number}.npz")
        np.savez(names[-1], x=images(4))
    amax = {name: {"amax": value} for name, value in ranges_of(model).items()}
    (tmp_path / "ranges.json").write_text(json.dumps({"tensors": amax}))
    files = {"onnx": saved(model, tmp_path / "in.onnx"), "ranges": tmp_path / "ranges.json", "calibration": names}
    assert run(STAGE, tmp_path / "out", SensitivityConfig(samples=8), **files)[1]["samples"] == 8


def test_ranges_of_another_model_are_refused(tmp_path: Path) -> None:
    (tmp_path / "ranges.json").write_text(json.dumps({"tensors": {"x": {"amax": 1.0}}}))
    np.savez(tmp_path / "data.npz", x=images())
    files = {"ranges": tmp_path / "ranges.json", "calibration": tmp_path / "data.npz"}
    with pytest.raises(StageError, match="of another model"):
        run(STAGE, tmp_path, onnx=saved(residual_block(np.random.default_rng(0)), tmp_path / "in.onnx"), **files)
