"""Weights in INT8, INT4 and NVFP4: smaller plans, and the model still computes what it did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from stages import cast, plan_graph, quantize_weights, surgery
from stages.allowed import NotAllowedError
from stages.quantize_weights import STAGE, QuantizeWeightsConfig
from stages.stage import StageError
from tests.stages.rewriting import DIGITS, ops, outputs, parsed, plan_bytes, residual_block, rng, run, saved, sqnr

X = np.random.default_rng(1).standard_normal((4, 256)).astype(np.float32)


def perceptron(**others: np.ndarray) -> onnx.ModelProto:
    """MatMul, Gemm with its weight transposed, and MatMul of a Transpose: K = 256 in all."""
    random = rng()
    return parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 256] x) => (float[n, 8] y) {
            first = MatMul(x, w0)
            a = Relu(first)
            second = Gemm<transB=1>(a, w1, b1)
            b = Relu(second)
            wt = Transpose<perm=[1, 0]>(w2)
            y = MatMul(b, wt) }""",
        **{
            "w0": random.standard_normal((256, 256)) / 16,
            "w1": random.standard_normal((256, 256)) / 16,
            "w2": random.standard_normal((8, 256)) / 16,
            "b1": random.standard_normal(256),
            **others,
        },
    )


def coded(model: onnx.ModelProto, tmp_path: Path, **config: Any) -> tuple[Path, dict[str, Any]]:
    given = QuantizeWeightsConfig(**config)
    path, metrics = run(STAGE, tmp_path / "out", given, onnx=saved(model, tmp_path / "in.onnx"))
    onnx.checker.check_model(str(path), full_check=True)
    return path, metrics


def types(path: Path) -> set[str]:
    return {TensorProto.DataType.Name(t.data_type) for t in onnx.load(str(path)).graph.initializer}


def computed(path: Path, x: np.ndarray) -> np.ndarray:
    from onnx.reference import ReferenceEvaluator

    return np.asarray(ReferenceEvaluator(onnx.load(str(path))).run(None, {"x": x})[0])


@pytest.mark.parametrize(
    ("config", "least", "share"),
    [
        ({"precision": "int8"}, 38, 0.26),
        ({"precision": "int8", "block_size": 32}, 40, 0.29),
        ({"precision": "int4"}, 15, 0.14),
        ({"precision": "int4", "block_size": 32}, 17, 0.16),
        ({"precision": "nvfp4"}, 17, 0.15),
    ],
)
def test_the_model_computes_what_it_did_with_a_fraction_of_the_bytes(
    config: dict[str, Any], least: float, share: float, tmp_path: Path
) -> None:
    model = perceptron()
    path, metrics = coded(model, tmp_path, **config)
    assert metrics["quantized"] == ["first", "second", "y"]
    assert metrics["in_float"] == {}
    assert metrics["weight_bytes"] / metrics["weight_bytes_before"] < share
    assert path.stat().st_size < (tmp_path / "in.onnx").stat().st_size * (share + 0.03)
    assert "QuantizeLinear" not in ops(path)
    assert sqnr(outputs(model, {"x": X})[0], computed(path, X)) > least


TYPES = {"int8": "int8", "int4": "int4", "nvfp4": "fp4_e2m1"}
"""What a plan calls each type."""


@pytest.fixture(scope="module")
def low(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int]:
    """A model with 2 MiB of weights cast to float16, and the size of its plan."""
    wide = {"w0": rng().standard_normal((256, 2048)) / 16, "w1": rng().standard_normal((256, 2048)) / 45}
    model, folder = perceptron(**wide), tmp_path_factory.mktemp("low")
    path, _ = run(cast.STAGE, folder, onnx=saved(model, folder / "in.onnx"))
    return path, plan_bytes(path, "SM120")


@pytest.mark.parametrize(
    ("precision", "capability", "share"),
    [("int8", "SM120", 0.7), ("int4", "SM120", 0.55), ("int4", "SM89", 0.55), ("nvfp4", "SM120", 0.55)],
)
def test_behind_a_cast_to_float16_it_builds_into_a_smaller_plan(
    precision: str, capability: str, share: float, low: tuple[Path, int], tmp_path: Path
) -> None:
    path, metrics = run(STAGE, tmp_path, QuantizeWeightsConfig(precision), onnx=low[0])
    assert "FLOAT" not in types(path) or precision == "nvfp4"
    assert metrics["quantized"] == ["first", "second", "y"]
    plan = tmp_path / "model.plan"
    assert plan_bytes(path, capability, plan) < share * low[1]
    readers = [operation for operation in plan_graph.read(plan)[0].operations if TYPES[precision] in operation.reads]
    assert len(readers) == 3
    assert all(operation.is_weighted for operation in readers) == (precision != "nvfp4")


def test_convolutions_are_stored_only_if_asked_and_only_in_int8(tmp_path: Path) -> None:
    model = residual_block(rng())
    _, metrics = coded(model, tmp_path)
    assert metrics["quantized"] == ["y"]
    assert metrics["in_float"] == dict.fromkeys(["stem_conv", "first_conv", "second"], "a convolution")
    path, metrics = coded(model, tmp_path, convolutions=True)
    assert metrics["quantized"] == ["first_conv", "second", "stem_conv", "y"]
    x = np.random.default_rng(1).standard_normal((2, 4, 8, 8)).astype(np.float32)
    assert sqnr(outputs(model, {"x": x})[0], outputs(path, {"x": x})[0]) > 30
    assert plan_bytes(path, "SM89") > 0
    _, metrics = coded(model, tmp_path, precision="int4", convolutions=True)
    assert metrics["in_float"]["first_conv"] == "no blocks in a weight [4, 4, 3, 3] of Conv"


