"""ONNX Runtime sessions of models whose weights lie in external files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import TensorProto, defs, helper, numpy_helper, parser

from stages import onnx_file
from stages.onnx_opset import MAX_ORT_OPSET, for_onnx_runtime
from stages.onnx_session import open_session

WEIGHT = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)


def written(directory: Path, weight: np.ndarray = WEIGHT) -> Path:
    """A model whose weight lies in a data file."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, len(weight)]) for name in "xy")
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    directory.mkdir(parents=True, exist_ok=True)
    onnx_file.write(model, directory / "model.onnx")
    return directory / "model.onnx"


def test_weights_are_found_wherever_their_files_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "ONE_FILE_BYTES", 1000)
    path = written(tmp_path / "räume und so")
    (tmp_path / "objects").mkdir()
    data = (path.parent / "model.onnx.data").rename(tmp_path / "objects" / "cdef")
    model = onnx_file.read([path, data])
    before = model.SerializeToString()
    (y,) = open_session(model, onnxruntime.SessionOptions()).run(None, {"x": np.ones((1, 64), np.float32)})
    np.testing.assert_allclose(y, np.ones((1, 64)) @ WEIGHT, rtol=1e-4, atol=1e-4)
    assert model.SerializeToString() == before


OPEN = """
import sys
from pathlib import Path
import onnxruntime
from stages import onnx_file
from stages.onnx_session import open_session

def own_bytes():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) << 10

model = onnx_file.read(Path(sys.argv[1]))
before = own_bytes()
session = open_session(model, onnxruntime.SessionOptions())
print(own_bytes() - before)
"""


def test_weights_are_mapped_and_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "ONE_FILE_BYTES", 1000)
    path = written(tmp_path, np.ones((4096, 4096), np.float32))  # 64 MiB
    root = Path(__file__).parents[2]
    child = subprocess.run([sys.executable, "-c", OPEN, str(path)], capture_output=True, text=True, cwd=root)
    assert child.returncode == 0, child.stderr
    assert int(child.stdout) < 16 << 20


@pytest.mark.parametrize("domain", ["", "ai.onnx"])
def test_a_model_newer_than_onnx_runtime_runs_where_its_operators_are_old(domain: str) -> None:
    model = parser.parse_model("""<ir_version: 14, opset_import: ["": 20]> g (float[2] x, bool c) => (float[2] y) {
        y = If (c) <
            then_branch = t () => (float[2] p) { p = Relu(x) },
            else_branch = e () => (float[2] q) { q = Neg(x) } > }""")
    model.opset_import[0].version = defs.onnx_opset_version()
    model.opset_import[0].domain = domain
    before = model.SerializeToString()
    feed = {"x": np.array([-1, 2], np.float32), "c": np.array(True)}
    assert open_session(model, onnxruntime.SessionOptions()).run(None, feed)[0].tolist() == [0, 2]
    assert model.SerializeToString() == before


def test_an_operator_that_onnx_runtime_does_not_know_yet_is_not_run_as_another_one() -> None:
    newest = defs.onnx_opset_version()
    assert newest > MAX_ORT_OPSET, "onnx is no newer than ONNX Runtime: take an older onnx_opset.MAX_ORT_OPSET here"
    changed = [each for each in defs.get_all_schemas() if not each.domain and each.since_version > MAX_ORT_OPSET]
    for each in changed:
        node = helper.make_node(each.name, [], [])
        assert for_onnx_runtime([node], newest) == newest, each.name
    assert for_onnx_runtime([helper.make_node("Relu", ["x"], ["y"])], newest) == MAX_ORT_OPSET
