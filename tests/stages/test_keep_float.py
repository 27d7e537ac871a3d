"""keep_float: as few layers in float as let the gates hold, judged on calibration data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stages import quantize, sensitivity
from stages.allowed import NotAllowedError
from stages.keep_float import STAGE, KeepFloatConfig
from stages.quantization import place
from stages.stage import StageError
from tests.stages.rewriting import outputs, parsed, residual_block, run, saved, sqnr


def images(samples: int = 16) -> np.ndarray:
    return np.random.default_rng(1).standard_normal((samples, 4, 8, 8)).astype(np.float32)


class Found:
    """A model and its data, of which layers were found."""

    def __init__(self, directory: Path, model: onnx.ModelProto, ranges: dict[str, float], data: Any) -> None:
        self.directory, self.model, self.data = directory, model, data
        np.savez(directory / "data.npz", **data)
        text = json.dumps({"tensors": {name: {"amax": amax} for name, amax in ranges.items()}})
        (directory / "ranges.json").write_text(text)
        self.files = {"onnx": saved(model, directory / "in.onnx"), "ranges": directory / "ranges.json"}
        table = run(sensitivity.STAGE, directory / "table", calibration=directory / "data.npz", **self.files)[0]
        self.table = json.loads(table.read_text())
        self.inputs = {**self.files, "sensitivity": table, "calibration": directory / "data.npz"}

    def __call__(self, **config: Any) -> dict[str, Any]:
        self.layers, metrics = run(
            STAGE, self.directory / "found", KeepFloatConfig(**{"margin_db": 0, **config}), **self.inputs
        )
        assert json.loads(self.layers.read_text())["layers"] == metrics["layers"]
        return metrics

    def quantized(self) -> float:
        """The SQNR of what `quantize` makes of the layers that were found, on the same data."""
        path = run(
            quantize.STAGE,
            self.directory / "quantized",
            quantize.QuantizeConfig(skip="auto"),
            float_layers=self.layers,
            **self.files,
        )[0]
        return sqnr(outputs(self.model, self.data)[0], outputs(path, self.data)[0])


@pytest.fixture(scope="module")
def clipped(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """A residual block whose input lies far beyond its range: its first convolution is cut off."""
    model = residual_block(np.random.default_rng(0))
    data = {"x": images() * 20}
    directory = tmp_path_factory.mktemp("clipped")
    tensors = place(model).activations
    amax = {name: 3.0 if name == "x" else 200.0 for name in tensors}
    return Found(directory, model, amax, data)


def test_one_layer_that_cannot_be_quantized_stays_in_float_and_the_gate_holds(clipped: Found) -> None:
    found = clipped(min_sqnr_db=20.0)
    assert found["layers"] == ["stem_conv"]
    assert found["unreached"] == []
    assert [(each["layers"], bool(each["refused"])) for each in found["tries"]] == [(0, True), (1, False)]
    # What was tried is what `quantize` makes.
    assert clipped.quantized() == pytest.approx(found["tries"][1]["sqnr_db"], abs=0.01)


def test_a_gate_that_holds_anyway_keeps_nothing_in_float(clipped: Found) -> None:
    found = clipped(min_sqnr_db=-50.0)
    assert (found["layers"], len(found["tries"])) == ([], 1)


def test_the_ratio_is_to_be_exceeded_by_a_margin_where_that_can_be_had(clipped: Found) -> None:
    tries = clipped(min_sqnr_db=500.0)["tries"]
    one, best = tries[1]["sqnr_db"], max(each["sqnr_db"] for each in tries)
    assert clipped(min_sqnr_db=one - 0.5)["layers"] == ["stem_conv"]
    found = clipped(min_sqnr_db=one - 0.5, margin_db=1)
    assert len(found["layers"]) > 1
    found = clipped(min_sqnr_db=best - 0.5, margin_db=1)
    assert found["unreached"] == []
    assert clipped.quantized() == pytest.approx(best, abs=0.01)


def test_what_cannot_be_reached_says_the_best_that_was(clipped: Found) -> None:
    found = clipped(min_sqnr_db=500.0)
    best = max(each["sqnr_db"] for each in found["tries"])
    (told,) = found["unreached"]
    assert told == (
        f"skip=auto: sqnr_db {best:.6g} < 500, at best, with {len(found['layers'])} of 5 layers in float "
        "on calibration data"
    )
    assert clipped.quantized() == pytest.approx(best, abs=0.01)


def test_the_fewest_layers_are_found_between_two_doublings_and_tries_are_bounded(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    chain = "\n".join(f"a{n + 1} = MatMul(a{n}, w{n})" for n in range(12))
    text = f"""<ir_version: 10, opset_import: ["": 20]> g (float[n, 16] a0) => (float[n, 16] a12) {{ {chain} }}"""
    weights = {f"w{n}": np.linalg.qr(rng.standard_normal((16, 16)))[0] for n in range(12)}
    model, data = parsed(text, **weights), {"a0": rng.standard_normal((64, 16)).astype(np.float32)}
    found = Found(tmp_path, model, {f"a{n}": 4.0 if n % 4 else 60.0 for n in range(13)}, data)
    every = {each["layers"]: each["sqnr_db"] for each in found(min_sqnr_db=500.0)["tries"]}
    assert list(every) == [0, 1, 2, 4, 8, 11]
    between = (every[2] + every[4]) / 2
    result = found(min_sqnr_db=between)
    counts = {each["layers"]: not each["refused"] for each in result["tries"]}
    assert list(counts) == [0, 1, 2, 3, 4]
    assert len(result["layers"]) == min(count for count, holds in counts.items() if holds)
    few = found(min_sqnr_db=between, most_tries=4)
    assert len(few["tries"]) == 4
    assert len(few["layers"]) == 4
    assert not few["unreached"]


def test_without_labels_accuracy_may_fall_by_the_share_of_answers_that_moved(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[n, 16] x) => (float[n, 5] y) {
        a = MatMul(x, v)
        y = MatMul(a, w) }"""
    # All five answers are nearly the same, so that any error moves some.
    near = np.repeat(rng.standard_normal((16, 1)), 5, axis=1) + 0.01 * rng.standard_normal((16, 5))
    model, x = parsed(text, v=np.eye(16), w=near), rng.standard_normal((64, 16)).astype(np.float32)
    labels = outputs(model, {"x": x})[0].argmin(axis=1)  # the model is never right: it cannot get worse
    found = Found(tmp_path, model, {"x": 4.0, "a": 4.0}, {"x": x})
    np.savez(tmp_path / "data.npz", x=x, labels=labels)
    assert found(accuracy_drop=0.0, labels="labels")["layers"] == []
    tries = found(accuracy_drop=0.0)["tries"]
    assert tries[0]["refused"]
    assert all(each["accuracy_drop"] == 1 - each["top1_agreement"] for each in tries)


