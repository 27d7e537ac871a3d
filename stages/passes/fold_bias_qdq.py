"""DequantizeLinear of a constant INT32 tensor = a constant in float: biases as ONNX Runtime's quantizer leaves them.

The float is (code - zero point) * scale, as the operator computes it. TensorRT dequantizes no INT32, and adds biases in
float or in the accumulator by itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages import onnx_data, onnx_graph
from stages.passes.contract import NoOptions, Pass
from stages.stage import Metrics

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from onnx import ModelProto, NodeProto, TensorProto


def fold_bias_qdq(model: ModelProto, options: NoOptions) -> Metrics:
    """Folds each; the codes go where nothing else reads them."""
    from onnx import numpy_helper

    graph, gone = model.graph, []
    known = onnx_graph.constants(graph)
    for node in graph.node:
        if not _is_bias(node, known):
            continue
        graph.initializer.append(numpy_helper.from_array(_dequantized(node, known), node.output[0]))
        gone.append(node)
    if gone:
        outputs = {node.output[0] for node in gone}
        onnx_graph.replace_nodes(graph, [node for node in graph.node if not outputs.intersection(node.output)])
        left = {name for node in graph.node for name in onnx_graph.reads(node)} | {v.name for v in graph.output}
        onnx_graph.drop_initializers(graph, {name for node in gone for name in node.input} - left)
        onnx_graph.drop_stale_values(graph)
    return {"folded": len(gone)}


def _is_bias(node: NodeProto, known: dict[str, TensorProto]) -> bool:
    from onnx import TensorProto

    constant = node.op_type == "DequantizeLinear" and all(name in known for name in node.input if name)
    return constant and known[node.input[0]].data_type == TensorProto.INT32


def _dequantized(node: NodeProto, known: dict[str, TensorProto]) -> npt.NDArray[np.floating]:
    """What `node` gives, in the float type of its scale."""
    import numpy as np

    codes, scale = (onnx_data.array(known[name]) for name in node.input[:2])
    zero = onnx_data.array(known[node.input[2]]) if len(node.input) > 2 and node.input[2] else np.int32(0)
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    if scale.ndim == 1 and codes.ndim:
        along = [-1 if d == axis % codes.ndim else 1 for d in range(codes.ndim)]
        scale, zero = scale.reshape(along), np.reshape(zero, along if np.ndim(zero) else [1] * codes.ndim)
    # An int32 has up to 31 bits, a float32 24: the product is rounded once, at its end.
    wide = (codes.astype(np.int64) - zero.astype(np.int64)) * scale.astype(np.float64)
    return np.asarray(wide, scale.dtype)


PASS = Pass("fold_bias_qdq", NoOptions, fold_bias_qdq)
