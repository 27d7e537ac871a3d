"""What the backend's parser refuses is told before anything is built, without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stages.rewriting import parsed, saved
from tests.stages.stage_runs import run_stage

BAD = """<ir_version: 10, opset_import: ["": 20, "acme": 1]> g (float[2, 3] x) => (float[2, 3] y) {
    a = Relu(x)
    [first] b = acme.Foo(a)
    d, e = Unique(a)
    y = Add(b, a) }"""
INNER = """<ir_version: 10, opset_import: ["": 20, "acme": 1]> g (float[2, 3] x, bool c) => (float[2, 3] y) {
    y = If (c) < then_branch = t () => (float[2, 3] p) { [inner] p = acme.Bar(x) },
        else_branch = f () => (float[2, 3] q) { q = Neg(x) } > }"""


def test_every_refused_operator_is_told_with_its_node(tmp_path: Path) -> None:
    answer, _ = run_stage("operators", tmp_path / "out", {"onnx": saved(parsed(BAD), tmp_path / "bad.onnx")})
    found = json.loads((tmp_path / "out/operators.json").read_text())
    assert answer["metrics"] == {"operators": 4}
    assert found["operators"]["acme::Foo"] == 1
    told = {(each["operator"], each["node"]) for each in found["refused"]}
    assert told == {("acme::Foo", "first"), ("Unique", "d")}
    assert all(each["reason"] for each in found["refused"])


def test_an_operator_inside_a_subgraph_is_told_with_its_own_node(tmp_path: Path) -> None:
    run_stage("operators", tmp_path / "out", {"onnx": saved(parsed(INNER), tmp_path / "net.onnx")})
    found = json.loads((tmp_path / "out/operators.json").read_text())
    assert [(each["operator"], each["node"]) for each in found["refused"]] == [("acme::Bar", "inner")]


def test_what_shows_only_while_the_model_is_converted_is_told_too(tmp_path: Path) -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[2, 3] x) => (float[2, 3] y, int64[a, b] z) {
        y = Relu(x)
        [odd] z = NonZero(y) }""")
    run_stage("operators", tmp_path / "out", {"onnx": saved(model, tmp_path / "net.onnx")})
    found = json.loads((tmp_path / "out/operators.json").read_text())
    assert [(each["operator"], each["node"]) for each in found["refused"]] == [("NonZero", "odd")]


@pytest.mark.parametrize("content", [b"", b"no library"])
def test_a_plugin_library_that_is_none_is_refused_by_its_path(tmp_path: Path, content: bytes) -> None:
    library = tmp_path / "libmine.so"
    library.write_bytes(content)
    onnx = saved(parsed(BAD), tmp_path / "bad.onnx")
    answer, _ = run_stage("operators", tmp_path / "out", {"onnx": onnx, "plugins": library})
    assert f"plugin library {library} cannot be loaded" in answer["what"]
