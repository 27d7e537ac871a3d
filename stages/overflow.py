"""Which nodes of a float32 model would leave float16's range, found by running the model over real batches.

ONNX Runtime computes many float16 operators in float32 on a CPU and cannot show it, so the float32 model is looked at:
the largest magnitude of each tensor, what some operators add up or exponentiate inside, and the smallest divisors.
Only these numbers leave a run, each tensor is freed where the model frees it: of a network of 16 images the peak was
246 MB with it and 245 MB without, and 1,256 MB where every tensor was an output.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from math import exp, isfinite, prod
from typing import TYPE_CHECKING

from stages import exact_runs, onnx_file, onnx_graph
from stages.batches import size
from stages.lowering import DIVISORS, FLOAT, types_of

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

    from stages.batches import Batch

LARGEST = 65504.0
"""float16's largest number."""

LIMIT = LARGEST / 2
"""What a tensor may reach on calibration data. The factor is for data that were not seen: of digits' 22 tensors one
reaches 1.27 times on held-out images what it reached on calibration data, and no other more than 1.15 times."""

SMALLEST_DIVISOR = 2.0**-14
"""float16's smallest normal number, 6.1e-5: below it digits are lost, and below 2**-25 a number becomes 0."""

AVERAGES = ("GlobalAveragePool", "ReduceMean")
"""Each result of theirs is the mean of as many elements as there are inputs for one output."""

EXP_LIMIT = 700.0
"""exp of more is no float64."""


@dataclass
class Unsafe:
    """What runs of a model reached.

    Attributes:
        overflow: The largest magnitude that an input, an output or an inner sum of a node reaches, by the node's label;
            only of nodes that pass `LIMIT`.
        underflow: The smallest divisor that a node reads or makes, by label; only below `SMALLEST_DIVISOR`.
        samples: How many samples were looked at.
    """

    overflow: dict[str, float] = field(default_factory=dict)
    underflow: dict[str, float] = field(default_factory=dict)
    samples: int = 0


