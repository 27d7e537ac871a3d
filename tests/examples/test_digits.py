"""The digits that the package comes with: a network that works, and data that judge it fairly."""

from __future__ import annotations

import collections
import re
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

ROOT = Path(__file__).parents[2]
DATA = ROOT / "conf" / "data" / "digits"
FILES = ("digits.onnx", "digits.safetensors", "calibration.npz", "holdout.npz")


def test_the_network_names_98_of_100_held_out_digits() -> None:
    holdout = np.load(DATA / "holdout.npz")
    session = onnxruntime.InferenceSession(str(DATA / "digits.onnx"), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": holdout["images"]})
    assert (logits.argmax(axis=1) == holdout["labels"]).mean() >= 0.98


@pytest.mark.parametrize("name", FILES)
def test_every_file_is_well_under_a_megabyte(name: str) -> None:
    assert 1_000 < (DATA / name).stat().st_size < 1_000_000


def test_no_held_out_image_was_used_for_calibration() -> None:
    calibration, holdout = np.load(DATA / "calibration.npz")["images"], np.load(DATA / "holdout.npz")["images"]
    assert not {image.tobytes() for image in calibration} & {image.tobytes() for image in holdout}


def test_the_images_are_what_the_network_takes() -> None:
    for name, count in (("calibration.npz", 256), ("holdout.npz", 360)):
        images = np.load(DATA / name)["images"]
        assert images.shape == (count, 1, 8, 8)
        assert images.dtype == np.float32
        assert (images.min(), images.max()) == (0, 1)


def test_every_digit_is_held_out_in_proportion() -> None:
    labels = np.load(DATA / "holdout.npz")["labels"]
    assert labels.dtype == np.int64
    assert collections.Counter(labels.tolist()).keys() == set(range(10))
    assert min(np.bincount(labels)) >= 30


def test_the_onnx_file_tells_nothing_about_the_machine_that_made_it() -> None:
    content = (DATA / "digits.onnx").read_bytes()
    assert not re.search(rb"(/[A-Za-z0-9_.-]{2,}){2,}|[A-Z]:\\\\|\.py\b|pkg\.torch", content)


def test_the_onnx_file_still_has_what_surgery_cleans_up() -> None:
    model = onnx.load(str(DATA / "digits.onnx"))
    assert model.ir_version <= 10
    assert model.opset_import[0].version == 20
    assert sum(node.op_type == "BatchNormalization" for node in model.graph.node) == 6


@pytest.mark.torch
def test_the_weights_and_the_onnx_file_are_the_same_network(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("safetensors")
    monkeypatch.syspath_prepend(str(ROOT))
    from examples.digits.network import load

    images = np.load(DATA / "holdout.npz")["images"]
    session = onnxruntime.InferenceSession(str(DATA / "digits.onnx"), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = load(DATA / "digits.safetensors")(torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(session.run(None, {"images": images})[0], expected, rtol=1e-3, atol=1e-4)
