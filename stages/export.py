"""The first stage of every flow: the user's model, as one checked ONNX file, its large weights beside it.

Two ways lead there. An ONNX file is read with its external data, given the weights of a checkpoint where there is one
(`stages.checkpoint`), checked, and brought to another opset if asked. A PyTorch module is made by the user's entry
point, exported, and compared with its export over the whole range of its dynamic dimensions (`stages.torch_export`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from stages import checkpoint, onnx_file
from stages.allowed import require_at_least
from stages.onnx_check import check_structure, refuse_nonfinite_weights, require_opset
from stages.onnx_opset import convert
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
    """Writes the model as an ONNX file that the checker accepts and whose weights are finite.

    Raises:
        StageError: The model cannot be read, made, exported or converted, or is not what it should be, or the
            checkpoint is not of this model.
    """
    if job.facts["source"]["kind"] != "torch":
        return _write(*_adopt_onnx(job), job)
    with TemporaryDirectory(dir=job.out) as scratch:
        return _write(*export_torch(job, Path(scratch)), job)


def _write(model: onnx.ModelProto, found: Metrics, job: Job[ExportConfig]) -> Metrics:
    job.progress("check", None)
    unregistered = check_structure(model)
    refuse_nonfinite_weights(model)
    onnx_file.write(model, job.out / STAGE.outputs["onnx"])
    initializers = (tensor for graph in onnx_file.iter_graphs(model) for tensor in graph.initializer)
    return {
        "opset": onnx_file.default_opset(model),
        "nodes": len(model.graph.node),
        "initializer_bytes": sum(map(onnx_file.nbytes, initializers)),
        "ir_version": model.ir_version,
        "unregistered_operators": unregistered,
        **found,
    }


def _adopt_onnx(job: Job[ExportConfig]) -> tuple[onnx.ModelProto, Metrics]:
    if not job.inputs.get("onnx"):
        raise StageError("the model's source is onnx, and no ONNX file is given", "give it: model.path=net.onnx")
    job.progress("read", None)
    model = onnx_file.read(job.inputs["onnx"])
    found: Metrics = checkpoint.put(model, job.file("weights")) if job.inputs.get("weights") else {}
    wanted = job.config.opset
    if wanted is None or wanted == onnx_file.default_opset(model):
        return model, found
    check_structure(model)
    job.progress(f"convert to opset {wanted}", None)
    next_step = f"leave steps.export.config.opset out, or export the model at opset {wanted} in its own framework"
    convert(model, wanted, next_step)
    require_opset(model, wanted, next_step)
    return model, found


STAGE = Stage(
    name="export",
    version=2,
    config=ExportConfig,
    run=export,
    inputs=(),
    optional=("onnx", "weights", "source"),
    outputs={"onnx": "model.onnx"},
    facts=("source",),
    tools=("onnx",),
)
