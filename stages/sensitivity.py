"""The stage `sensitivity`: what quantizing costs, for each layer alone at the model's outputs, and for each tensor.

For each layer the model runs with this one quantized and every other in float, on some batches. One session serves all:
each read of a quantized tensor becomes a choice between the two, and which layer is on is an input.

    x ─ Q ─ DQ ─ Conv      →      x ─┬─ Q ─ DQ ─ Where(layer's switch) ─ Conv
                                     └──────────────┘

For each tensor that carries Q/DQ its codes are compared with its own values in float. A tensor of a low ratio has a
range that does not suit it; a layer of a low one whose tensors have a high one is where the model bears no error.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import TYPE_CHECKING

from stages import batches, exact_runs, onnx_file, onnx_graph, quantization, quantize, tensor_ranges, trial
from stages.allowed import require_at_least, require_word
from stages.comparison import Comparison
from stages.data import reading
from stages.placement.contract import Read, View
from stages.placement.weighted import is_weighted
from stages.stage import JSON, Job, Metrics, Stage

if TYPE_CHECKING:
    from onnx import ModelProto


@dataclass(frozen=True)
class SensitivityConfig:
    """What is measured.

    Attributes:
        precision: As quantize's: `int8` or `fp8`.
        attention: As quantize's: `none` or `qk_pv`.
        samples: About how many samples are run, in batches spread evenly over the calibration data. Each batch runs
            once for each layer.
    """

    precision: str = "int8"
    attention: str = "none"
    samples: int = 32

    def __post_init__(self) -> None:
        require_word(self, "precision", tuple(quantize.PRECISIONS))
        require_word(self, "attention", quantization.ATTENTION)
        require_at_least(self, 1, "samples")


def sensitivity(job: Job[SensitivityConfig]) -> Metrics:
    """Writes the SQNR of the worst output for each layer, and of each quantized tensor.

    Raises:
        StageError: Nothing to quantize, ranges of another model, or a model that cannot run on the data.
    """
    reference = onnx_file.read(job.inputs["onnx"])
    onnx_graph.adopt_weights(reference)
    names = trial.output_tensors(reference)
    given = reading.opened(job, "calibration", batches.model_inputs(reference))
    feeds = trial.Slice(given, job.config.samples)
    tensors = _tensors(job, _quantized(job), trial.Slice(given, job.config.samples))
    quantized = _quantized(job)
    operators, readers = _switched(quantized), quantized.readers
    float_session, session = exact_runs.open_exact(reference), exact_runs.open_exact(quantized.model)
    compared = {layer: Comparison(layer) for layer in operators}
    for number, batch in enumerate(feeds):
        expected = exact_runs.run(float_session, names, batch, number)
        for done, layer in enumerate(operators):
            got = exact_runs.run(session, names, {**batch, **_switches(operators, layer)}, number)
            compared[layer].add(expected, got, None)
            job.progress(f"batch {number + 1}", (done + 1) / len(operators))
    found = {layer: _decibels(each) for layer, each in compared.items()}
    layers: dict[str, JSON] = {
        layer: {"operator": operators[layer], "sqnr_db": decibels} for layer, decibels in found.items()
    }
    written: dict[str, JSON] = {
        name: {"kind": each.kind, "sqnr_db": each.sqnr_db, "layers": readers[name]} for name, each in tensors.items()
    }
    about: Metrics = {"precision": job.config.precision, "samples": feeds.samples, "batches": feeds.batches}
    text = json.dumps({**about, "layers": layers, "tensors": written}, indent=1, allow_nan=False) + "\n"
    (job.out / "sensitivity.json").write_text(text, encoding="utf-8")
    measured = {layer: decibels for layer, decibels in found.items() if decibels is not None}
    worst = sorted(measured, key=lambda layer: measured[layer])[:10]
    noisy = sorted((each.sqnr_db, name) for name, each in tensors.items() if each.sqnr_db is not None)[:10]
    return {
        **about,
        "layers": len(layers),
        "worst": {layer: measured[layer] for layer in worst},
        "tensors": len(tensors),
        "worst_tensors": {name: decibels for decibels, name in noisy},
    }


def _decibels(compared: Comparison) -> float | None:
    """The SQNR of the worst output, to 0.01 dB; None where no output changes or none had a signal."""
    worst = max(compared.outputs.values(), key=lambda each: each.noise_ratio)
    return None if worst.sqnr_db is None else round(worst.sqnr_db, 2)


@dataclass
class _Tensor:
    """A tensor beside its codes.

    Attributes:
        kind: `activation` or `weight`.
        signal: The sum of its squares.
        noise: The sum of the squares of what its codes are off.
    """

    kind: str
    signal: float = 0.0
    noise: float = 0.0

    @property
    def sqnr_db(self) -> float | None:
        """To 0.01 dB; None where the codes are exact, or the tensor is all zeros."""
        return round(10 * log10(self.signal / self.noise), 2) if self.noise and self.signal else None


@dataclass
class _Quantized:
    """A model with all of its Q/DQ.

    Attributes:
        model: It.
        reads: Where tensors are read that carry Q/DQ.
        layers: Label and operator of the layer of each of them.
        nodes: The first output of the node of each: indices change as pairs are put in.
    """

    model: ModelProto
    reads: Sequence[Read]
    layers: Sequence[tuple[str, str]]
    nodes: Sequence[str]

    @property
    def readers(self) -> dict[str, list[str]]:
        """The layers that read each tensor."""
        found: dict[str, list[str]] = {}
        for read, (layer, _) in zip(self.reads, self.layers, strict=True):
            found.setdefault(read.tensor, []).append(layer)
        return found


def _tensors(job: Job[SensitivityConfig], quantized: _Quantized, feeds: trial.Slice) -> dict[str, _Tensor]:
    """What becomes of each tensor that carries Q/DQ, in the model in which nothing reads the codes.

    Raises:
        StageError: The model cannot run on the data.
    """
    model = quantized.model
    kinds = {read.tensor: "activation" if read.axis is None else "weight" for read in quantized.reads}
    _measure_codes(model, kinds)
    trial.round_weights(model)
    sums = [f"{kind}/{name}" for name in kinds for kind in ("signal", "noise")]
    session = exact_runs.open_exact(model)
    found = {name: _Tensor(kind) for name, kind in kinds.items()}
    for number, batch in enumerate(feeds):
        got = exact_runs.run(session, sums, batch, number)
        for name, each in found.items():
            each.signal += float(got[f"signal/{name}"])
            each.noise += float(got[f"noise/{name}"])
        job.progress(f"tensors of batch {number + 1}", None)
    return found


def _measure_codes(model: ModelProto, tensors: Collection[str]) -> None:
    """Leaves `model` in float; its only outputs are two scalars for each tensor: its energy and its codes' error."""
    from onnx import TensorProto, helper

    graph = model.graph
    pairs = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    codes = {node.output[0]: node for node in graph.node if node.op_type == "QuantizeLinear"}
    of = {output: codes[node.input[0]].input[0] for output, node in pairs.items()}
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = of.get(name, name)
    del graph.output[:]
    for output, name in of.items():
        if name in tensors and f"signal/{name}" not in {value.name for value in graph.output}:
            wide = [f"{kind}/{name}" for kind in ("wide", "wide codes", "error", "signal", "noise")]
            graph.node.extend(
                [
                    helper.make_node("Cast", [name], [wide[0]], to=TensorProto.DOUBLE),
                    helper.make_node("Cast", [output], [wide[1]], to=TensorProto.DOUBLE),
                    helper.make_node("Sub", wide[:2], [wide[2]]),
                    helper.make_node("ReduceSumSquare", [wide[0]], [wide[3]], keepdims=0),
                    helper.make_node("ReduceSumSquare", [wide[2]], [wide[4]], keepdims=0),
                ]
            )
            graph.output.extend(helper.make_tensor_value_info(each, TensorProto.DOUBLE, []) for each in wide[3:])


