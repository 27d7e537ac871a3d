"""What `make conformance` says of a tool that breaks models, and its exit code."""

from __future__ import annotations

import sys

import pytest
from onnx import ModelProto, parser

from benchmarks import conformance, torch_exports

SAMPLE = ["conformance", "--every", "400"]


def test_the_sample_ends_with_0_where_nothing_is_broken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", SAMPLE)
    assert conformance.main() == 0
    assert "broken:" not in capsys.readouterr().out


def test_a_broken_case_is_named_and_ends_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def breaks(model: ModelProto) -> ModelProto:
        made = ModelProto()
        made.CopyFrom(model)
        del made.graph.node[:]
        return made

    monkeypatch.setattr(sys, "argv", SAMPLE)
    monkeypatch.setattr(conformance, "ours", breaks)
    assert conformance.main() == 1
    assert "broken: test_" in capsys.readouterr().out


def test_a_cell_tells_a_model_that_is_wrong_or_does_not_load() -> None:
    model = parser.parse_model("""<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) {
        y = Relu(x) }""")

    def other(operator: str) -> conformance.Tool:
        def changed(given: ModelProto) -> ModelProto:
            given.graph.node[0].op_type = operator
            return given

        return changed

    texts = [conformance.cells(other(operator), model)[0] for operator in ("Relu", "Neg", "NoSuchOperator")]
    assert texts == ["1", "1 wrong", "1 does not load"]
    assert [conformance.is_broken(text) for text in texts] == [False, True, True]
    assert conformance.is_broken(conformance.cells(lambda given: given.absent, model)[0])


def test_an_export_whose_packages_are_not_installed_names_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_exports, "find_spec", lambda name: None)
    assert [model for _, model in torch_exports.exports()] == ["torch"] * 4
