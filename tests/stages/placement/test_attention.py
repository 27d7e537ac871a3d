"""Placement: the two products of attention, where they are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from stages import calibrate, histogram_file, quantize
from stages.quantization import place
from stages.stage import StageError
from tests.stages.placement.placed import built, graph, reads
from tests.stages.rewriting import run, saved

HEAD = "n{0} = MatMul(x, w{0})\n m{0} = Reshape(n{0}, heads)\n {0} = Transpose<perm={1}>(m{0})"
SCORES = {
    "scaled": "u = MatMul(q, k)\n s = Mul(u, scale)",
    "scaled before, masked after": "r = Mul(q, scale)\n t = MatMul(r, k)\n s = Where(mask, t, scale)",
    "with a position bias": "t = MatMul(q, k)\n u = Div(t, scale)\n s = Add(u, bias)",
}


def attention(scores: str) -> onnx.ModelProto:
    turned = {"q": [0, 2, 1, 3], "k": [0, 2, 3, 1], "v": [0, 2, 1, 3]}
    body = "\n".join(
        [
            *(HEAD.format(name, order) for name, order in turned.items()),
            SCORES[scores],
            "p = Softmax(s)\n o = MatMul(p, v)\n j = Transpose<perm=[0, 2, 1, 3]>(o)",
            "l = Reshape(j, flat)\n y = MatMul(l, wo)",
        ]
    )
    return graph(
        body,
        "4, 64, 128",
        **dict.fromkeys(("wq", "wk", "wv", "wo"), (128, 128)),
        heads=np.array([4, 64, 4, 32]),
        flat=np.array([4, 64, 128]),
        scale=np.float32(0.17),
        bias=(1, 4, 64, 64),
        mask=np.tri(64, dtype=bool),
    )


@pytest.mark.parametrize("scores", SCORES)
def test_both_products_read_both_inputs_quantized_where_asked(scores: str) -> None:
    left = "r" if "before" in scores else "q"
    products = [(left, 0), ("k", 1), ("p", 0), ("v", 1)]
    found = reads(attention(scores), "MatMul", attention="qk_pv")
    assert [read for read in found if read in products] == products
    assert not set(reads(attention(scores), "MatMul")) & set(products)


def test_asking_only_adds() -> None:
    model = attention("scaled")
    assert set(place(model).activations) < set(place(model, attention="qk_pv").activations)
    assert len(place(model, attention="qk_pv").quantized) == len(place(model).quantized) + 2


def test_a_product_that_is_skipped_stays_in_float() -> None:
    found = place(attention("scaled"), {"o"}, "qk_pv")
    assert "o" not in found.quantized
    assert not {"p", "v"} & set(found.activations)


def test_products_of_activations_elsewhere_stay_in_float() -> None:
    model = graph("a = MatMul(x, w)\n b = MatMul(a, x)\n y = Relu(b)", "8, 8", w=(8, 8))
    assert place(model, attention="qk_pv") == place(model)


@pytest.mark.parametrize(("precision", "kind"), [("int8", "int8"), ("fp8", "fp8_e4m3")])
def test_attention_becomes_one_kernel_that_reads_eight_bits(tmp_path: Path, precision: str, kind: str) -> None:
    operations = built(attention("scaled"), tmp_path, attention="qk_pv", precision=precision)
    fused = [each for each in operations if each.name.startswith("_gemm_mha")]
    assert [each.reads[:3] for each in fused] == [(kind, kind, kind)]


@pytest.mark.parametrize("asked", ["none", "qk_pv"])
def test_calibration_observes_them_only_where_asked(tmp_path: Path, asked: str) -> None:
    model = attention("scaled")
    np.savez(tmp_path / "data.npz", x=np.random.default_rng(0).standard_normal((4, 64, 128)).astype(np.float32))
    files = {"onnx": saved(model, tmp_path / "in.onnx"), "calibration": tmp_path / "data.npz"}
    path, _ = run(calibrate.STAGE, tmp_path / "out", calibrate.CalibrateConfig(attention=asked), **files)
    assert set(histogram_file.read(path).histograms) == set(place(model, attention=asked).activations)


def test_ranges_that_were_calibrated_without_them_are_refused_with_the_option(tmp_path: Path) -> None:
    model = attention("scaled")
    ranges = {"tensors": {name: {"amax": 3.0} for name in place(model).activations}}
    (tmp_path / "ranges.json").write_text(json.dumps(ranges))
    files = {"onnx": saved(model, tmp_path / "in.onnx"), "ranges": tmp_path / "ranges.json"}
    with pytest.raises(StageError, match="no range for q, k, p, v") as caught:
        run(quantize.STAGE, tmp_path, quantize.QuantizeConfig(attention="qk_pv"), **files)
    assert "steps.calibrate.config.attention" in caught.value.next_step
