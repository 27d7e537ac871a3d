"""Identities go, also between a graph and its subgraphs."""

from __future__ import annotations

import numpy as np

from tests.stages.passes.rewritten import node_ops, through
from tests.stages.rewriting import outputs, parsed


def test_an_identity_that_a_subgraph_reads_goes_and_the_subgraph_reads_its_source() -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[2] x, bool c) => (float[2] y) {
        r = Relu(x)
        same = Identity(r)
        y = If (c) < then_branch = t () => (float[2] p) { i = Identity(same)
            p = Neg(i) }, else_branch = e () => (float[2] q) { q = Identity(same) } > }""")
    after, did = through(model, "drop_identities")
    assert node_ops(after) == ["Relu", "If"]
    assert did["dropped"] == 2
    for condition in (True, False):
        feed = {"x": np.array([-1, 2], np.float32), "c": np.array(condition)}
        assert outputs(after, feed)[0].tolist() == outputs(model, feed)[0].tolist()
