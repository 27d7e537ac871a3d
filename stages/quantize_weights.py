"""The stage `quantize_weights`: weights in INT8, INT4 or NVFP4, and everything computed in float as before.

Only the codes and a DequantizeLinear are stored, so that the plan is small and memory is read less; no data are needed.

    w ─ MatMul        →    codes ─ DequantizeLinear ─ MatMul

TensorRT-RTX 1.7.1 makes one kernel of such a product in INT8 and INT4; what it has for NVFP4 and for convolutions are
kernels of their own that dequantize the weights in every run (seen in the plans).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stages import batches, exact_runs, onnx_file, onnx_graph, quantization
from stages.allowed import require, require_word
from stages.data import reading
from stages.onnx_opset import opset, raise_opset
from stages.placement.contract import Read, View
from stages.placement.weighted import is_weighted
from stages.stage import Job, Metrics, Stage, StageError
from stages.weight_codes import FORMATS, Coded, encode

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

    from stages.weight_codes import Floats

BLOCKS = (32, 64, 128)
"""Block sizes of INT4 and INT8 that TensorRT has kernels for."""

PRODUCTS = ("Gemm", "MatMul")
"""What TensorRT reads INT4 and FP4 weights in, and blocks of INT8."""

HALF_SCALES_OPSET, BLOCKS_OPSET = 19, 21
"""The first opsets whose DequantizeLinear has scales in float16 and bfloat16, and blocks."""


@dataclass(frozen=True)
class QuantizeWeightsConfig:
    """Which weights become what.

    Attributes:
        precision: `int8`, `int4` or `nvfp4`.
        block_size: So many weights of one output channel share a scale: 32, 64 or 128, for nvfp4 always 16; null: 128
            for int4, and the whole channel for int8.
        clip_search: Tries for each scale whether a smaller one, which cuts off the largest weights, has less error;
            with calibration data the errors count by how large the inputs are that they are multiplied with.
        convolutions: For int8, stores the weights of convolutions, too: a smaller plan that takes longer.
        only: Glob patterns of node names; the weights of other nodes stay in float. Empty: all.
        skip: Glob patterns of node names whose weights stay in float.
    """

    precision: str = "int8"
    block_size: int | None = None
    clip_search: bool = False
    convolutions: bool = False
    only: list[str] = field(default_factory=list)
    skip: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_word(self, "precision", tuple(FORMATS))
        allowed = (16,) if self.precision == "nvfp4" else BLOCKS
        words = f"{', '.join(map(str, allowed))}, or null, for {self.precision}"
        require(self.block_size in (None, *allowed), "block_size", self.block_size, words)


@dataclass(frozen=True)
class _Weight:
    """A weight that will be stored in codes.

    Attributes:
        tensor: Its name.
        axis: Of the output channels.
        node: What is computed with it.
        factor: The input of `node` that it is multiplied with; None where `node` is no product of matrices.
        block: How many weights of a channel share a scale; None: all.
        reads: Who reads it.
    """

    tensor: str
    axis: int
    node: NodeProto
    factor: int | None
    block: int | None
    reads: list[Read]


def quantize_weights(job: Job[QuantizeWeightsConfig]) -> Metrics:
    """Writes the model with its weights in codes.

    Raises:
        StageError: There is no such weight, a pattern without a node, or batches that do not fit the model.
    """
    config, model = job.config, onnx_file.read(job.inputs["onnx"])
    onnx_graph.adopt_weights(model)
    if quantization.is_quantized(model):
        raise quantization.nothing_to_quantize(model)
    onnx_graph.adopt_constants(model.graph)
    raise_opset(model, _needed_opset(config))
    chosen, refused = _choose(model, config)
    if not chosen:
        raise _nothing(model, config, refused)
    importance = _importance(model, chosen, job) if config.clip_search else {}
    before, after = _store(model, chosen, importance, job)
    onnx_file.write(model, job.out / "model.onnx")
    return {
        "quantized": sorted({onnx_graph.label(weight.node) for weight in chosen}),
        "in_float": refused,
        "inputs_seen": bool(importance),
        "weight_bytes_before": before,
        "weight_bytes": after,
        "opset": opset(model),
    }


def precisions(config: QuantizeWeightsConfig) -> tuple[str, ...]:
    """What the target's GPU must be able to compute with."""
    return (config.precision,)


