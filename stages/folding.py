"""Constant folding by our own means: nodes whose inputs are all constants are run by ONNX Runtime, once, here.

Libraries were measured on 5,416 cases made of ONNX's backend tests: polygraphy and graphsurgeon broke 582 (they
ignore `start` and `end` of `Shape`, which torch exports), onnxsim 101, onnxslim 344, ONNX Runtime 1,082.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING

from stages import onnx_file, onnx_graph, onnx_shapes

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from onnx import ModelProto, NodeProto, TensorProto, TypeProto

    Array = npt.NDArray[np.generic]

KNOWN_DOMAINS = ("", "ai.onnx", "ai.onnx.ml")

RANDOM = frozenset(
    {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike"}
)
"""Another result every time."""

LEFT_ALONE = RANDOM | {"Constant", "Identity", "QuantizeLinear", "DequantizeLinear"}
"""Q/DQ around a weight is what tells TensorRT to keep it in INT8; folded, it would be a float weight again."""


@dataclass
class Folding:
    """What a round of folding did.

    Attributes:
        folded: How many nodes became constants.
        left: Why a node with constant inputs stayed, by the node's label.
    """

    folded: int = 0
    left: dict[str, str] = field(default_factory=dict)


def fold(model: ModelProto, inferred: ModelProto | None, max_bytes: int) -> Folding:
    """Replaces what does not depend on the inputs by initializers, in one pass over the sorted graph.

    Args:
        model: Changed in place.
        inferred: Its shapes, for `Shape` and `Size`; None where inference failed.
        max_bytes: A result larger than this, and larger than the constants it is made of, stays a node.
    """
    known = onnx_graph.constants(model.graph)
    types = onnx_shapes.tensor_types(inferred) if inferred else {}
    done, kept, tensors = Folding(), [], []
    for node in model.graph.node:
        results = _shape_result(node, types)
        if results is None and _is_constant(plain := _as_cast(node, types), known):
            results = _evaluate(plain, model, known, max_bytes, done)
        if results is None:
            kept.append(node)
            continue
        done.folded += 1
        known.update({tensor.name: tensor for tensor in results})
        tensors += results
    if done.folded:
        onnx_graph.replace_nodes(model.graph, kept)
        model.graph.initializer.extend(tensors)
    return done


def _dims(type_: TypeProto) -> list[int | None] | None:
    """The dimensions of a tensor, None for each that is not static; None if even their number is unknown."""
    if not type_.HasField("tensor_type") or not type_.tensor_type.HasField("shape"):
        return None
    dims = map(onnx_file.dimension, type_.tensor_type.shape.dim)
    return [dim if isinstance(dim, int) else None for dim in dims]


def _shape_result(node: NodeProto, types: dict[str, TypeProto]) -> list[TensorProto] | None:
    """The result of a `Shape` or `Size` whose dimensions are known.

    `Shape` of a tensor (N, 3, 8, 8) with start=1 is (3, 8, 8), though N is not known.
    """
    import numpy as np
    from onnx import numpy_helper

    if node.op_type not in ("Shape", "Size") or node.domain not in ("", "ai.onnx"):
        return None
    shape = _dims(types[node.input[0]]) if node.input[0] in types else None
    if shape is None:
        return None
    bounds = {attribute.name: attribute.i for attribute in node.attribute}
    wanted = shape[bounds.get("start", 0) : bounds.get("end", len(shape))]
    static = [d for d in wanted if d is not None]
    if len(static) < len(wanted):
        return None
    value = np.array(static if node.op_type == "Shape" else prod(static), np.int64)
    return [numpy_helper.from_array(value, node.output[0])]


def _as_cast(node: NodeProto, types: dict[str, TypeProto]) -> NodeProto:
    """`node`, or for a `CastLike` the `Cast` to the type, where that is known, of what it is to be like.

    torch exports the bias of a convolution that has none as Expand(CastLike(0, x)).
    """
    from onnx import helper

    if node.op_type != "CastLike" or node.domain not in ("", "ai.onnx"):
        return node
    like = types[node.input[1]].tensor_type.elem_type if node.input[1] in types else 0
    if not like:
        return node
    plain: NodeProto = helper.make_node("Cast", [node.input[0]], list(node.output), node.name, to=like)
    plain.attribute.extend(node.attribute)
    return plain


def _is_constant(node: NodeProto, known: dict[str, TensorProto]) -> bool:
    """Whether `node` gives the same result every time and may be replaced by it."""
    if node.domain not in KNOWN_DOMAINS or node.op_type in LEFT_ALONE or any(onnx_graph.subgraphs(node)):
        return False
    if node.op_type == "Dropout" and len(node.input) > 2:  # the third input says whether it is training
        return False
    return all(name in known for name in node.input if name)


def _evaluate(
    node: NodeProto, model: ModelProto, known: dict[str, TensorProto], max_bytes: int, done: Folding
) -> list[TensorProto] | None:
    """The results of `node`, or None, with the reason in `done.left`."""
    feeds = {name: known[name] for name in node.input if name}
    limit = max(max_bytes, *(_bytes(tensor) for tensor in feeds.values()), 0)
    try:
        if any(size > limit for size in _predicted_bytes(node, model, feeds)):
            raise _Left(f"its result is larger than {limit} bytes")
        results = _run(node, model, feeds)
    except _Left as reason:
        done.left[onnx_graph.label(node)] = str(reason)
        return None
    if any(_bytes(tensor) > limit for tensor in results):
        done.left[onnx_graph.label(node)] = f"its result is larger than {limit} bytes"
        return None
    return results


class _Left(Exception):  # noqa: N818 - not an error: the reason why a node stays as it is
    pass


def _bytes(tensor: TensorProto) -> int:
    from onnx import helper

    item = int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return prod(map(int, tensor.dims)) * item


def _submodel(node: NodeProto, model: ModelProto, feeds: dict[str, TensorProto]) -> ModelProto:
    """A model of `node` alone, with its constants as inputs, so that no weight is serialized."""
    from onnx import GraphProto, ModelProto, helper

    graph = GraphProto(name="constant", node=[node])
    for name, tensor in feeds.items():
        graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    for name in filter(None, node.output):
        graph.output.add(name=name)
    ir_version = min(model.ir_version, onnx_graph.MAX_ORT_IR)
    return ModelProto(ir_version=ir_version, opset_import=model.opset_import, graph=graph)


def _predicted_bytes(node: NodeProto, model: ModelProto, feeds: dict[str, TensorProto]) -> Iterator[int]:
    """The sizes of the results as far as shape inference knows them, before memory is spent on them.

    A 24 KiB model with Expand, Tile and ConstantOfShape made files of 49 MB with four of the libraries tried.
    """
    from onnx import helper, shape_inference

    sub = _submodel(node, model, feeds)
    sub.graph.initializer.extend(t for t in feeds.values() if t.ByteSize() <= onnx_shapes.HEAVY_BYTES)
    try:
        inferred = shape_inference.infer_shapes(sub, data_prop=True)
    except Exception as error:  # C++ raises InferenceError, RuntimeError and others
        raise _Left(f"its shape cannot be inferred: {onnx_graph.first_line(error)}") from error
    for value in inferred.graph.output:
        dims = _dims(value.type)
        if value.type.tensor_type.elem_type and dims is not None and None not in dims:
            item = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).itemsize
            yield prod(d or 0 for d in dims) * int(item)


def _run(node: NodeProto, model: ModelProto, feeds: dict[str, TensorProto]) -> list[TensorProto]:
    import onnxruntime as ort
    from onnx import numpy_helper

    odd = [t.data_type for t in feeds.values() if t.data_type not in _numpy_types()]
    if odd:
        raise _Left(f"numpy has no type for an input of it (ONNX type {odd[0]})")
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = ort.InferenceSession(
            _submodel(node, model, feeds).SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        odd_results = [value.type for value in session.get_outputs() if value.type not in _ORT_TYPES]
        if odd_results:
            raise _Left(f"its result is a {odd_results[0]}")
        arrays: list[Array] = session.run(None, {n: numpy_helper.to_array(t) for n, t in feeds.items()})
    except _Left:
        raise
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise _Left(f"ONNX Runtime: {onnx_graph.first_line(error)}") from error
    results = zip(filter(None, node.output), arrays, strict=True)
    return [numpy_helper.from_array(array, name) for name, array in results]


_PLAIN: tuple[str, ...] = ("bool", "double", "float", "float16", "int16", "int32", "int64", "int8")
_PLAIN += ("uint16", "uint32", "uint64", "uint8")
_ORT_TYPES = frozenset(f"tensor({name})" for name in _PLAIN)
"""The types that numpy and ONNX Runtime exchange."""


def _numpy_types() -> frozenset[int]:
    from onnx import TensorProto

    return frozenset(TensorProto.DataType.Value(name.upper()) for name in _PLAIN)
