"""What the tests of passes share: one pass over a model, as a config would list it."""

from __future__ import annotations

from typing import Any

import onnx

from stages.passes import entries
from stages.stage import Metrics


def through(model: onnx.ModelProto, *listed: Any) -> tuple[onnx.ModelProto, Metrics]:
    """A copy of `model` after these passes, and what the last of them did."""
    after = onnx.ModelProto()
    after.CopyFrom(model)
    did: Metrics = {}
    for each in entries.listed(entries.checked(list(listed), "passes")):
        assert each.declared is not None
        did = each.declared.run(after, each.options)
    onnx.checker.check_model(after)
    return after, did


def node_ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]