def _needed_opset(config: QuantizeWeightsConfig) -> int:
    least = FORMATS[config.precision].opset
    return max(least, BLOCKS_OPSET if config.block_size else HALF_SCALES_OPSET)


def _choose(model: ModelProto, config: QuantizeWeightsConfig) -> tuple[list[_Weight], dict[str, str]]:
    """The weights, each once for each axis of channels, and why other operators keep theirs in float."""
    nodes = model.graph.node
    skipped = onnx_graph.matching(nodes, config.skip, "skip")
    if config.only:
        skipped |= {*map(onnx_graph.label, nodes)} - onnx_graph.matching(nodes, config.only, "only")
    view = View(model.graph)
    chosen: dict[tuple[str, int], _Weight] = {}
    refused: dict[str, str] = {}
    for read in quantization.place(model, skipped).reads:
        if read.axis is None:
            continue
        weight, why = _weight(view, read, read.axis, config)
        if why:
            refused[onnx_graph.label(weight.node)] = why
        else:
            chosen.setdefault((weight.tensor, weight.axis), weight).reads.append(read)
    return list(chosen.values()), refused


def _weight(view: View, read: Read, axis: int, config: QuantizeWeightsConfig) -> tuple[_Weight, str]:
    """The weight that is read, and why it cannot be stored in `config.precision`; empty where it can."""
    node, position, reshaped = view.nodes[read.node], read.input, False
    while not is_weighted(node):  # Identity, Transpose and Reshape of a weight have one reader each
        reshaped |= node.op_type == "Reshape"
        index, position = view.readers[node.output[0]][0]
        node = view.nodes[index]
    dims = list(view.constants[read.tensor].dims)
    is_matrix = node.op_type in PRODUCTS and len(dims) == 2 and not reshaped
    factor = 1 - position if is_matrix else None
    block = config.block_size or FORMATS[config.precision].block
    if not is_matrix or block is None:
        weight = _Weight(read.tensor, axis, node, factor, None, [])
        if node.op_type not in PRODUCTS and not config.convolutions:
            return weight, "a convolution"
        return weight, "" if config.precision == "int8" else f"no blocks in a weight {dims} of {node.op_type}"
    length = dims[1 - axis]
    whole = length % block == 0 or (length < block and config.precision != "nvfp4")
    # TensorRT divides a channel by the number of its scales: 300 weights in blocks of 64 it takes for blocks of 60.
    why = "" if whole else f"{length} weights of a channel are no whole blocks of {block}"
    return _Weight(read.tensor, axis, node, factor, min(block, length), []), why


def _nothing(model: ModelProto, config: QuantizeWeightsConfig, refused: Mapping[str, str]) -> StageError:
    if refused:
        label, why = next(iter(refused.items()))
        return StageError(
            f"no weight can be {config.precision}: {why} ({label!r}, and {len(refused) - 1} others)",
            "use another block_size, or precision=int8, with convolutions=true where it shall be those",
        )
    if config.only or config.skip:
        return StageError("only and skip leave no weight to quantize", "skip fewer nodes")
    return quantization.nothing_to_quantize(model)


def _importance(model: ModelProto, chosen: list[_Weight], job: Job[QuantizeWeightsConfig]) -> dict[str, Floats]:
    """The sum of squares of what each weight of a channel is multiplied with, (K,), by the name of the weight tensor.

    An error in a weight is seen at the output as many times as large as its input is.
    """
    import numpy as np
    from onnx import ModelProto

    factors = {weight.tensor: _factor(weight) for weight in chosen if weight.factor is not None}
    if "calibration" not in job.inputs or not factors:
        return {}
    inputs = batches.model_inputs(model)
    given, seen = reading.opened(job, "calibration", inputs), 0
    probed = ModelProto()
    probed.CopyFrom(model)
    names = sorted({name for name, _ in factors.values()})
    session = exact_runs.open_exact(probed, names)
    computed = [name for name in names if name not in {each.name for each in inputs}]
    sums: dict[str, Floats] = {}
    for number, batch in enumerate(given):
        found = {**batch, **exact_runs.run(session, computed, batch, number)}
        for tensor, (name, axis) in factors.items():
            values = np.moveaxis(np.asarray(found[name], np.float32), axis, -1)
            squares = np.square(values.reshape(-1, values.shape[-1])).sum(axis=0)
            sums[tensor] = sums[tensor] + squares if tensor in sums else squares
        seen += batches.size(batch)
        job.progress("looking at inputs", given.share(seen))
    return sums


