"""A model's face, read before anything is planned: inputs, outputs, opsets, and which files hold its weights.

Writes `signature.json`::

    {"inputs": [{"name": "images", "dtype": "float32", "shape": ["batch", 1, 8, 8]}],
     "outputs": [{"name": "logits", "dtype": "float32", "shape": ["batch", 10]}],
     "opset": {"": 20}, "ir_version": 10, "nodes": 34, "producer": "pytorch 2.13.0",
     "external_data": ["net.onnx.data"], "fp32_products": ["logits (Gemm)"], "structure": "4f1c…"}

A dimension is a number, a name, or null where the model says nothing; a shape is null where even the rank is unknown.
`structure` is a digest of what `stages.structure` calls so, without the values in external files: two files that share
it differ, as far as the graph tells, in their weights only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import onnx_data, onnx_file, structure
from stages.stage import JSON, Job, Metrics, Stage, StageError

if TYPE_CHECKING:
    import onnx


PRODUCTS = ("Gemm", "MatMul", "Einsum", "LSTM", "GRU", "RNN")
"""What makes matrix products. TensorRT-RTX 1.7.1 compiles none of them in float32 for 7.5, however small: 13 graphs of
one of them each, MatMul of (1, 1) by (1, 1) among them."""


_OF_SHAPES = ("Shape", "Size")
"""Folding may replace them by constants, whatever their inputs hold."""


@dataclass(frozen=True)
class SignatureConfig:
    """Nothing to choose."""


def signature(job: Job[SignatureConfig]) -> Metrics:
    """Reads the ONNX file alone, without its weights' files, so that it is quick for the largest model.

    Raises:
        StageError: The file is no ONNX, its external data leaves its directory, or an input is no tensor.
    """
    path = job.file("onnx")
    model = onnx_file.read(path, external_data=False)
    weights = _initializer_names(model.graph)
    external = onnx_file.external_locations(model, path.parent)
    face: dict[str, JSON] = {
        "inputs": [_describe(value) for value in model.graph.input if value.name not in weights],
        "outputs": [_describe(value) for value in model.graph.output],
        "opset": {_domain(opset.domain): opset.version for opset in model.opset_import},
        "ir_version": model.ir_version,
        "nodes": len(model.graph.node),
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "external_data": external,
        "fp32_products": list(_fp32_products(model.graph)),
        "structure": _structure(model),
    }
    (job.out / STAGE.outputs["signature"]).write_text(json.dumps(face, indent=2) + "\n")
    return {"nodes": len(model.graph.node), "external_files": len(external)}


def _initializer_names(graph: onnx.GraphProto) -> set[str]:
    """Names that a caller need not feed: up to IR version 3 every initializer was listed among the inputs too."""
    return {tensor.name for tensor in graph.initializer} | {sparse.values.name for sparse in graph.sparse_initializer}


def _structure(model: onnx.ModelProto) -> str:
    for tensor in model.graph.initializer:
        if onnx_data.is_external(tensor):
            tensor.CopyFrom(onnx_data.described(tensor))
    made, _ = structure.split(model)
    return hashlib.sha256(made.SerializeToString(deterministic=True)).hexdigest()


def _fp32_products(graph: onnx.GraphProto) -> Iterator[str]:
    """Matrix products by weights in float32 that no folding removes: they lie between an input and an output.

    Others there may be, in subgraphs or with weights that come out of other nodes; of these the builder finds out.
    """
    import onnx

    constant = {tensor.name for tensor in graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    varying = {value.name for value in graph.input} - _initializer_names(graph)
    needed = {value.name for value in graph.output}
    for node in reversed(graph.node):
        if node.op_type not in _OF_SHAPES and not needed.isdisjoint(node.output):
            needed.update(node.input)
    for node in graph.node:
        if node.op_type == "DequantizeLinear" and not constant.isdisjoint(node.input[1:2]):
            constant.update(node.output)
        if varying.isdisjoint(node.input) or node.op_type in _OF_SHAPES:
            continue
        varying.update(node.output)
        own = _domain(node.domain) == "" and node.op_type in PRODUCTS and not constant.isdisjoint(node.input)
        if own and not needed.isdisjoint(node.output):
            yield f"{node.name or node.output[0]} ({node.op_type})"


def _domain(name: str) -> str:
    return "" if name == "ai.onnx" else name


def _describe(value: onnx.ValueInfoProto) -> dict[str, JSON]:
    kind = value.type.WhichOneof("value")
    if kind != "tensor_type":
        raise StageError(
            f"'{value.name}' is {(kind or 'of unknown type').removesuffix('_type')}: only tensors can go in and out",
            "export the model with tensors as inputs and outputs",
        )
    tensor = value.type.tensor_type
    shape: list[JSON] | None = (
        [onnx_file.dimension(dim) for dim in tensor.shape.dim] if tensor.HasField("shape") else None
    )
    return {"name": value.name, "dtype": _dtype(value.name, tensor.elem_type), "shape": shape}


def _dtype(name: str, elem_type: int) -> str:
    import numpy as np
    import onnx

    if elem_type == onnx.TensorProto.STRING:
        return "string"
    try:
        return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(elem_type)).name
    except KeyError:
        raise StageError(
            f"'{name}' has the element type {elem_type}, which onnx {onnx.__version__} does not know",
            "export the model again, or upgrade onnx",
        ) from None


STAGE = Stage(
    name="signature",
    version=3,
    config=SignatureConfig,
    run=signature,
    inputs=("onnx",),
    outputs={"signature": "signature.json"},
    tools=("onnx",),
)