class Probed:
    """A session of a model whose tensors are reduced to one number each, right behind what makes them.

    Infinity is infinity in float16, too, so that a tensor that holds it says nothing.

    Args:
        model: In float32, unchanged; what is in other types is not looked at, nor what is inside subgraphs.

    Raises:
        StageError: ONNX Runtime cannot load the model, or its types cannot be inferred.
    """

    def __init__(self, model: ModelProto) -> None:
        from onnx import ModelProto

        probed = ModelProto()
        probed.CopyFrom(model)
        graph = probed.graph
        self._constants = onnx_graph.constants(graph)
        self._floats = {name for name, type_ in types_of(model).items() if type_.tensor_type.elem_type == FLOAT}
        self._floats -= self._constants.keys()
        self._taken = onnx_graph.names(graph)
        self._watched = [node for node in graph.node if self._tensors(node)]
        self._largest: dict[str, str] = {}
        self._inverse: dict[str, str] = {}
        self._counts: dict[str, tuple[str, str]] = {}
        self._nodes: list[NodeProto] = []
        for value in graph.input:
            self._probe(value.name)
        for node in list(graph.node):
            self._nodes.append(node)
            for name in node.output:
                self._probe(name)
            self._probe_inside(node)
        onnx_graph.replace_nodes(graph, self._nodes)
        self._outputs = [*self._largest.values(), *self._inverse.values(), *chain(*self._counts.values())]
        self._session = exact_runs.open_exact(probed, self._outputs)
        self._runs = 0

    def look(self, batch: Batch, found: Unsafe) -> None:
        """Runs the model on `batch`, and enters into `found` what it reaches.

        Raises:
            StageError: The model fails on the batch.
        """
        given = exact_runs.run(self._session, self._outputs, batch, self._runs)
        values = {name: float(value) for name, value in given.items()}
        self._runs += 1
        found.samples += size(batch)
        for node in self._watched:
            label = onnx_graph.label(node)
            reached = [values[self._largest[name]] for name in self._tensors(node)]
            largest = max((value for value in (*reached, self._inside(node, values)) if isfinite(value)), default=0.0)
            if largest > LIMIT:
                found.overflow[label] = max(largest, found.overflow.get(label, 0.0))
            inverse = max((values[self._inverse[name]] for name in self._divisors(node)), default=0.0)
            if isfinite(inverse) and inverse * SMALLEST_DIVISOR > 1:
                found.underflow[label] = min(1 / inverse, found.underflow.get(label, 1.0))

    def _tensors(self, node: NodeProto) -> list[str]:
        return [name for name in (*node.input, *node.output) if name in self._floats]

    def _divisors(self, node: NodeProto) -> list[str]:
        """The divisors that `node` makes, and the one that it divides by."""
        index = DIVISORS.get(node.op_type)
        read = [node.input[index]] if index is not None and self._divides(node) else []
        return [name for name in (*read, *node.output) if name in self._inverse]

    def _probe(self, name: str) -> None:
        if name in self._floats:
            self._largest[name] = self._chain(name, "Abs", "ReduceMax")

    def _probe_inside(self, node: NodeProto) -> None:
        """Probes what `node` divides by, or how many elements it averages."""
        index = DIVISORS.get(node.op_type)
        divisor = node.input[index] if index is not None and self._divides(node) else None
        if divisor in self._floats and divisor not in self._inverse:
            self._inverse[divisor] = self._chain(divisor, "Abs", "Reciprocal", "ReduceMax")
        if node.op_type in AVERAGES and node.output[0] in self._floats:
            self._counts[node.output[0]] = self._chain(node.input[0], "Size"), self._chain(node.output[0], "Size")

    def _divides(self, node: NodeProto) -> bool:
        """Whether a power has a negative exponent; every other operator of `DIVISORS` counts."""
        if node.op_type != "Pow":
            return True
        exponent = self._constants.get(node.input[1])
        return exponent is not None and float(onnx_file.array(exponent).min(initial=0)) < 0

    def _inside(self, node: NodeProto, values: Mapping[str, float]) -> float:
        """The largest magnitude that `node` has inside; 0 where it is no larger than its inputs and outputs.

        NVIDIA warns that a float16 Reduce may overflow: means are sums before they are divided, norms are squares
        before their root, and logarithms of sums have the sums inside. Products (Conv, Gemm, MatMul) add up in float32
        in tensor cores, the normalization operators compute in float32 unless told otherwise, Softmax subtracts the
        largest value first, and Sigmoid, Tanh and their like are right at infinity, too: all of these are safe.
        """
        name = node.output[0]
        made = values[self._largest[name]] if name in self._floats else 0.0
        if name in self._counts:
            whole, means = (values[count] for count in self._counts[name])
            return made * whole / max(means, 1.0)
        if node.op_type == "AveragePool":
            kernel = next((attribute.ints for attribute in node.attribute if attribute.name == "kernel_shape"), [1])
            return made * prod(kernel)
        if node.op_type == "ReduceL2":
            return made**2
        if node.op_type in ("ReduceLogSum", "ReduceLogSumExp"):
            return exp(min(made, EXP_LIMIT))
        if node.op_type in ("Mish", "Softplus") and node.input[0] in self._floats:
            return exp(min(values[self._largest[node.input[0]]], EXP_LIMIT))
        return 0.0

    def _chain(self, name: str, *operators: str) -> str:
        """Adds these operators, each on the result of the one before it, and gives the last one's name."""
        from onnx import helper

        for operator in operators:
            result = onnx_graph.fresh(f"{name}_{operator}", self._taken)
            self._nodes.append(helper.make_node(operator, [name], [result]))
            if operator.startswith("Reduce"):
                self._nodes[-1].attribute.append(helper.make_attribute("keepdims", 0))
            name = result
        return name
