"""Nodes as people write them in a config."""

from __future__ import annotations

import pytest

from stages.allowed import NotAllowedError
from stages.stage import StageError
from stages.surgery import SurgeryConfig
from stages.written_nodes import parse, require_nodes

GOOD = (
    "y = Relu(x)",
    "s = Sigmoid(x)\n y = Mul(x, s)",
    'y = acme.Silu<plugin_version = "1", names = ["a<b", "(c"]>(x)',
    "y = LeakyRelu(x) <alpha = 0.5>",
    'y = Clip(x, "", k)',
    "a, b = Split<axis = 0, num_outputs = 2>(x) y = Add(a, b)",
    "y = If(c) <then_branch = t () => (float[2] p) { p = Relu(x) }, else_branch = e () => (float[2] q) { q = Neg(x) }>",
    'y = Probe<text = "a \\" b">(x)',
    "y = RandomNormal<shape = [4]>()",
)
BAD = ("", "Relu(x)", "y = Relu(x", "y = Relu x", "y = (x)", "y == Relu(x)", "y = Relu<alpha = 1(x)", "y = Relu(x) z")


@pytest.mark.parametrize("text", GOOD)
def test_what_onnx_reads_is_let_through(text: str) -> None:
    require_nodes(text, "nodes")
    assert parse(text, "nodes")


@pytest.mark.parametrize("text", BAD)
def test_a_typo_is_refused_before_anything_runs(text: str) -> None:
    for key, entry in {
        "first[0].nodes": {"pass": "insert", "tensor": "a", "nodes": text},
        "first[0].find": {"pass": "replace", "find": text, "put": "y = Relu(x)"},
        "first[0].put": {"pass": "replace", "find": "y = Relu(x)", "put": text},
    }.items():
        with pytest.raises(NotAllowedError) as caught:
            SurgeryConfig(first=[entry])
        assert (caught.value.key, caught.value.got) == (key, text)


@pytest.mark.parametrize("text", [text for text in BAD if text != "y = (x)"])  # to onnx an operator without a name
def test_nothing_is_refused_that_onnx_would_read(text: str) -> None:
    with pytest.raises(StageError):
        parse(text, "nodes")
