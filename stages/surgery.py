"""The stage `surgery`: what every later stage and TensorRT would rather not see is computed, fused or dropped.

Constants are folded, Conv + BatchNormalization become one Conv, Identity and dead nodes go, shapes are inferred. Inputs
and outputs keep their names, order and types, and the results stay the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import fusion, onnx_file, onnx_graph, onnx_shapes
from stages.allowed import require_at_least
from stages.folding import Folding, fold
from stages.onnx_opset import opset
from stages.stage import Job, Metrics, Stage

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto

MAX_ROUNDS = 16
"""A folded constant can reveal a shape, and a shape a constant: real models were done after 2 or 3 rounds."""


@dataclass(frozen=True)
class SurgeryConfig:
    """How far surgery goes.

    Attributes:
        fold_max_bytes: A folded result larger than this stays a node, unless it is no larger than the constants it is
            made of: a transposed weight of 4 MB is folded, a vector expanded to 4 MB is not.
        fuse_conv_bn: Fuse BatchNormalization into the convolution before it.
    """

    fold_max_bytes: int = 1048576
    fuse_conv_bn: bool = True

    def __post_init__(self) -> None:
        require_at_least(self, 0, "fold_max_bytes")


def surgery(job: Job[SurgeryConfig]) -> Metrics:
    """Writes the model with everything computed, fused and dropped that does not depend on the inputs.

    Raises:
        StageError: The model cannot be read, or its graph has a circle.
    """
    model = onnx_file.read(job.file("onnx"))
    before = {"nodes_before": len(model.graph.node), "bytes_before": model.ByteSize()}
    onnx_graph.adopt_weights(model)
    adopted = onnx_graph.adopt_constants(model.graph)
    onnx_graph.sort(model.graph)
    folding, problem = _fold_all(model, job)
    job.progress("fusing", 0.8)
    aliases = _drop_aliases(model)
    fused = fusion.fuse_conv_bn(model) if job.config.fuse_conv_bn else 0
    dead, unused = _drop_dead(model.graph)
    problem = _keep_shapes(model) or problem
    onnx_file.write(model, job.out / "model.onnx")
    return {
        **before,
        "nodes_after": len(model.graph.node),
        "bytes_after": model.ByteSize(),
        "constants_adopted": adopted,
        "folded": folding.folded,
        "not_folded": folding.left,
        "fused": fused,
        "dropped": aliases + dead,
        "initializers_dropped": unused,
        "shape_inference": problem or "ok",
    }


def _fold_all(model: ModelProto, job: Job[SurgeryConfig]) -> tuple[Folding, str]:
    """Folds until nothing changes. Returns what was done, and what shape inference complained about, if it did."""
    total, problem = Folding(), ""
    for number in range(MAX_ROUNDS):
        job.progress("folding constants", 0.8 * number / MAX_ROUNDS)
        inferred, problem = _inferred(model)
        done = fold(model, inferred, job.config.fold_max_bytes)
        total = Folding(total.folded + done.folded, done.left)
        if not done.folded:
            break
    return total, problem


def _inferred(model: ModelProto) -> tuple[ModelProto | None, str]:
    """The shapes, and what inference complained about: where one node fails, the others still have shapes."""
    problem = ""
    for strict in (True, False):
        try:
            return onnx_shapes.infer(model, strict=strict), problem
        except Exception as error:  # C++ raises InferenceError, RuntimeError and others
            problem = problem or onnx_graph.first_line(error)
    return None, problem


def _drop_aliases(model: ModelProto) -> int:
    """Drops Identity, and Dropout outside of training, and says how many.

    Names that a subgraph captures and names of the model's inputs and outputs stay.
    """
    graph = model.graph
    fixed = onnx_graph.captured(graph)
    returned = {value.name for value in graph.output}
    made = {name for node in graph.node for name in node.output} - returned - fixed
    new_name: dict[str, str] = {}
    kept = []
    for node in graph.node:
        source = new_name.get(node.input[0], node.input[0]) if node.input else ""
        if not _is_alias(node, opset(model)) or node.output[0] in fixed:
            kept.append(node)
        elif node.output[0] not in returned:
            new_name[node.output[0]] = source
        elif source in made:  # the maker of the source shall make the output itself
            new_name[source] = node.output[0]
            made.discard(source)
        else:
            kept.append(node)
    dropped = len(graph.node) - len(kept)
    for node in kept:
        node.input[:] = [_follow(name, new_name) for name in node.input]
        node.output[:] = [_follow(name, new_name) for name in node.output]
    onnx_graph.replace_nodes(graph, kept)
    return dropped


def _follow(name: str, new_name: dict[str, str]) -> str:
    while name in new_name:
        name = new_name[name]
    return name


def _is_alias(node: NodeProto, version: int) -> bool:
    if node.domain not in ("", "ai.onnx"):
        return False
    idle = node.op_type == "Dropout" and version >= 7 and len(node.input) < 3 and not any(node.output[1:])
    return node.op_type == "Identity" or idle


def _drop_dead(graph: GraphProto) -> tuple[int, int]:
    """Drops the nodes and the initializers that no output depends on, and says how many of each."""
    needed = {value.name for value in graph.output}
    alive = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            alive.append(node)
            needed |= onnx_graph.reads(node)
    tensors = {tensor.name: tensor for tensor in graph.initializer if tensor.name in needed}
    dead, unused = len(graph.node) - len(alive), len(graph.initializer) - len(tensors)
    onnx_graph.replace_nodes(graph, reversed(alive))
    onnx_graph.replace_initializers(graph, tensors.values())
    return dead, unused


def _keep_shapes(model: ModelProto) -> str:
    """Stores the inferred shapes in the model; where inference says nothing, what the model said stays."""
    inferred, problem = _inferred(model)
    graph = model.graph
    made = {name for node in graph.node for name in node.output} - {value.name for value in graph.output}
    values = {value.name: value for value in graph.value_info}
    values.update({value.name: value for value in inferred.graph.value_info} if inferred else {})
    kept = [values[name] for name in sorted(made) if name in values]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return problem


STAGE = Stage(
    name="surgery",
    version=1,
    config=SurgeryConfig,
    run=surgery,
    inputs=("onnx",),
    outputs={"onnx": "model.onnx"},
    tools=("onnx", "onnxruntime", "numpy"),
)
