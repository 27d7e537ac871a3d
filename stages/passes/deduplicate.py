"""Initializers of one type, shape and value become one: exporters write the same scalar hundreds of times."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from stages import onnx_data, onnx_graph
from stages.passes.contract import NoOptions, Pass
from stages.stage import Metrics

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto


def deduplicate(model: ModelProto, options: NoOptions) -> Metrics:
    """Keeps the first of each; an initializer that the model returns stays.

    Of external tensors only those that lie in one place are the same: comparing others would read every weight.
    """
    graph = model.graph
    returned = {value.name for value in graph.output}
    hidden = onnx_graph.inner_names(graph)
    first: dict[object, str] = {}
    new_name: dict[str, str] = {}
    for tensor in graph.initializer:
        name = first.setdefault(_content(tensor), tensor.name)
        if name != tensor.name and tensor.name not in returned and not {name, tensor.name} & hidden:
            new_name[tensor.name] = name
    gone = {tensor.name: onnx_data.nbytes(tensor) for tensor in graph.initializer if tensor.name in new_name}
    onnx_graph.rename_reads(graph.node, new_name)
    onnx_graph.drop_initializers(graph, new_name)
    return {"dropped": len(gone), "dropped_bytes": sum(gone.values())}


def _content(tensor: TensorProto) -> object:
    from onnx import TensorProto

    kind = tensor.data_type, tuple(tensor.dims)
    if onnx_data.is_external(tensor):
        return kind, onnx_data.place(tensor)
    if tensor.data_type == TensorProto.STRING:
        return kind, tuple(tensor.string_data)
    return kind, sha256(onnx_data.array(tensor).tobytes()).digest()


PASS = Pass("deduplicate", NoOptions, deduplicate)
