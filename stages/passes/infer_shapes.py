"""Shape inference: the model says what is known of each tensor; symbolic dims are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages import onnx_shapes
from stages.passes.contract import NoOptions, Pass
from stages.stage import Metrics

if TYPE_CHECKING:
    from onnx import ModelProto


def infer_shapes(model: ModelProto, options: NoOptions) -> Metrics:
    """Stores the inferred shapes in the model; where inference says nothing, what the model said stays."""
    inferred, problem = onnx_shapes.infer_what_can_be(model)
    graph = model.graph
    made = {name for node in graph.node for name in node.output} - {value.name for value in graph.output}
    values = {value.name: value for value in graph.value_info}
    values.update({value.name: value for value in inferred.graph.value_info} if inferred else {})
    kept = [values[name] for name in sorted(made) if name in values]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return {"tensors_described": len(kept), "shape_inference": problem or "ok"}


PASS = Pass("infer_shapes", NoOptions, infer_shapes)
