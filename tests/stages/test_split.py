from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from stages import onnx_data, onnx_file, split
from stages.stage import Job, StageError
from tests.stages.stage_runs import classifier, model, run_stage, save


def split_into(out: Path, source: Path, **config: Any) -> dict[str, Any]:
    out.mkdir()
    return split.split(Job(split.SplitConfig(**config), {"onnx": [source]}, {}, out))


def parts(out: Path) -> tuple[bytes, bytes]:
    return (out / "structure.onnx").read_bytes(), (out / "weights.safetensors").read_bytes()


def values(proto: onnx.ModelProto) -> dict[str, Any]:
    return {tensor.name: onnx_data.array(tensor).tolist() for tensor in proto.graph.initializer}


def test_structure_and_weights_have_digests_of_their_own(tmp_path: Path) -> None:
    for name, noise in (("one", 0.0), ("two", 0.5)):
        metrics = split_into(tmp_path / name, classifier(tmp_path / f"{name}.onnx", noise=noise))
        assert metrics == {"weights": 2, "weight_bytes": (8 * 4 * 9 + 512 * 5) * 4, "kept": 0, "nodes": 6}
    (structure, weights), (other_structure, other_weights) = parts(tmp_path / "one"), parts(tmp_path / "two")
    assert structure == other_structure and weights != other_weights
    assert len(structure) < 2000


def test_joined_they_are_the_model_and_its_weights_stay_in_their_file(tmp_path: Path) -> None:
    source = classifier(tmp_path / "m.onnx")
    split_into(tmp_path / "parts", source)
    joined = split.joined([tmp_path / "parts" / "structure.onnx"], tmp_path / "parts" / "weights.safetensors")
    assert values(joined) == values(onnx_file.read(source))
    assert all(map(onnx_data.is_external, joined.graph.initializer))
    onnx_file.write(joined, tmp_path / "again.onnx")
    split_into(tmp_path / "again", tmp_path / "again.onnx")
    assert parts(tmp_path / "again") == parts(tmp_path / "parts")


def test_named_weights_are_taken_out_and_the_others_are_structure(tmp_path: Path) -> None:
    source = classifier(tmp_path / "m.onnx")
    metrics = split_into(tmp_path / "parts", source, mode="named", weights=["g*"])
    assert (metrics["weights"], metrics["kept"]) == (1, 1)
    joined = split.joined([tmp_path / "parts" / "structure.onnx"], tmp_path / "parts" / "weights.safetensors")
    assert values(joined) == values(onnx_file.read(source))
    with pytest.raises(
        StageError, match=r"refit\.weights: the model has no weight 'lora\*'; it has, among others: g, w"
    ):
        split_into(tmp_path / "none", source, mode="named", weights=["lora*"])


def test_a_structure_is_filled_with_positive_numbers_that_are_the_same_each_time(tmp_path: Path) -> None:
    split_into(tmp_path / "parts", classifier(tmp_path / "m.onnx", dtype=np.float16))
    paths = [tmp_path / "parts" / "structure.onnx"]
    (one, made_up), (other, _) = (split.filled(paths, tmp_path / name) for name in ("a", "b"))
    assert made_up == 2
    assert values(one) == values(other)
    for tensor in one.graph.initializer:
        found = onnx_data.array(tensor)
        assert found.dtype == np.float16 and found.min() >= 0.5 and found.max() <= 1


def test_a_whole_model_is_filled_with_nothing(tmp_path: Path) -> None:
    found, made_up = split.filled([classifier(tmp_path / "m.onnx")], tmp_path / "scratch")
    assert made_up == 0 and len(found.graph.initializer) == 2
    assert not (tmp_path / "scratch").exists()


def test_weights_of_another_model_are_refused_by_name(tmp_path: Path) -> None:
    split_into(tmp_path / "one", classifier(tmp_path / "one.onnx"))
    split_into(tmp_path / "two", classifier(tmp_path / "two.onnx", classes=6))
    with pytest.raises(StageError, match="structure and weights are of two models: g"):
        split.joined([tmp_path / "one" / "structure.onnx"], tmp_path / "two" / "weights.safetensors")


def test_a_model_without_weights_says_why_and_what_to_do(tmp_path: Path) -> None:
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    with pytest.raises(StageError, match="no weights that a plan could take later") as caught:
        split_into(tmp_path / "out", save(model([node], {"x": [4]}, {"y": [4]}), tmp_path / "m.onnx"))
    assert "refit=false" in caught.value.next_step


def test_large_values_that_are_no_weights_lie_beside_the_structure(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(onnx_file, "ONE_FILE_BYTES", 1 << 10)
    nodes = [
        helper.make_node("Gather", ["w", "indices"], ["g"], name="gather"),
        helper.make_node("Add", ["x", "g"], ["y"], name="add"),
    ]
    weights = {"w": np.ones((8, 1), np.float32), "indices": np.arange(1000) % 8}
    source = save(model(nodes, {"x": [1000, 1]}, {"y": [1000, 1]}, weights), tmp_path / "m.onnx")
    split_into(tmp_path / "parts", source)
    paths = [tmp_path / "parts" / "structure.onnx", tmp_path / "parts" / "structure.onnx.data"]
    joined = split.joined(paths, tmp_path / "parts" / "weights.safetensors")
    assert values(joined) == {name: value.tolist() for name, value in weights.items()}


def test_a_plan_is_built_from_a_structure_only_where_weights_come_later(tmp_path: Path) -> None:
    split_into(tmp_path / "parts", classifier(tmp_path / "m.onnx", batch=1))
    given = {"onnx": tmp_path / "parts" / "structure.onnx"}
    answer, _ = run_stage("build", tmp_path / "no", given)
    assert "the ONNX file has no values for 2 weights, and refit is none" in answer["what"]
    for name in ("one", "two"):
        answer, _ = run_stage("build", tmp_path / name, given, {"refit": "any", "strip_plan": True})
        assert answer["metrics"]["made_up_weights"] == 2
        assert not list((tmp_path / name).glob("*.safetensors"))
    assert (tmp_path / "one" / "model.plan").read_bytes() == (tmp_path / "two" / "model.plan").read_bytes()


def test_scales_of_a_quantized_model_are_weights() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="q"),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], name="dq"),
    ]
    weights = {"scale": np.array(0.5, np.float32), "zero": np.array(0, np.int8)}
    made, taken = split.structure.split(model(nodes, {"x": [4]}, {"y": [4]}, weights))
    assert [tensor.name for tensor in taken] == ["scale"]
    (zero,) = (tensor for tensor in made.graph.initializer if tensor.name == "zero")
    assert numpy_helper.to_array(zero) == 0