def test_a_gate_that_the_outputs_have_no_number_for_is_refused(tmp_path: Path) -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) {
        y = Conv(x, w) }"""
    model = parsed(text, w=np.random.default_rng(0).standard_normal((4, 4, 1, 1)))
    found = Found(tmp_path, model, {"x": 3.0}, {"x": images()})
    for gate in ("accuracy_drop", "min_top1_agreement"):
        with pytest.raises(StageError, match=f"cannot hold gates.{gate}: no output is a ranking"):
            found(**{gate: 0.5})


def test_a_search_without_a_gate_is_refused() -> None:
    with pytest.raises(NotAllowedError, match="min_sqnr_db"):
        KeepFloatConfig()


@pytest.mark.parametrize("skip", ["conv1", 3, [1], None])
def test_skip_is_patterns_or_auto(skip: Any) -> None:
    with pytest.raises(NotAllowedError, match="a list of patterns, or auto"):
        quantize.QuantizeConfig(skip=skip)


def test_quantize_does_not_guess_what_nobody_has_looked_for(clipped: Found, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="nobody has looked for the layers"):
        run(quantize.STAGE, tmp_path, quantize.QuantizeConfig(skip="auto"), **clipped.files)
    (tmp_path / "layers.json").write_text("[]")
    with pytest.raises(StageError, match="not the layers that stay in float"):
        config = quantize.QuantizeConfig(skip="auto")
        run(quantize.STAGE, tmp_path, config, float_layers=tmp_path / "layers.json", **clipped.files)
