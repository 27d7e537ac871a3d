"""Which of a model's operators the backend's parser takes, found out without a GPU and without building.

Writes `operators.json`::

    {"backend": "tensorrt_rtx", "backend_version": "1.7.1.116", "operators": {"Conv": 12, "acme::Foo": 2},
     "refused": [{"operator": "acme::Foo", "node": "foo_1", "reason": "no such operator in TensorRT's parser, …"}]}
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages import backends, network, onnx_file, onnx_graph
from stages.builder_log import start
from stages.stage import JSON, Job, Metrics, Stage

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


@dataclass(frozen=True)
class OperatorsConfig:
    """Nothing to choose."""


def operators(job: Job[OperatorsConfig]) -> Metrics:
    """Asks the parser, which first looks at every node, and where it finds nothing converts the whole model.

    Raises:
        StageError: The backend is not installed, or the model is no valid ONNX.
    """
    backend = job.facts["backend"]
    model = onnx_file.read(job.inputs["onnx"])
    counts = Counter(_spelled(node) for node in onnx_file.walk(model.graph.node))
    found: dict[str, JSON] = {
        "backend": backend,
        "backend_version": job.facts["backend_version"],
        "operators": dict(sorted(counts.items())),
        "refused": _refused(backends.load(backend), model, job),
    }
    (job.out / STAGE.outputs["operators"]).write_text(json.dumps(found, indent=2) + "\n")
    return {"operators": len(counts)}


def _refused(trt: Any, model: ModelProto, job: Job[OperatorsConfig]) -> list[JSON]:
    logger = trt.Logger(trt.Logger.INTERNAL_ERROR)  # the parser keeps its errors, and they are told below
    builder = start(trt.Builder, logger)
    network.load_plugins(builder.get_plugin_registry(), job.inputs.get("plugins", ()))
    definition = builder.create_network(network.strongly_typed(trt))
    parser = trt.OnnxParser(definition, logger)
    given = network.read_model(job.inputs["onnx"])
    network.load(parser, given)
    if parser.parse_model_proto():
        return []
    nodes = {onnx_graph.label(node): node for node in onnx_file.walk(model.graph.node)}
    refused: dict[tuple[str, str], JSON] = {}
    for error in (parser.get_error(index) for index in range(parser.num_errors)):
        named = nodes.get(error.node_name()) or _numbered(model, error)
        operator = _spelled(named) if named is not None else error.node_operator() or "the model"
        node = error.node_name() or (onnx_graph.label(named) if named is not None else "")
        told = {"operator": operator, "node": node, "reason": network.reason_of(error)}
        refused.setdefault((operator, node), told)
    return list(refused.values())


def _numbered(model: ModelProto, error: Any) -> NodeProto | None:
    """The unnamed node that the error means; inside of a subgraph its number is the one in there."""
    inside = bool(error.local_function_stack())
    return model.graph.node[error.node()] if not inside and 0 <= error.node() < len(model.graph.node) else None


def _spelled(node: NodeProto) -> str:
    return f"{node.domain}::{node.op_type}" if node.domain not in ("", "ai.onnx") else str(node.op_type)


STAGE = Stage(
    name="operators",
    version=1,
    config=OperatorsConfig,
    run=operators,
    inputs=("onnx",),
    optional=("plugins",),
    outputs={"operators": "operators.json"},
    facts=("backend", "backend_version"),
    tools=("onnx",),
)