def _factor(weight: _Weight) -> tuple[str, int]:
    """The tensor that the weight is multiplied with, and the axis of it that the product sums over."""
    node, position = weight.node, weight.factor or 0
    if node.op_type == "Gemm":
        return node.input[position], 0 if any(a.name == "transA" and a.i for a in node.attribute) else 1
    return node.input[position], -1 if position == 0 else -2


def _store(
    model: ModelProto, chosen: list[_Weight], importance: Mapping[str, Floats], job: Job[QuantizeWeightsConfig]
) -> tuple[int, int]:
    """Puts codes in the place of the weights, and says how many bytes these and those take."""
    graph, config = model.graph, job.config
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes, taken = list(graph.node), onnx_graph.names(graph)
    inserted: list[NodeProto] = []
    stored: list[TensorProto] = []
    before = 0
    for number, weight in enumerate(chosen):
        job.progress("quantizing weights", number / len(chosen))
        given, seen = tensors[weight.tensor], importance.get(weight.tensor)
        before += onnx_file.nbytes(given)
        coded = encode(given, weight.axis, weight.block, FORMATS[config.precision], config.clip_search, seen)
        made = _Dequantized(given, coded, weight.block, taken)
        stored += made.tensors
        inserted += made.nodes
        for read in weight.reads:
            nodes[read.node].input[read.input] = made.nodes[-1].output[0]
    onnx_graph.replace_nodes(graph, [*inserted, *nodes])
    read_still = {name for node in graph.node for name in onnx_graph.reads(node)}
    read_still |= {value.name for value in graph.output}
    onnx_graph.drop_initializers(graph, {weight.tensor for weight in chosen} - read_still)
    graph.initializer.extend(stored)
    onnx_graph.sort(graph)
    return before, sum(map(onnx_file.nbytes, stored))


class _Dequantized:
    """The tensors of a coded weight, and the nodes that give the numbers back, the last one in the weight's type.

    NVFP4 goes through float32: TensorRT-RTX 1.7 cannot infer the type of a float16 DequantizeLinear of float4.
    """

    def __init__(self, weight: TensorProto, coded: Coded, block: int | None, taken: set[str]) -> None:
        self._weight, self._taken = weight, taken
        self.tensors = [coded.codes, coded.scale]
        self.nodes: list[NodeProto] = []
        coded.codes.name, coded.scale.name = self._fresh("codes"), self._fresh("scale")
        scale, attributes = coded.scale.name, {"axis": coded.axis}
        if block:
            attributes["block_size"] = block
        if coded.scale_of_scales is None:
            self._add("DequantizeLinear", "dequantized", coded.codes.name, scale, **attributes)
            return
        coded.scale_of_scales.name = self._fresh("scale_of_scales")
        self.tensors.append(coded.scale_of_scales)
        scale = self._add("DequantizeLinear", "scale_dequantized", scale, coded.scale_of_scales.name)
        result = self._add("DequantizeLinear", "dequantized", coded.codes.name, scale, **attributes)
        if weight.data_type != coded.scale_of_scales.data_type:
            self._add("Cast", "cast", result, to=weight.data_type)

    def _add(self, operator: str, what: str, *inputs: str, **attributes: int) -> str:
        from onnx import helper

        result = self._fresh(what)
        self.nodes.append(helper.make_node(operator, inputs, [result], result))
        self.nodes[-1].attribute.extend(helper.make_attribute(name, value) for name, value in attributes.items())
        return result

    def _fresh(self, what: str) -> str:
        return onnx_graph.fresh(f"{self._weight.name}_{what}", self._taken)


STAGE = Stage(
    name="quantize_weights",
    version=1,
    config=QuantizeWeightsConfig,
    run=quantize_weights,
    inputs=("onnx",),
    optional=("calibration", "calibration_source"),
    facts_when=lambda config: ("calibration",) if config.clip_search else (),
    outputs={"onnx": "model.onnx"},
    tools=("onnx", "onnxruntime", "numpy"),
    precisions=precisions,
)
