"""Running a model on ONNX Runtime exactly as its nodes say, for calibration to observe it and to try ranges on it.

Graph optimizations are off: they would fuse away the tensors that are looked at, and turn Q/DQ into integer kernels
that round otherwise than TensorRT's. Nodes run in the model's order: ONNX Runtime's own leaves those that reduce a
tensor to the end, and every tensor lives until then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stages import onnx_graph
from stages.onnx_session import open_session
from stages.stage import StageError
from stages.wording import first_line

if TYPE_CHECKING:
    from onnx import ModelProto

    from stages.batches import Array, Batch


def open_exact(model: ModelProto, tensors: Sequence[str] = ()) -> Any:
    """A session of `model` that also gives `tensors`, which become outputs of `model`.

    Raises:
        StageError: ONNX Runtime cannot load the model.
    """
    import onnxruntime as ort
    from onnx import ValueInfoProto

    returned = {value.name for value in model.graph.output} | {value.name for value in model.graph.input}
    model.graph.output.extend([ValueInfoProto(name=name) for name in tensors if name not in returned])
    model.ir_version = min(model.ir_version, onnx_graph.MAX_ORT_IR)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return open_session(model, options)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise StageError(
            f"ONNX Runtime cannot load the model: {first_line(error)}",
            "calibration runs the model on the CPU with it",
        ) from error


def run(session: Any, names: Sequence[str], batch: Mapping[str, Array], number: int) -> Batch:
    """What `session` computes for the tensors `names`, by name.

    Args:
        session: Of `open_exact`.
        names: Outputs; none runs nothing.
        batch: The feed.
        number: Which batch it is, for the error.

    Raises:
        StageError: The model fails on this batch.
    """
    try:
        return dict(zip(names, session.run(list(names), dict(batch)) if names else [], strict=True))
    except Exception as error:  # ONNX Runtime's errors have no common base
        shapes = ", ".join(f"{name} {array.shape}" for name, array in batch.items() if array.ndim)
        raise StageError(
            f"the model fails on batch {number} (counted from 0; {shapes}): {first_line(error)}",
            "check that the batch is what the model takes",
        ) from error
