"""Which tensors carry Q/DQ: shared by `calibrate`, which observes them, and `quantize`, which inserts the nodes.

The placement is NVIDIA's for explicit quantization: the inputs and the weights of convolutions and matrix products, no
bias, and of a residual Add the shortcut only, so that Conv + Add (+ ReLU) stay one kernel:

    x ─┬─ Q/DQ ─ Conv ─ Relu ─ Q/DQ ─ Conv ─┐
       └────(the same Q/DQ)──────────────── Add ─ Relu
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import onnx_graph
from stages.stage import StageError

if TYPE_CHECKING:
    from onnx import GraphProto, ModelProto, NodeProto, TensorProto

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that TensorRT runs in INT8: the input is number 0, the weight number 1."""

LINEAR = ("Add", "BatchNormalization", "Div", "Identity", "Mul", "Sub")
"""With constants beside the input, these are folded into the convolution before them."""


@dataclass(frozen=True)
class Read:
    """One input of one node that shall read a quantized tensor.

    Attributes:
        node: The index of the node in the graph.
        input: The index of the node's input.
        tensor: What it reads now.
        axis: The axis of a weight's channels; None for an activation, which has one scale for the whole tensor.
    """

    node: int
    input: int
    tensor: str
    axis: int | None = None


@dataclass(frozen=True)
class Placement:
    """Where Q/DQ go.

    Attributes:
        reads: Every input that gets Q/DQ, in the graph's order; equal tensors (and axes) share one pair.
        weighted: The labels of all operators that could run in INT8.
        quantized: The labels of those that will.
    """

    reads: tuple[Read, ...]
    weighted: tuple[str, ...]
    quantized: tuple[str, ...]

    @property
    def activations(self) -> list[str]:
        """The tensors that need a range, each once, in the graph's order."""
        return list(dict.fromkeys(read.tensor for read in self.reads if read.axis is None))


def place(model: ModelProto, skipped: Collection[str] = ()) -> Placement:
    """Where Q/DQ go in `model`, with the nodes whose labels are `skipped` left in float.

    Skipping only takes away: the tensors are a subset of those without it, so that ranges serve every choice.
    """
    graph = model.graph
    known = onnx_graph.constants(graph)
    reads: list[Read] = []
    weighted, quantized = [], []
    for index, node in enumerate(graph.node):
        if not is_weighted(node):
            continue
        weighted.append(onnx_graph.label(node))
        axis = _channel_axis(node, known)
        if axis is not None and weighted[-1] not in skipped:
            quantized.append(weighted[-1])
            reads += [Read(index, 0, node.input[0]), Read(index, 1, node.input[1], axis)]
    reads += _shortcuts(graph, known, frozenset(quantized), skipped)
    reads.sort(key=lambda read: (read.node, read.input))
    return Placement(tuple(reads), tuple(weighted), tuple(quantized))


def is_weighted(node: NodeProto) -> bool:
    """Whether `node` is an operator that TensorRT can run in INT8."""
    return node.op_type in WEIGHTED and node.domain in ("", "ai.onnx")


def is_quantized(model: ModelProto) -> bool:
    """Whether `model` has Q/DQ nodes already."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)


def nothing_to_quantize(model: ModelProto) -> StageError:
    """The error for a model that `place` finds nothing in, or that is quantized already."""
    if is_quantized(model):
        return StageError(
            "the model has QuantizeLinear or DequantizeLinear nodes already",
            "build it with the flow fp32, which keeps them",
        )
    found = sum(map(is_weighted, model.graph.node))
    return StageError(
        f"nothing to quantize: {found} of {len(model.graph.node)} nodes are {', '.join(WEIGHTED)}, and none has a "
        "constant float weight and an input that is not constant",
        "run surgery first, which makes weights constant, or use another flow: fp16",
    )


def _channel_axis(node: NodeProto, known: dict[str, TensorProto]) -> int | None:
    """The axis of the output channels in the weight of `node`; None where it cannot run in INT8.

    Conv (M, C/g, …): 0. ConvTranspose (C, M/g, …): 1, which its groups share, since an axis of C would scale within
    the sum. Gemm (K, N): 1, and 0 where transB. MatMul (K, N): 1; a product of two activations stays in float.
    """
    from onnx import TensorProto

    weight = known.get(node.input[1])
    if weight is None or node.input[0] in known:
        return None
    if weight.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return None
    if node.op_type == "MatMul":
        return 1 if len(weight.dims) == 2 else None
    if node.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in node.attribute) else 1
    return 0 if node.op_type == "Conv" else 1


def _shortcuts(
    graph: GraphProto, known: dict[str, TensorProto], quantized: frozenset[str], skipped: Collection[str]
) -> list[Read]:
    """The shortcut input of each residual Add, one per Add."""
    branches, depth, found = _Branches(graph, known), _depths(graph), []
    for index, node in enumerate(graph.node):
        if node.op_type != "Add" or node.domain not in ("", "ai.onnx") or any(name in known for name in node.input):
            continue
        convs = {side: conv for side in (0, 1) if (conv := branches.conv_of(node.input[side])) is not None}
        if not convs:
            continue
        # Of a projection shortcut both sides are convolutions: the longer branch runs last and takes the Add along.
        main = max(convs, key=lambda side: (depth[node.input[side]], side))
        if onnx_graph.label(convs[main]) in quantized and onnx_graph.label(node) not in skipped:
            found.append(Read(index, 1 - main, node.input[1 - main]))
    return found


def _depths(graph: GraphProto) -> dict[str, int]:
    """How many nodes at most lie between the inputs and the result of each node."""
    depth: dict[str, int] = {}
    for node in graph.node:
        level = 1 + max((depth.get(name, 0) for name in onnx_graph.reads(node)), default=0)
        depth.update(dict.fromkeys(node.output, level))
    return depth


class _Branches:
    """Finds the convolution that a tensor comes from."""

    def __init__(self, graph: GraphProto, known: dict[str, TensorProto]) -> None:
        self._makers = onnx_graph.producers(graph)
        self._reads = Counter(name for node in graph.node for name in (*node.input, *onnx_graph.captures(node)))
        self._reads.update(value.name for value in graph.output)
        self._known = known

    def conv_of(self, name: str) -> NodeProto | None:
        """The Conv that gives `name`, perhaps scaled and shifted by constants, if only one node reads it."""
        while name in self._makers and self._reads[name] == 1:
            node = self._makers[name]
            if node.op_type == "Conv" and node.domain in ("", "ai.onnx"):
                return node
            moving = [other for other in node.input if other not in self._known]
            if node.op_type not in LINEAR or len(moving) != 1:
                return None
            name = moving[0]
        return None
