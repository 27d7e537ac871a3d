"""Exact runs give inner tensors as the model has them, and say which batch a model fails on."""

from __future__ import annotations

import numpy as np
import pytest

from stages.exact_runs import open_exact, run
from stages.stage import StageError
from tests.stages.rewriting import parsed

TEXT = """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {
    c = MatMul(x, w)
    r = Relu(c)
    y = Add(r, x) }"""
ONES = np.ones((2, 4), np.float32)


def test_inner_tensors_come_out_as_well_as_outputs_and_inputs_do() -> None:
    session = open_exact(parsed(TEXT, w=-np.eye(4)), ["c", "r", "x", "y"])
    found = run(session, ["c", "r", "y"], {"x": ONES}, 0)
    assert [float(found[name][0, 0]) for name in ("c", "r", "y")] == [-1, 0, 1]
    assert run(session, [], {"x": ONES}, 0) == {}


def test_q_and_dq_round_as_floats_do_and_saturate_at_8_bits() -> None:
    model = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {
        q = QuantizeLinear(x, s, z)
        y = DequantizeLinear(q, s, z) }""",
        s=np.float32(0.5),
        z=np.int8(0),
    )
    fed = np.array([[0.24, 0.75, 1e6, -1e6]], np.float32)
    assert run(open_exact(model), ["y"], {"x": fed}, 0)["y"].tolist() == [[0, 1, 63.5, -64]]


def test_a_model_that_cannot_be_loaded_and_a_batch_that_fails_say_why() -> None:
    with pytest.raises(StageError, match="cannot load the model"):
        open_exact(parsed(TEXT.replace("Relu", "acme.Mystery").replace('"": 20', '"": 20, "acme": 1'), w=np.eye(4)))
    with pytest.raises(StageError, match=r"fails on batch 7 .*x \(2, 3\)"):
        run(open_exact(parsed(TEXT, w=np.eye(4))), ["y"], {"x": ONES[:, :3]}, 7)