def _switches(operators: Mapping[str, str], on: str) -> dict[str, batches.Array]:
    import numpy as np

    return {_switch(layer): np.array(layer == on) for layer in operators}


def _switch(layer: str) -> str:
    return f"quantized/{layer}"


def _switched(quantized: _Quantized) -> dict[str, str]:
    """Puts a switch for each layer into the model; the operator of each layer."""
    _put_switches(quantized)
    trial.round_weights(quantized.model)
    return dict(quantized.layers)


def _quantized(job: Job[SensitivityConfig]) -> _Quantized:
    """The model with all of its Q/DQ, and where they are.

    Raises:
        StageError: Nothing to quantize, or ranges of another model.
    """
    model = onnx_file.read(job.inputs["onnx"])
    quantize.prepare(model, job.config.precision)
    placement = quantization.place(model, attention=job.config.attention)
    ranges = tensor_ranges.read(job.file("ranges"))
    tensor_ranges.require_match(
        ranges, placement.activations, onnx_graph.names(model.graph), "calibrate the same file that is measured"
    )
    view, reads = View(model.graph), placement.reads
    layers = [_layer(view, read) for read in reads]
    nodes = [model.graph.node[read.node].output[0] for read in reads]
    amax = {name: each.amax for name, each in ranges.items()}
    quantize.insert(model, placement, amax, job.config.precision)
    return _Quantized(model, reads, layers, nodes)


def _layer(view: View, read: Read) -> tuple[str, str]:
    """Label and operator of the layer that `read` is of: of a weight behind a Transpose, what it is the weight of."""
    node = view.nodes[read.node]
    while read.axis is not None and not is_weighted(node):
        node = view.nodes[view.readers[node.output[0]][0][0]]
    return onnx_graph.label(node), node.op_type


def _put_switches(quantized: _Quantized) -> None:
    """Lets each read of a tensor be of its codes or of what it was, by the switch of its layer."""
    from onnx import TensorProto, helper

    graph = quantized.model.graph
    taken, makers, added = onnx_graph.names(graph), onnx_graph.producers(graph), []
    for read, (layer, _), output in zip(quantized.reads, quantized.layers, quantized.nodes, strict=True):
        node = makers[output]
        chosen = onnx_graph.fresh(f"{read.tensor}_chosen", taken)
        added.append(helper.make_node("Where", [_switch(layer), node.input[read.input], read.tensor], [chosen]))
        node.input[read.input] = chosen
    switches = dict.fromkeys(_switch(layer) for layer, _ in quantized.layers)
    graph.input.extend(helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in switches)
    onnx_graph.replace_nodes(graph, [*added, *graph.node])
    onnx_graph.sort(graph)


STAGE = Stage(
    name="sensitivity",
    version=2,
    config=SensitivityConfig,
    run=sensitivity,
    inputs=("onnx", "ranges", "calibration"),
    optional=("calibration_source",),
    outputs={"sensitivity": "sensitivity.json"},
    facts=("calibration",),
    tools=("onnx", "onnxruntime", "numpy"),
)
