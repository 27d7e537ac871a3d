"""Ranges follow from histograms without another pass, or from the user's own file, and fit the model or are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from stages import calibrate, histogram_file, quantize, thresholds
from stages.ranges import STAGE, RangesConfig
from stages.stage import Metrics, StageError
from tests.stages.rewriting import outputs, parsed, residual_block, run, saved, sqnr

TENSORS = {"x", "stem", "first", "shortcut", "flat"}


def data(samples: int = 64) -> np.ndarray:
    values = np.random.default_rng(0).standard_normal((samples, 4, 8, 8)).astype(np.float32)
    values[0, 0, 0, 0] = 60  # an outlier, so that the algorithms disagree
    return values


@pytest.fixture
def given(tmp_path: Path) -> dict[str, Path]:
    """A model, its batches, and what calibration saw."""
    model = saved(residual_block(np.random.default_rng(1)), tmp_path / "block.onnx")
    batches = stored(tmp_path / "data.npz", x=data(), labels=np.arange(64) % 5)
    inputs = {"onnx": model, "calibration": batches}
    histograms, _ = run(calibrate.STAGE, tmp_path / "calibrate", data={"batch_size": 16}, **inputs)
    return {"onnx": model, "histograms": histograms, "calibration": batches}


def stored(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def found(given: dict[str, Path], out: Path, batch_size: int = 16, **config: Any) -> tuple[dict[str, Any], Metrics]:
    path, metrics = run(STAGE, out, RangesConfig(**config), {"batch_size": batch_size}, **given)
    return json.loads(path.read_text()), metrics


@pytest.mark.parametrize("algorithm", thresholds.ALGORITHMS)
def test_an_algorithm_by_name_needs_the_histograms_only(given: dict[str, Path], tmp_path: Path, algorithm: str) -> None:
    del given["calibration"]
    document, metrics = found(given, tmp_path / "out", algorithm=algorithm, percentile=99.9)
    seen = histogram_file.read(given["histograms"])
    name = "percentile 99.9" if algorithm == "percentile" else algorithm
    assert set(document["tensors"]) == TENSORS
    for tensor, entry in document["tensors"].items():
        histogram = seen.histograms[tensor]
        assert entry == {
            "amax": thresholds.amax(histogram, algorithm, 99.9),
            "max": histogram.max,
            "algorithm": name,
            "samples": 64,
            "histogram": histogram_file.digest(histogram),
        }
    assert (metrics["algorithm"], metrics["trial"], metrics["tensors"]) == (name, None, 5)


def test_auto_keeps_the_candidate_that_is_best_at_the_outputs_when_it_is_quantized_for_real(
    given: dict[str, Path], tmp_path: Path
) -> None:
    document, _ = found(given, tmp_path / "auto", trial_samples=64)
    tried = document["trial"]["scores"]
    scores = {name: score["sqnr_db"] for name, score in tried.items()}
    assert set(scores) == {"mse", "percentile 99.99", "percentile 99.9", "max", "entropy"}
    real = {}
    for name in scores:
        algorithm, _, percentile = name.partition(" ")
        config = RangesConfig(algorithm=algorithm, percentile=float(percentile or 50))
        ranges, _ = run(STAGE, tmp_path / name, config, onnx=given["onnx"], histograms=given["histograms"])
        path, _ = run(quantize.STAGE, tmp_path / name, onnx=given["onnx"], ranges=ranges)
        real[name] = sqnr(outputs(given["onnx"], {"x": data()})[0], outputs(path, {"x": data()})[0])
    finished = {name for name, score in tried.items() if score["samples"] == 64}
    assert {name: scores[name] for name in finished} == pytest.approx({name: real[name] for name in finished}, abs=0.02)
    assert len(finished) > 1
    assert document["algorithm"] == max(real, key=lambda name: round(real[name], 2))
    assert max(real.values()) > min(real.values()) + 1  # there was something to choose


def test_auto_says_what_it_was_tried_on(given: dict[str, Path], tmp_path: Path) -> None:
    document, metrics = found(given, tmp_path / "out", trial_samples=32)
    tried = document["trial"]
    assert (tried["data"], tried["batches"], tried["samples"], tried["by"]) == ("calibration", 2, 32, "sqnr_db")
    assert metrics["trial"] == tried
    assert (document["asked"], document["samples"], document["batches"]) == ("auto", 64, 4)


def test_auto_is_the_same_each_time(given: dict[str, Path], tmp_path: Path) -> None:
    paths = [run(STAGE, tmp_path / name, data={"batch_size": 16}, **given)[0] for name in "ab"]
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_auto_tries_the_users_own_percentile_too(given: dict[str, Path], tmp_path: Path) -> None:
    document, _ = found(given, tmp_path / "out", percentile=99.5)
    assert {"percentile 99.5", "percentile 99.99", "percentile 99.9"} <= set(document["trial"]["scores"])


def test_with_labels_accuracy_decides_before_the_signal_to_noise_ratio(given: dict[str, Path], tmp_path: Path) -> None:
    x = data()
    held = stored(tmp_path / "held.npz", x=x, labels=outputs(given["onnx"], {"x": x})[0].argmax(axis=1))
    document, _ = found({**given, "holdout": held}, tmp_path / "out", labels="labels", trial_samples=999)
    tried = document["trial"]
    assert (tried["data"], tried["samples"], tried["by"]) == ("holdout", 64, "accuracy, then sqnr_db")
    best = max(score["accuracy"] for score in tried["scores"].values())
    assert tried["scores"][document["algorithm"]]["accuracy"] == best > 0.5


def test_labels_without_held_out_data_and_auto_without_batches_are_refused(
    given: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(StageError, match="labels is 'labels', and there is no held-out data"):
        found(given, tmp_path, labels="labels")
    del given["calibration"]
    with pytest.raises(StageError, match="auto has no batches") as caught:
        found(given, tmp_path)
    assert "algorithm=mse" in caught.value.next_step


def test_without_histograms_and_ranges_there_is_an_error(given: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StageError, match="neither histograms nor ranges") as caught:
        found({"onnx": given["onnx"]}, tmp_path)
    assert "model.ranges" in caught.value.next_step


def test_histograms_of_another_model_are_refused(given: dict[str, Path], tmp_path: Path) -> None:
    other = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] other) => (float[n, 4] y) {
        y = MatMul(other, w) }""",
        w=np.eye(4),
    )
    with pytest.raises(StageError, match="no range for other"):
        found({**given, "onnx": saved(other, tmp_path / "other.onnx")}, tmp_path)


