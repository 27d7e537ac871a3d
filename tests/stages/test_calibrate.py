"""Calibration observes what gets Q/DQ, whatever the order of the batches, and refuses what no range can hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from stages import histogram_file, quantization
from stages.calibrate import STAGE, CalibrateConfig
from stages.histogram_file import Observed
from stages.histograms import Histogram
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


def observed(block: Path, out: Path, files: list[Path], **config: object) -> Observed:
    path, _ = run(STAGE, out, data=config, onnx=block, calibration=files)
    return histogram_file.read(path)


def test_exactly_the_tensors_that_get_qdq_are_observed(block: Path, tmp_path: Path) -> None:
    found = observed(block, tmp_path, [stored(tmp_path / "all.npz", x=DATA)])
    assert list(found.histograms) == sorted(quantization.place(onnx.load(str(block))).activations)
    assert set(found.histograms) == {"x", "stem", "first", "shortcut", "flat"}
    assert (found.samples, found.batches) == (24, 1)


def test_what_is_seen_of_an_input_is_what_its_data_hold(block: Path, tmp_path: Path) -> None:
    found = observed(block, tmp_path, [stored(tmp_path / "all.npz", x=DATA)], batch_size=5).histograms["x"]
    expected = Histogram()
    expected.add(DATA)
    assert histogram_file.digest(found) == histogram_file.digest(expected)
    assert found.max == float(np.abs(DATA).max())


def test_the_order_of_the_batches_does_not_change_a_byte(block: Path, tmp_path: Path) -> None:
    files = [stored(tmp_path / f"{i}.npz", x=DATA[i * 8 : i * 8 + 8] * (i + 1)) for i in range(3)]
    one, other = (run(STAGE, tmp_path / str(i), onnx=block, calibration=files[::i])[0] for i in (1, -1))
    assert one.read_bytes() == other.read_bytes()


def test_max_samples_and_batch_size_are_kept_to_and_progress_reaches_one(block: Path, tmp_path: Path) -> None:
    seen: list[float | None] = []
    job = Job(
        CalibrateConfig(),
        {"onnx": [block], "calibration": [stored(tmp_path / "all.npz", x=DATA)]},
        {"calibration": {"batch_size": 4, "max_samples": 10}},
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
    with pytest.raises(StageError, match=f"'x' holds {kind} in batch 2") as caught:
        observed(block, tmp_path / "out", [stored(tmp_path / "all.npz", x=broken)], batch_size=4)
    assert "after it 'stem' holds" in caught.value.what
    assert list((tmp_path / "out").iterdir()) == []


def test_tensors_of_zeros_and_of_one_value_are_named(block: Path, tmp_path: Path) -> None:
    for value, key, other in ((0, "all_zero", "constant"), (-2, "constant", "all_zero")):
        file = stored(tmp_path / "same.npz", x=np.full_like(DATA, value))
        _, metrics = run(STAGE, tmp_path, onnx=block, calibration=file)
        assert "x" in metrics[key]
        assert "x" not in metrics[other]
        assert metrics["empty"] == []


def test_a_batch_file_that_ends_short_leaves_nothing_written(block: Path, tmp_path: Path) -> None:
    """The headers are whole, so that the fault shows only after other batches have run."""
    files = [tmp_path / f"{i}.npy" for i in range(2)]
    for file in files:
        np.save(file, DATA)
    files[1].write_bytes(files[1].read_bytes()[:-100])
    with pytest.raises(StageError, match=r"1\.npy: cannot be read"):
        observed(block, tmp_path / "out", files)
    assert list((tmp_path / "out").iterdir()) == []


PEAK = """
import resource, sys
from pathlib import Path
from stages.calibrate import STAGE, CalibrateConfig
from stages.stage import Job
model, folder, out = map(Path, sys.argv[1:4])
files = sorted(folder.iterdir())[: int(sys.argv[4])]
print(STAGE.run(Job(CalibrateConfig(), {"onnx": [model], "calibration": files}, {"calibration": {}}, out))["samples"])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_512_samples_take_no_more_memory_than_32(block: Path, tmp_path: Path) -> None:
    """A sample makes 4 tensors of 1 MiB: kept, those of all samples would take 2 GiB."""
    folder = tmp_path / "batches"
    folder.mkdir()
    values = np.random.default_rng(0).standard_normal((4, 4, 256, 256)).astype(np.float32)
    np.save(folder / "000.npy", values)
    for number in range(1, 128):
        (folder / f"{number:03}.npy").hardlink_to(folder / "000.npy")
    model = onnx.load(str(block))
    for dim, name in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], "hw", strict=True):
        dim.dim_param = name
    path, peaks = saved(model, tmp_path / "large.onnx"), []
    for files in (8, 128):
        command = [sys.executable, "-c", PEAK, path, folder, tmp_path, str(files)]
        samples, peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        assert int(samples) == 4 * files
        peaks.append(int(peak))
    assert peaks[1] <= 1.1 * peaks[0]


def test_data_of_another_shape_are_refused(block: Path, tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"allowed: x: float32 \(batch, 4, 8, 8\)"):
        observed(block, tmp_path, [stored(tmp_path / "bad.npz", x=DATA[:, :3])])


def test_a_model_without_weighted_operators_is_refused(tmp_path: Path) -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[n] y) { y = Relu(x) }""")
    file = stored(tmp_path / "x.npz", x=np.ones(3, np.float32))
    with pytest.raises(StageError, match="nothing to quantize"):
        observed(saved(model, tmp_path / "m.onnx"), tmp_path, [file])


def test_a_model_that_cannot_run_on_the_batch_says_which(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x, float[m, 2] k) => (float[n, 2] y) {
        a = MatMul(x, w)
        y = Add(a, k) }""",
        w=np.ones((4, 2)),
    )
    file = stored(tmp_path / "x.npz", x=np.ones((6, 4), np.float32), k=np.ones((6, 2), np.float32))
    path = saved(model, tmp_path / "m.onnx")
    assert observed(path, tmp_path, [file]).samples == 6
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
        observed(
            saved(wrong, tmp_path / "w.onnx"), tmp_path, [stored(tmp_path / "y.npz", x=np.ones((6, 4), np.float32))]
        )


def test_the_digits_have_seven_histograms(tmp_path: Path) -> None:
    path, _ = run(
        STAGE,
        tmp_path,
        data={"batch_size": 32},
        onnx=DIGITS / "digits.onnx",
        calibration=DIGITS / "calibration.npz",
    )
    found = histogram_file.read(path)
    assert (found.samples, found.batches, len(found.histograms)) == (256, 8, 7)
    assert all(each.max > 0 for each in found.histograms.values())
    assert path.stat().st_size < 60_000


def test_a_negative_and_an_unnamed_dimension_take_any_size(tmp_path: Path) -> None:
    """`?` twice is no promise that both are equal, and -1 is no size."""
    model = onnx.load(str(saved(residual_block(np.random.default_rng(1)), tmp_path / "block.onnx")))
    dims = model.graph.input[0].type.tensor_type.shape.dim
    dims[0].dim_value, dims[2].dim_param, dims[3].dim_param = -1, "?", "?"
    file = stored(tmp_path / "x.npz", x=np.ones((16, 4, 12, 48), np.float32))
    found = observed(saved(model, tmp_path / "m.onnx"), tmp_path, [file], batch_size=5)
    assert (found.samples, found.batches) == (16, 4)
