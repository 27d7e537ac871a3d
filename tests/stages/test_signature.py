"""The stage `signature`: what a model says about itself before anything is planned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from stages.signature import STAGE, SignatureConfig
from stages.stage import Job, StageError

DIGITS = Path(__file__).parents[2] / "conf" / "data" / "digits" / "digits.onnx"


def read(path: Path, out: Path) -> dict[str, Any]:
    out.mkdir()
    STAGE.run(Job(SignatureConfig(), {"onnx": [path]}, {}, out))
    face: dict[str, Any] = json.loads((out / "signature.json").read_text())
    return face


def save(path: Path, x: onnx.ValueInfoProto, initializers: list[TensorProto] | None = None, **changes: Any) -> Path:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    inputs = [x, *changes.get("inputs", [])]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "graph", inputs, [y], initializers or [])
    imports = changes.get("opset_imports", [helper.make_opsetid("", 20)])
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=10), str(path))
    return path


def x_of(dtype: int = TensorProto.FLOAT, shape: Any = (4,)) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info("x", dtype, shape)


def test_the_digits_network_shows_its_face(tmp_path: Path) -> None:
    face = read(DIGITS, tmp_path / "out")
    assert face["inputs"] == [{"name": "images", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
    assert face["outputs"] == [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}]
    assert (face["opset"], face["ir_version"], face["external_data"]) == ({"": 20}, 10, [])
    assert face["nodes"] == len(onnx.load(str(DIGITS)).graph.node)
    assert face["producer"].startswith("pytorch 2.")


@pytest.mark.parametrize(
    ("dtype", "name"),
    [
        (TensorProto.FLOAT, "float32"),
        (TensorProto.BFLOAT16, "bfloat16"),
        (TensorProto.INT64, "int64"),
        (TensorProto.BOOL, "bool"),
        (TensorProto.FLOAT8E4M3FN, "float8_e4m3fn"),
        (TensorProto.STRING, "string"),
    ],
)
def test_dtypes_are_in_numpys_words(dtype: int, name: str, tmp_path: Path) -> None:
    assert read(save(tmp_path / "net.onnx", x_of(dtype)), tmp_path / "out")["inputs"][0]["dtype"] == name


@pytest.mark.parametrize(
    ("shape", "shown"),
    [((), []), (("n", None, 3), ["n", None, 3]), ((-1, 0), [None, 0]), (None, None)],
)
def test_a_shape_says_what_is_known_and_null_for_the_rest(shape: Any, shown: Any, tmp_path: Path) -> None:
    assert read(save(tmp_path / "net.onnx", x_of(shape=shape)), tmp_path / "out")["inputs"][0]["shape"] == shown


def test_initializers_that_are_listed_as_inputs_are_not_inputs(tmp_path: Path) -> None:
    w = helper.make_tensor_value_info("w", TensorProto.FLOAT, [4])
    weights = [numpy_helper.from_array(np.ones(4, np.float32), "w")]
    face = read(save(tmp_path / "net.onnx", x_of(), weights, inputs=[w]), tmp_path / "out")
    assert [value["name"] for value in face["inputs"]] == ["x"]


def test_every_domain_has_its_opset_and_onnx_own_is_the_empty_one(tmp_path: Path) -> None:
    imports = [helper.make_opsetid("ai.onnx", 17), helper.make_opsetid("com.microsoft", 1)]
    face = read(save(tmp_path / "net.onnx", x_of(), opset_imports=imports), tmp_path / "out")
    assert face["opset"] == {"": 17, "com.microsoft": 1}


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=location)
    return tensor


def test_external_files_are_listed_without_being_read(tmp_path: Path) -> None:
    face = read(save(tmp_path / "net.onnx", x_of(), [external("not-there.bin")]), tmp_path / "out")
    assert face["external_data"] == ["not-there.bin"]


def test_external_data_outside_of_the_directory_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", x_of(), [external("../w.bin")])
    with pytest.raises(StageError, match=r"'w': its external data \.\./w\.bin leaves the model's directory"):
        read(path, tmp_path / "out")


def test_an_input_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    x = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, [4])
    with pytest.raises(StageError, match="'x' is sequence: only tensors"):
        read(save(tmp_path / "net.onnx", x), tmp_path / "out")


def test_an_unknown_element_type_is_refused(tmp_path: Path) -> None:
    x = x_of()
    x.type.tensor_type.elem_type = 99
    with pytest.raises(StageError, match="'x' has the element type 99"):
        read(save(tmp_path / "net.onnx", x), tmp_path / "out")


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    read(DIGITS, tmp_path / "one")
    read(DIGITS, tmp_path / "two")
    assert (tmp_path / "one" / "signature.json").read_bytes() == (tmp_path / "two" / "signature.json").read_bytes()


def test_a_negative_and_a_question_mark_are_no_size_and_no_name(tmp_path: Path) -> None:
    face = read(save(tmp_path / "m.onnx", x_of(shape=(-1, 3, "?", "?", None, "n"))), tmp_path / "out")
    assert face["inputs"][0]["shape"] == [None, 3, None, None, None, "n"]


def node(op: str, inputs: list[str], output: str, **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(op, inputs, [output], name=attributes.pop("name", output), **attributes)


def tensor(name: str, dtype: Any = np.float32) -> TensorProto:
    return numpy_helper.from_array(np.ones((4, 4), dtype), name)


@pytest.mark.parametrize(
    ("nodes", "weights", "products"),
    [
        ([node("MatMul", ["x", "w"], "y", name="mm")], [tensor("w")], ["mm (MatMul)"]),
        ([node("Gemm", ["x", "w"], "y", name="")], [tensor("w")], ["y (Gemm)"]),
        ([node("Relu", ["x"], "h"), node("MatMul", ["h", "w"], "y")], [tensor("w")], ["y (MatMul)"]),
        (
            [node("DequantizeLinear", ["q", "w"], "d"), node("MatMul", ["x", "d"], "y")],
            [tensor("w"), tensor("q", np.int8)],
            ["y (MatMul)"],
        ),
        # float16, another domain, folded, of a shape, read by nobody, read for its shape alone, a convolution
        ([node("MatMul", ["x", "w"], "y")], [tensor("w", np.float16)], []),
        ([node("MatMul", ["x", "w"], "y", domain="acme")], [tensor("w")], []),
        ([node("MatMul", ["w", "w"], "m"), node("Add", ["x", "m"], "y")], [tensor("w")], []),
        ([node("Shape", ["x"], "s"), node("MatMul", ["s", "w"], "m"), node("Add", ["x", "m"], "y")], [tensor("w")], []),
        ([node("MatMul", ["x", "w"], "m"), node("Relu", ["x"], "y")], [tensor("w")], []),
        (
            [node("MatMul", ["x", "w"], "m"), node("Shape", ["m"], "s"), node("Reshape", ["x", "s"], "y")],
            [tensor("w")],
            [],
        ),
        ([node("Conv", ["x", "w"], "y")], [tensor("w")], []),
    ],
)
def test_the_float32_products_that_no_folding_removes_are_named(
    nodes: list[onnx.NodeProto], weights: list[TensorProto], products: list[str], tmp_path: Path
) -> None:
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "graph", [x_of()], [y], weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]), str(tmp_path / "net.onnx"))
    assert read(tmp_path / "net.onnx", tmp_path / "out")["fp32_products"] == products
