"""The graph inside a plan of TensorRT-RTX."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages import plan_graph
from stages.plan_graph import Operation, counts
from stages.stage import StageError
from tests.stages.rewriting import parsed, plan_graph_of, saved


def test_operations_are_read_with_their_types(tmp_path: Path) -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4, 8, 8] x) => (float[n, 4, 8, 8] y) {
        c = Conv<pads=[1, 1, 1, 1]>(x, w)
        r = Relu(c)
        m = MatMul(r, v)
        y = Tanh(m) }""",
        w=np.ones((4, 4, 3, 3)),
        v=np.eye(8),
    )
    operations = plan_graph_of(saved(model, tmp_path / "net.onnx"), "SM89")
    assert counts(operations) == {"corrltn": {"float": 1}, "fully_connected": {"float": 1}}
    first = next(each for each in operations if each.kind == "corrltn")
    assert (first.name, set(first.reads), first.writes) == ("node_of_c", {"float"}, ("float",))


def test_weighted_operations_are_counted_by_what_they_read() -> None:
    operations = [
        Operation("corrltn", "a", ("int8", "int8"), ("float",)),
        Operation("corrltn", "b", ("float", "float"), ("float",)),
        Operation("corrltn", "c", ("int8", "int8"), ("float",)),
        Operation("function", "_gemm_mha_v2", ("half", "half", "half"), ("half",)),
        Operation("function", "__myl_Add", ("float",), ("float",)),
        Operation("signal", "x", (), ()),
    ]
    assert counts(operations) == {"corrltn": {"int8": 2, "float": 1}, "_gemm_mha_v2": {"half": 1}}


@pytest.mark.parametrize("content", [b"", b"ftrt" + bytes(100), b"vtrt" + bytes(100)])
def test_a_plan_without_text_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "net.plan").write_bytes(content)
    assert not plan_graph.is_there(tmp_path / "net.plan")
    with pytest.raises(StageError, match=r"net\.plan: no graph to read"):
        plan_graph.read(tmp_path / "net.plan")
