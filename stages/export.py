"""The first stage of every flow: the user's model, as one checked, self-contained ONNX file.

Two ways lead there. An ONNX file is read with its external data, checked, and brought to another opset if asked. A
PyTorch module is made by the user's entry point, exported, and compared with its export over the whole range of its
dynamic dimensions (`stages.torch_export`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import onnx_file
from stages.allowed import require_at_least
from stages.onnx_check import check_structure, refuse_nonfinite_weights, require_opset
from stages.stage import Job, Metrics, Stage, StageError
from stages.torch_export import export_torch

if TYPE_CHECKING:
    import onnx


OLDEST_OPSET = 7
"""What ONNX Runtime promises to run: https://onnxruntime.ai/docs/reference/compatibility.html"""


@dataclass(frozen=True)
class ExportConfig:
    """How a model becomes ONNX.

    Attributes:
        opset: Version of ONNX's operators; None keeps that of an ONNX file, and gives a torch module
            `torch_export.DEFAULT_OPSET`.
        atol: How far ONNX Runtime may be from the torch module, absolutely...
        rtol: ...and relative to the module's own output: `|onnx - torch| <= atol + rtol * |torch|`.
        optimize: Whether the torch exporter folds constants and batch normalisation.
    """

    opset: int | None = None
    atol: float = 1e-4
    rtol: float = 1e-3
    optimize: bool = True

    def __post_init__(self) -> None:
        require_at_least(self, OLDEST_OPSET, "opset")
        require_at_least(self, 0, "atol", "rtol")


def export(job: Job[ExportConfig]) -> Metrics:
    """Writes the model as one ONNX file that the checker accepts and whose weights are finite.

    Raises:
        StageError: The model cannot be read, made, exported or converted, or is not what it should be.
    """
    found: Metrics
    if job.facts["source"]["kind"] == "torch":
        model, found = export_torch(job)
    else:
        model, found = _adopt_onnx(job), {}
    job.progress("check", None)
    unregistered = check_structure(model)
    refuse_nonfinite_weights(model)
    onnx_file.write(model, job.out / STAGE.outputs["onnx"])
    initializers = (tensor for graph in onnx_file.iter_graphs(model) for tensor in graph.initializer)
    return {
        "opset": onnx_file.default_opset(model),
        "nodes": len(model.graph.node),
        "initializer_bytes": sum(len(tensor.raw_data) or tensor.ByteSize() for tensor in initializers),
        "ir_version": model.ir_version,
        "unregistered_operators": unregistered,
        **found,
    }


def _adopt_onnx(job: Job[ExportConfig]) -> onnx.ModelProto:
    if not job.inputs.get("onnx"):
        raise StageError("the model's source is onnx, and no ONNX file is given", "give it: model.path=net.onnx")
    job.progress("read", None)
    model = onnx_file.read(job.file("onnx"))
    if job.config.opset in (None, onnx_file.default_opset(model)):
        return model
    check_structure(model)
    job.progress(f"convert to opset {job.config.opset}", None)
    return _convert(model, job.config.opset)


def _convert(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    import onnx
    from onnx import inliner, version_converter

    had = onnx_file.default_opset(model)
    next_step = f"leave steps.export.config.opset out, or export the model at opset {opset} in its own framework"
    try:
        # The converter drops the functions of a model without a word, and leaves calls to nothing.
        converted = version_converter.convert_version(inliner.inline_local_functions(model), opset)
    except (RuntimeError, onnx.shape_inference.InferenceError) as error:
        # "/project/onnx/version_converter/x.h:23: adapt: Assertion `false` failed: No Previous Version of Gelu exists"
        reason = re.sub(r"^.*? failed: ", "", onnx_file.first_line(error))
        raise StageError(f"the model cannot be converted from opset {had} to {opset}: {reason}", next_step) from error
    require_opset(converted, opset, next_step)
    return converted


STAGE = Stage(
    name="export",
    version=1,
    config=ExportConfig,
    run=export,
    inputs=(),
    optional=("onnx", "weights", "source"),
    outputs={"onnx": "model.onnx"},
    facts=("source",),
    tools=("onnx",),
)
