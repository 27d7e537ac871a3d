"""What executes a model here, of models whose weights lie in a data file."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from stages import onnx_file
from stages.profiles import profiles_of
from stages.runtimes import ONNX_RUNTIME, REFERENCE_EVALUATOR, open_onnx, profile_index
from stages.stage import StageError

WEIGHT = np.random.default_rng(0).standard_normal((40, 40)).astype(np.float32)


@pytest.mark.parametrize(
    ("kind", "runtime"), [(np.float32, ONNX_RUNTIME), (ml_dtypes.bfloat16, REFERENCE_EVALUATOR)], ids=["fp32", "bf16"]
)
def test_weights_in_a_data_file_are_those_that_run(
    kind: type, runtime: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_file, "ONE_FILE_BYTES", 1000)
    elem = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], to=elem),
        helper.make_node("MatMul", ["low", "w"], ["product"]),
        helper.make_node("Cast", ["product"], ["y"], to=TensorProto.FLOAT),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 40]) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(WEIGHT.astype(kind), "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 22)], ir_version=10)
    onnx_file.write(model, tmp_path / "model.onnx")
    data = (tmp_path / "model.onnx.data").rename(tmp_path / "somewhere else")
    opened = open_onnx([tmp_path / "model.onnx", data])
    assert opened.name == runtime
    got = opened.run({"x": np.ones((1, 40), np.float32)})["y"]
    np.testing.assert_allclose(got, np.ones((1, 40)) @ WEIGHT, atol=0.1)


def test_the_profile_of_a_feed_is_the_first_that_admits_its_shapes_and_the_values_of_its_shape_tensors() -> None:
    x = {"min": [1, 4], "opt": [1, 4], "max": [8, 4]}
    small, large = ({end: [1, size] for end in ("min", "opt")} | {"max": [8, size], "values": True} for size in (4, 16))
    found = profiles_of({"a": {"x": x, "sizes": small}, "b": {"x": x, "sizes": large}})

    def feed(rows: int, *sizes: int) -> dict[str, np.ndarray]:
        return {"x": np.zeros((rows, 4), np.float32), "sizes": np.array(sizes, np.int64)}

    assert [profile_index(found, feed(2, 2, size)) for size in (4, 16)] == [0, 1]
    with pytest.raises(StageError) as caught:
        profile_index(found, feed(2, 2, 5))
    assert "input 'sizes' holds (2, 5), profile 'a' takes (1, 4) to (8, 4), profile 'b' takes" in caught.value.what
    with pytest.raises(StageError, match=r"input 'x' is \(9, 4\)"):
        profile_index(found, feed(9, 2, 16))
