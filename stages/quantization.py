"""Which tensors carry Q/DQ: shared by `calibrate`, which observes them, and `quantize`, which inserts the nodes.

The placement is NVIDIA's for explicit quantization, rule by rule, in this order:

1. `weighted`: inputs and weights of convolutions and matrix products, no bias.
2. `attention`: the products around a Softmax, where the user asks for it.
3. `residual`: of a residual Add the shortcut only; of a gated one also what scales it.
4. `shared`: one scale for tensors that pooling, shape operators and Concat lie between.

Subgraphs (`If`, `Loop`, `Scan`) stay in float.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from stages import onnx_graph
from stages.placement.attention import quantize_attention
from stages.placement.contract import Choice, Placement, Rule, View
from stages.placement.residual import quantize_gated, quantize_shortcuts
from stages.placement.shared import share_scales
from stages.placement.weighted import WEIGHTED, is_weighted, quantize_weighted
from stages.stage import StageError

if TYPE_CHECKING:
    from onnx import ModelProto

RULES: tuple[Rule, ...] = (quantize_weighted, quantize_attention, quantize_shortcuts, quantize_gated)
"""Each sees what those before it chose."""

ATTENTION = ("none", "qk_pv")
"""What `attention` may be."""


def place(model: ModelProto, skipped: Collection[str] = (), attention: str = "none") -> Placement:
    """Where Q/DQ go in `model`, with the nodes whose labels are `skipped` left in float.

    Skipping only takes away: the tensors are a subset of those without it, so that ranges serve every choice.
    """
    view, choice = View(model.graph), Choice(skipped, attention)
    for rule in RULES:
        rule(view, choice)
    reads = tuple(sorted(set(choice.reads), key=lambda read: (read.node, read.input)))
    weighted = tuple(onnx_graph.label(node) for node in view.nodes if is_weighted(node))
    chosen = Placement(reads, weighted, tuple(name for name in weighted if name in set(choice.quantized)))
    return Placement(chosen.reads, chosen.weighted, chosen.quantized, share_scales(view, chosen.activations))


def is_quantized(model: ModelProto) -> bool:
    """Whether `model` has Q/DQ nodes already."""
    return any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node)


def nothing_to_quantize(model: ModelProto) -> StageError:
    """The error for a model that `place` finds nothing in, or that is quantized already."""
    if is_quantized(model):
        return StageError(
            "the model has QuantizeLinear or DequantizeLinear nodes already",
            "build it with flow=qat, which keeps them; so do fp32 and fp16",
        )
    found = sum(map(is_weighted, model.graph.node))
    return StageError(
        f"nothing to quantize: {found} of {len(model.graph.node)} nodes are {', '.join(WEIGHTED)}, and none has a "
        "constant float weight and an input that is not constant",
        "run surgery first, which makes weights constant, or use another flow: fp16",
    )
