"""`Constant` nodes become initializers, initializers listed as inputs become weights, and nodes stand in order."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages import onnx_graph
from stages.passes.contract import NoOptions, Pass
from stages.stage import Metrics

if TYPE_CHECKING:
    from onnx import ModelProto


def adopt(model: ModelProto, options: NoOptions) -> Metrics:
    """Brings the model into the form that the other passes expect.

    Raises:
        StageError: The nodes read each other in a circle.
    """
    onnx_graph.adopt_weights(model)
    adopted = onnx_graph.adopt_constants(model.graph)
    onnx_graph.sort(model.graph)
    return {"constants_adopted": adopted}


PASS = Pass("adopt", NoOptions, adopt)
