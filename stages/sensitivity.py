"""The stage `sensitivity`: how much each layer alone costs when it is quantized, measured at the model's outputs.

For each layer the model runs with this one quantized and every other in float, on some batches. One session serves all:
each read of a quantized tensor becomes a choice between the two, and which layer is on is an input.

    x ─ Q ─ DQ ─ Conv      →      x ─┬─ Q ─ DQ ─ Where(layer's switch) ─ Conv
                                     └──────────────┘
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import batches, exact_runs, onnx_file, onnx_graph, quantization, quantize, tensor_ranges, trial
from stages.allowed import require_at_least, require_word
from stages.comparison import Comparison
from stages.data import reading
from stages.placement.contract import Read, View
from stages.placement.weighted import is_weighted
from stages.stage import JSON, Job, Metrics, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

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
    """Writes the SQNR of the worst output for each layer.

    Raises:
        StageError: Nothing to quantize, ranges of another model, or a model that cannot run on the data.
    """
    reference = onnx_file.read(job.inputs["onnx"])
    onnx_graph.adopt_weights(reference)
    names = trial.output_tensors(reference)
    given = reading.opened(job, "calibration", batches.model_inputs(reference))
    feeds = trial.Slice(given, job.config.samples)
    switched, operators = _switched(job)
    float_session, session = exact_runs.open_exact(reference), exact_runs.open_exact(switched)
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
    about: Metrics = {"precision": job.config.precision, "samples": feeds.samples, "batches": feeds.batches}
    text = json.dumps({**about, "layers": layers}, indent=1, allow_nan=False) + "\n"
    (job.out / "sensitivity.json").write_text(text, encoding="utf-8")
    measured = {layer: decibels for layer, decibels in found.items() if decibels is not None}
    worst = sorted(measured, key=lambda layer: measured[layer])[:10]
    return {**about, "layers": len(layers), "worst": {layer: measured[layer] for layer in worst}}


def _decibels(compared: Comparison) -> float | None:
    """The SQNR of the worst output, to 0.01 dB; None where no output changes or none had a signal."""
    worst = max(compared.outputs.values(), key=lambda each: each.noise_ratio)
    return None if worst.sqnr_db is None else round(worst.sqnr_db, 2)


def _switches(operators: Mapping[str, str], on: str) -> dict[str, batches.Array]:
    import numpy as np

    return {_switch(layer): np.array(layer == on) for layer in operators}


def _switch(layer: str) -> str:
    return f"quantized/{layer}"


def _switched(job: Job[SensitivityConfig]) -> tuple[ModelProto, dict[str, str]]:
    """The model with a switch for each layer, and the operator of each.

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
    view = View(model.graph)
    layers = [_layer(view, read) for read in placement.reads]
    # A node goes by its first output: indices change as pairs are put in.
    places = [(model.graph.node[read.node].output[0], read) for read in placement.reads]
    amax = {name: each.amax for name, each in ranges.items()}
    quantize.insert(model, placement, amax, job.config.precision)
    _put_switches(model, places, [name for name, _ in layers])
    trial.round_weights(model)
    return model, dict(layers)


def _layer(view: View, read: Read) -> tuple[str, str]:
    """Label and operator of the layer that `read` is of: of a weight behind a Transpose, what it is the weight of."""
    node = view.nodes[read.node]
    while read.axis is not None and not is_weighted(node):
        node = view.nodes[view.readers[node.output[0]][0][0]]
    return onnx_graph.label(node), node.op_type


def _put_switches(model: ModelProto, places: list[tuple[str, Read]], layers: list[str]) -> None:
    """Lets each of `places` read its tensor quantized or as it was, by the switch of its layer."""
    from onnx import TensorProto, helper

    graph, taken = model.graph, onnx_graph.names(model.graph)
    makers, added = onnx_graph.producers(graph), []
    for (output, read), layer in zip(places, layers, strict=True):
        node = makers[output]
        chosen = onnx_graph.fresh(f"{read.tensor}_chosen", taken)
        added.append(helper.make_node("Where", [_switch(layer), node.input[read.input], read.tensor], [chosen]))
        node.input[read.input] = chosen
    switches = dict.fromkeys(map(_switch, layers))
    graph.input.extend(helper.make_tensor_value_info(name, TensorProto.BOOL, []) for name in switches)
    onnx_graph.replace_nodes(graph, [*added, *graph.node])
    onnx_graph.sort(graph)


STAGE = Stage(
    name="sensitivity",
    version=1,
    config=SensitivityConfig,
    run=sensitivity,
    inputs=("onnx", "ranges", "calibration"),
    optional=("calibration_source",),
    outputs={"sensitivity": "sensitivity.json"},
    facts=("calibration",),
    tools=("onnx", "onnxruntime", "numpy"),
)
