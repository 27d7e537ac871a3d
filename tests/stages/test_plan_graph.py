"""The graph inside a plan of TensorRT-RTX."""

from __future__ import annotations

import struct
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import plan_graph
from stages.build_config import BuildConfig, MemoryPools
from stages.plan_graph import Operation, counts
from stages.stage import StageError
from tests.stages.rewriting import parsed, plan_graph_of, saved
from tests.stages.stage_runs import classifier, facts, run_stage
from tests.stages.test_plan import rtx_plan, tensorrt_plan


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
    assert "node_of_c" in first.nodes
    assert operations[-1].nodes == ("node_of_y",)


def test_each_profile_has_a_graph_and_the_budget_is_the_workspace(tmp_path: Path) -> None:
    def fixed(rows: int) -> dict[str, Any]:
        return {"x": {end: [rows, 4, 8, 8] for end in ("min", "opt", "max")}}

    config = BuildConfig(memory_pools=MemoryPools(workspace="1GiB"))
    path = classifier(tmp_path / "net.onnx")
    run_stage("build", tmp_path, {"onnx": path}, config, facts(profiles={"few": fixed(4), "many": fixed(8)}))
    graphs = plan_graph.read(tmp_path / "model.plan")
    assert len(graphs) == 2
    for graph in graphs:
        assert [each.nodes[0] for each in graph.operations if each.is_weighted] == ["conv0", "gemm0"]
    assert all(2**30 <= graph.memory_budget_bytes < 2**30 * 1.01 for graph in graphs)
    assert plan_graph.why_unreadable(tmp_path / "model.plan") is None


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


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tensorrt_plan(), "holds no graph as text"),
        (rtx_plan(), "holds no graph as text"),
        (b"vtrt" + bytes(20) + bytes((1, 8, 0, 1)) + bytes(100), "layout of TensorRT-RTX 1.8.0.1's plans is not known"),
    ],
)
def test_a_plan_without_a_graph_that_can_be_read_says_why(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "net.plan").write_bytes(content)
    assert reason in str(plan_graph.why_unreadable(tmp_path / "net.plan"))
    with pytest.raises(StageError, match=rf"net\.plan: .*{reason}"):
        plan_graph.read(tmp_path / "net.plan")


def plan_of(engine: bytes) -> bytes:
    """A plan whose only section is the engine."""
    table = struct.pack("<8sQQ", b"NGNE", 88, len(engine))
    head = struct.pack("<4s4xQQ4B4sI20xQ", b"vtrt", 1, 88 + len(engine), 1, 7, 1, 116, b"vtrt", 8, 0)
    return head + table + engine


GRAPH = r"""header {
  version = 5
  memory_budget = 9
  tf32=0
}
descriptors {
  tensor={ alignment=32 dims={ 1 4 } name="x" type=int8 }
  tensor={ alignment=128 const_payload_size=16 dims={ 4 4 } name="w" type=int8 }
  tensor={ alignment=128 const_payload_size=4 dims={ 1 } name="s" type=float }
  tensor={ alignment=128 dims={ 1 4 } name="y" type=float }
}
main {
 label bb1:
  wait={ name=w1 stream=0 }
  fully_connected={ name="p" output={"y" } input={"x" "w" "s" } stream=0  layers="LAYERS" }
  function={ name=__myl_Mul input_args={ "y" "s" } output_args={ "y" } stream=0 layers="" swap_ab=false }
}
shape_main {
  mul={ name="m" output={"y" } input={"x" "x" } }
}
"""


def graph_of(layers: str, path: Path) -> plan_graph.Graph:
    text = GRAPH.replace("LAYERS", layers).encode()
    path.write_bytes(plan_of(struct.pack("<4s4xQ", b"NLYM", len(text)) + text))
    (found,) = plan_graph.read(path)
    return found


def test_what_the_plan_holds_is_counted_once_for_it_and_once_for_each_that_reads_it(tmp_path: Path) -> None:
    graph = graph_of("[ONNX Layer: p]", tmp_path / "net.plan")
    assert (graph.constants, graph.tf32) == ({"float": 4, "int8": 16}, False)
    _, product, scaling = graph.operations
    assert (product.weights, product.weight_bytes) == (("int8", "float"), 20)
    assert (scaling.weights, scaling.weight_bytes) == (("float",), 4)
    assert (product.factors, scaling.factors) == (("int8", "int8"), ("float", "float"))


@pytest.mark.parametrize(
    ("layers", "nodes"),
    [
        ("[ONNX Layer: p]", ("p",)),
        ("[ONNX Layer: p]\x1f[ONNX Layer: q]", ("p", "q")),
        ("[ONNX Layer: p]__gemm_from_conv1x1", ("p",)),
        ("[ONNX Layer: p]__gemm_from_conv1x1\x1f[ONNX Layer: q]", ("p", "q")),
        ("[ONNX Layer: a[0]/b]\x1f[ONNX Layer: c[1]]", ("a[0]/b", "c[1]")),
        ('[ONNX Layer: the \\"p\\"]', ('the "p"',)),
        ("", ()),
    ],
)
def test_nodes_are_told_apart_whatever_became_of_them(layers: str, nodes: tuple[str, ...], tmp_path: Path) -> None:
    assert graph_of(layers, tmp_path / "net.plan").operations[1].nodes == nodes


@given(st.binary(max_size=60), st.integers(0, 2**64 - 1), st.booleans())
def test_what_a_plan_claims_of_its_graph_is_believed_only_within_it(junk: bytes, claim: int, true: bool) -> None:
    text = b"header {\n  version = 5\n  memory_budget = 1\n" + junk
    engine = b"kernels NLYM of NLYM" + struct.pack("<4s4xQ", b"NLYM", len(text) if true else claim) + text
    with NamedTemporaryFile() as file:
        file.write(plan_of(engine))
        file.flush()
        if true:
            assert [graph.memory_budget_bytes for graph in plan_graph.read(Path(file.name))] == [1]
        elif claim > len(text):
            assert "holds no graph" in str(plan_graph.why_unreadable(Path(file.name)))
