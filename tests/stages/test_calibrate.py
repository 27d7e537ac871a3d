"""Calibration observes what gets Q/DQ, whatever the order of the batches, and refuses what has no range."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from stages import quantization
from stages.calibrate import STAGE, CalibrateConfig
from stages.stage import Job, StageError
from tests.stages.rewriting import DIGITS, parsed, residual_block, run, saved

RNG = np.random.default_rng(0)
DATA = RNG.standard_normal((24, 4, 8, 8)).astype(np.float32)


@pytest.fixture
def block(tmp_path: Path) -> Path:
    return saved(residual_block(np.random.default_rng(1)), tmp_path / "block.onnx")


def stored(path: Path, **arrays: np.ndarray) -> Path:
    np.savez(path, **arrays)
    return path


def ranges(block: Path, out: Path, files: list[Path], **config: object) -> dict:
    path, _ = run(STAGE, out, CalibrateConfig(**config), onnx=block, calibration=files)
    return json.loads(path.read_text())


def test_exactly_the_tensors_that_get_qdq_are_observed(block: Path, tmp_path: Path) -> None:
    found = ranges(block, tmp_path, [stored(tmp_path / "all.npz", x=DATA)])
    assert list(found["tensors"]) == sorted(quantization.place(onnx.load(str(block))).activations)
    assert set(found["tensors"]) == {"x", "stem", "first", "shortcut", "flat"}
    assert (found["algorithm"], found["samples"], found["batches"]) == ("mse", 24, 1)


def test_max_is_the_true_maximum_of_the_input(block: Path, tmp_path: Path) -> None:
    found = ranges(block, tmp_path, [stored(tmp_path / "all.npz", x=DATA)], algorithm="max")["tensors"]["x"]
    assert found["amax"] == found["max"] == float(np.abs(DATA).max())


@pytest.mark.parametrize("algorithm", ["mse", "percentile", "max"])
def test_the_order_of_the_batches_does_not_matter(block: Path, tmp_path: Path, algorithm: str) -> None:
    files = [stored(tmp_path / f"{i}.npz", x=DATA[i * 8 : i * 8 + 8] * (i + 1)) for i in range(3)]
    one = ranges(block, tmp_path / "one", files, algorithm=algorithm)
    assert one == ranges(block, tmp_path / "other", files[::-1], algorithm=algorithm)


def test_max_samples_and_batch_size_are_kept_to_and_progress_reaches_one(block: Path, tmp_path: Path) -> None:
    seen: list[float | None] = []
    job = Job(
        CalibrateConfig(batch_size=4, max_samples=10),
        {"onnx": [block], "calibration": [stored(tmp_path / "all.npz", x=DATA)]},
        {},
        tmp_path,
        lambda phase, fraction: seen.append(fraction),
    )
    metrics = STAGE.run(job)
    assert (metrics["samples"], metrics["batches"]) == (10, 3)
    assert seen == [0.4, 0.8, 1.0]


@pytest.mark.parametrize(("bad", "kind"), [(np.nan, "NaN"), (np.inf, "infinity")])
def test_a_value_that_is_not_finite_names_tensor_and_batch(block: Path, tmp_path: Path, bad: float, kind: str) -> None:
    broken = DATA.copy()
    broken[9, 0, 0, 0] = bad
    with pytest.raises(StageError, match=f"'x' holds {kind} in batch 2"):
        ranges(block, tmp_path, [stored(tmp_path / "all.npz", x=broken)], batch_size=4)


def test_a_tensor_of_zeros_is_named(block: Path, tmp_path: Path) -> None:
    file = stored(tmp_path / "zero.npz", x=np.zeros_like(DATA))
    _, metrics = run(STAGE, tmp_path, onnx=block, calibration=file)
    assert "x" in metrics["all_zero"]


def test_data_of_another_shape_are_refused(block: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"allowed: x: float32 \(batch, 4, 8, 8\)"):
        ranges(block, tmp_path, [stored(tmp_path / "bad.npz", x=DATA[:, :3])])


def test_a_model_without_weighted_operators_is_refused(tmp_path: Path) -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) { y = Relu(x) }""")
    file = stored(tmp_path / "x.npz", x=np.ones(3, np.float32))
    with pytest.raises(StageError, match="nothing to quantize"):
        ranges(saved(model, tmp_path / "m.onnx"), tmp_path, [file])


def test_a_model_that_cannot_run_on_the_batch_says_which(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x, float[m, 2] k) => (float[n, 2] y) {
        a = MatMul(x, w)
        y = Add(a, k) }""",
        w=np.ones((4, 2)),
    )
    file = stored(tmp_path / "x.npz", x=np.ones((6, 4), np.float32), k=np.ones((6, 2), np.float32))
    path = saved(model, tmp_path / "m.onnx")
    assert ranges(path, tmp_path, [file])["samples"] == 6
    wrong = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 2] y) {
        a = MatMul(x, w)
        b = Reshape(a, to)
        y = MatMul(b, v) }""",
        w=np.ones((4, 2)),
        v=np.ones((2, 2)),
        to=np.array([5, 2], np.int64),
    )
    with pytest.raises(StageError, match=r"batch 0 .*x \(6, 4\)"):
        ranges(saved(wrong, tmp_path / "w.onnx"), tmp_path, [stored(tmp_path / "y.npz", x=np.ones((6, 4), np.float32))])


def test_the_digits_have_seven_ranges(tmp_path: Path) -> None:
    path, _ = run(
        STAGE, tmp_path, CalibrateConfig(32), onnx=DIGITS / "digits.onnx", calibration=DIGITS / "calibration.npz"
    )
    found = json.loads(path.read_text())
    assert (found["samples"], found["batches"], len(found["tensors"])) == (256, 8, 7)
    assert all(0 < entry["amax"] <= entry["max"] for entry in found["tensors"].values())


def test_a_negative_and_an_unnamed_dimension_take_any_size(tmp_path: Path) -> None:
    """`?` twice is no promise that both are equal, and -1 is no size."""
    model = onnx.load(str(saved(residual_block(np.random.default_rng(1)), tmp_path / "block.onnx")))
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_value, dims[2].dim_param, dims[3].dim_param = -1, "?", "?"
    file = stored(tmp_path / "x.npz", x=np.ones((16, 4, 12, 48), np.float32))
    found = ranges(saved(model, tmp_path / "m.onnx"), tmp_path, [file], batch_size=5)
    assert (found["samples"], found["batches"]) == (16, 4)