def test_a_channel_that_is_no_whole_number_of_blocks_stays_in_float(tmp_path: Path) -> None:
    """TensorRT would take 300 weights with 5 scales for blocks of 60."""
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 300] x) => (float[n, 8] y) {
        a = MatMul(x, w)
        y = MatMul(a, v) }""",
        w=rng().standard_normal((300, 256)),
        v=rng().standard_normal((256, 8)),
    )
    _, metrics = coded(model, tmp_path, precision="int4", block_size=64)
    assert metrics["in_float"] == {"a": "300 weights of a channel are no whole blocks of 64"}
    assert metrics["quantized"] == ["y"]


def test_a_short_channel_is_one_block(tmp_path: Path) -> None:
    model = residual_block(rng())
    path, _ = coded(model, tmp_path, precision="int4")
    found = {t.name: list(t.dims) for t in onnx.load(str(path)).graph.initializer}
    assert found["wg_scale"] == [5, 1]
    assert plan_bytes(path, "SM89") > 0


def test_a_weight_that_something_else_reads_too_stays_for_it(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (int64[n] ids) => (float[n, 300] y) {
        x = Gather(table, ids)
        t = Transpose<perm=[1, 0]>(head)
        y = MatMul(x, t)
        }""",
        table=rng().standard_normal((300, 256)),
        head=rng().standard_normal((300, 256)),
    )
    model.graph.node[1].input[0] = "table"
    model.graph.initializer.pop()
    path, metrics = coded(model, tmp_path)
    gather = next(node for node in onnx.load(str(path)).graph.node if node.op_type == "Gather")
    assert gather.input[0] == "table"
    assert metrics["quantized"] == ["y"]


def test_only_and_skip_choose_by_name(tmp_path: Path) -> None:
    assert coded(perceptron(), tmp_path, skip=["y"])[1]["quantized"] == ["first", "second"]
    assert coded(perceptron(), tmp_path, only=["first", "y"], skip=["y"])[1]["quantized"] == ["first"]
    with pytest.raises(StageError, match="only: no node is called 'nonesuch'"):
        coded(perceptron(), tmp_path, only=["nonesuch"])
    with pytest.raises(StageError, match="only and skip leave no weight"):
        coded(perceptron(), tmp_path, skip=["*"])


@pytest.mark.parametrize("precision", ["int4", "nvfp4"])
def test_a_model_without_a_weight_that_can_be_is_refused(precision: str, tmp_path: Path) -> None:
    model = residual_block(rng())
    node = next(node for node in model.graph.node if node.op_type == "Gemm")
    node.name = "gemm"
    with pytest.raises(StageError, match=f"no weight can be {precision}: a convolution") as caught:
        coded(model, tmp_path, precision=precision, skip=["gemm"])
    assert "int8" in caught.value.next_step


def test_a_quantized_model_is_refused(tmp_path: Path) -> None:
    once, _ = coded(perceptron(), tmp_path)
    with pytest.raises(StageError, match="DequantizeLinear nodes already"):
        run(STAGE, tmp_path / "twice", onnx=once)


def test_a_clip_search_with_data_does_better_on_them_than_without(tmp_path: Path) -> None:
    model, random = perceptron(), rng()
    loud = random.standard_normal((64, 256)).astype(np.float32)
    loud[:, :32] *= 30  # some inputs matter more than others, as in a transformer
    np.savez(tmp_path / "x.npz", x=loud)
    reference = outputs(model, {"x": loud})[0]
    scores = {}
    for name, search, data in (("plain", False, {}), ("seen", True, {"calibration": tmp_path / "x.npz"})):
        config = QuantizeWeightsConfig("int4", only=["first"], clip_search=search)
        path, metrics = run(STAGE, tmp_path / name, config, onnx=saved(model, tmp_path / "in.onnx"), **data)
        assert metrics["inputs_seen"] == bool(data)
        scores[name] = sqnr(reference, outputs(path, {"x": loud})[0])
    assert scores["seen"] > scores["plain"] + 0.5


def test_block_sizes_that_there_are_not_are_refused_before_anything_runs() -> None:
    with pytest.raises(NotAllowedError, match="block_size: got 48; allowed: 32, 64, 128, or null, for int4"):
        QuantizeWeightsConfig("int4", block_size=48)
    with pytest.raises(NotAllowedError, match="allowed: 16, or null, for nvfp4"):
        QuantizeWeightsConfig("nvfp4", block_size=32)
    assert quantize_weights.precisions(QuantizeWeightsConfig("nvfp4")) == ("nvfp4",)


def test_the_digits_decide_the_same_with_weights_in_int8(tmp_path: Path) -> None:
    clean, _ = run(surgery.STAGE, tmp_path / "surgery", onnx=DIGITS / "digits.onnx")
    path, _ = run(STAGE, tmp_path, QuantizeWeightsConfig(convolutions=True), onnx=clean)
    images = np.load(DIGITS / "holdout.npz")["images"]
    before, after = outputs(DIGITS / "digits.onnx", {"images": images})[0], outputs(path, {"images": images})[0]
    assert (before.argmax(axis=1) == after.argmax(axis=1)).mean() > 0.995