def test_a_candidate_whose_output_is_not_finite_is_out_and_the_report_says_why(tmp_path: Path) -> None:
    """Of 1 / x the smallest x counts, and a range so wide that it rounds to 0 divides by 0."""
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {
        p = MatMul(x, w)
        y = Reciprocal(p) }""",
        w=np.eye(4),
    )
    values = np.full((4000, 4), 1.0, np.float32)
    values[0] = 1000
    inputs = {
        "onnx": saved(model, tmp_path / "m.onnx"),
        "calibration": stored(tmp_path / "d.npz", x=values),
    }
    inputs["histograms"], _ = run(calibrate.STAGE, tmp_path, **inputs)
    document, _ = found(inputs, tmp_path / "out", batch_size=500)
    scores = document["trial"]["scores"]
    assert "not finite" in scores["max"]["refused"]
    assert scores["max"]["sqnr_db"] is None
    assert scores[document["algorithm"]]["refused"] is None
    del inputs["calibration"]
    inputs["calibration"] = stored(tmp_path / "zero.npz", x=np.zeros((8, 4), np.float32))
    with pytest.raises(StageError, match="no candidate can be judged"):
        found(inputs, tmp_path / "none")


# The user's own


def test_reviewed_ranges_come_back_as_they_are(given: dict[str, Path], tmp_path: Path) -> None:
    first, _ = run(STAGE, tmp_path / "first", RangesConfig(algorithm="mse"), **given)
    document = json.loads(first.read_text())
    document["tensors"]["stem"] = {"amax": 1.25}
    own = tmp_path / "own.json"
    own.write_text(json.dumps(document))
    again, metrics = found({"onnx": given["onnx"], "given": own}, tmp_path / "again")
    assert again["tensors"]["stem"] == {
        "amax": 1.25,
        "max": None,
        "algorithm": "given",
        "samples": None,
        "histogram": None,
    }
    del again["tensors"]["stem"], document["tensors"]["stem"]
    assert again["tensors"] == document["tensors"]
    assert (metrics["algorithm"], metrics["format"]) == ("given", "ranges.json")


def test_given_ranges_take_the_place_of_histograms(given: dict[str, Path], tmp_path: Path) -> None:
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"tensors": {name: {"amax": 3} for name in TENSORS}}))
    document, _ = found({**given, "given": own}, tmp_path / "out")
    assert {entry["amax"] for entry in document["tensors"].values()} == {3}


def test_a_calibration_cache_goes_out_and_comes_in_with_the_same_scales(given: dict[str, Path], tmp_path: Path) -> None:
    first, _ = run(STAGE, tmp_path / "first", RangesConfig(algorithm="mse", cache_version=8601), **given)
    cache = tmp_path / "first/calibration.cache"
    assert cache.read_text().startswith("TRT-8601-EntropyCalibration2\n")
    second, metrics = run(STAGE, tmp_path / "second", onnx=given["onnx"], given=cache)
    assert (metrics["format"], metrics["unused"]) == ("calibration cache", 0)
    quantized = [
        run(quantize.STAGE, tmp_path / f"q{index}", onnx=given["onnx"], ranges=path)[0].read_bytes()
        for index, path in enumerate((first, second))
    ]
    assert quantized[0] == quantized[1]


def cache_of(names: set[str], path: Path) -> Path:
    path.write_text("TRT-100300-EntropyCalibration2\n" + "".join(f"{name}: 3c010a14\n" for name in sorted(names)))
    return path


def test_a_cache_may_name_tensors_that_are_fused_away_but_must_name_all_that_carry_qdq(
    given: dict[str, Path], tmp_path: Path
) -> None:
    more = cache_of({*TENSORS, "(Unnamed Layer* 3) [Convolution]_output"}, tmp_path / "more")
    document, metrics = found({"onnx": given["onnx"], "given": more}, tmp_path / "out")
    assert set(document["tensors"]) == TENSORS
    assert metrics["unused"] == 1
    less = cache_of(TENSORS - {"stem"}, tmp_path / "less")
    with pytest.raises(StageError, match="no range for stem"):
        found({"onnx": given["onnx"], "given": less}, tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda tensors: tensors.pop("first"), "no range for first"),
        (lambda tensors: tensors.update(elsewhere={"amax": 1}), "no tensor for the range of elsewhere"),
    ],
)
def test_a_file_whose_tensors_are_not_the_graphs_is_refused_in_one_line(
    given: dict[str, Path], tmp_path: Path, change: Any, says: str
) -> None:
    tensors: dict[str, Any] = {name: {"amax": 1} for name in TENSORS}
    change(tensors)
    own = tmp_path / "own.json"
    own.write_text(json.dumps({"tensors": tensors}))
    with pytest.raises(StageError, match=says) as caught:
        found({"onnx": given["onnx"], "given": own}, tmp_path / "out")
    assert "\n" not in caught.value.what
    assert "model.ranges" in caught.value.next_step
    assert not (tmp_path / "out/ranges.json").exists()


def test_a_model_that_has_qdq_or_nothing_to_quantize_is_refused(given: dict[str, Path], tmp_path: Path) -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) { y = Relu(x) }""")
    with pytest.raises(StageError, match="nothing to quantize"):
        found({**given, "onnx": saved(model, tmp_path / "m.onnx")}, tmp_path)
    ranges, _ = run(STAGE, tmp_path / "r", RangesConfig(algorithm="max"), **given)
    done, _ = run(quantize.STAGE, tmp_path / "q", onnx=given["onnx"], ranges=ranges)
    with pytest.raises(StageError, match="already"):
        found({**given, "onnx": done}, tmp_path)


def test_a_float16_model_is_tried_with_float16_scales(tmp_path: Path) -> None:
    block = residual_block(np.random.default_rng(1))
    for tensor in block.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    for value in (*block.graph.input, *block.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    inputs = {
        "onnx": saved(block, tmp_path / "m.onnx"),
        "calibration": stored(tmp_path / "d.npz", x=np.clip(data(), -5, 5).astype(np.float16)),
    }
    inputs["histograms"], _ = run(calibrate.STAGE, tmp_path, data={"batch_size": 16}, **inputs)
    document, _ = found(inputs, tmp_path / "out")
    assert document["trial"]["scores"][document["algorithm"]]["sqnr_db"] > 20
