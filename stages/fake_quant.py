"""Holds a plan against the Q/DQ of the model that it was built from: what they ask for must not be computed in float.

    x ─ Q ─ DQ ─ Conv ─        asks for a convolution that reads codes, INT8 or FP8, and so does a Transpose,
    w ─ Q ─ DQ ───┘            MaxPool, Reshape, … between DQ and Conv: TensorRT moves DQ behind it

    x ──────────── Conv ─      asks for none: the weight is only stored in codes
    w ─ Q ─ DQ ──────┘

TensorRT-RTX 1.7.1 computes the first one in float without a word on capability 7.5, and every ConvTranspose on all: it
rounds what goes in ("fake quantization"), at the accuracy of INT8 and the speed of float. A plan for that says so in
its graph, `stages.plan_graph`; what is asked is read from the ONNX file, so that nobody has to say it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stages import onnx_graph, plan_graph
from stages.placement.codes import code_type
from stages.placement.contract import View
from stages.placement.shared import moved_from
from stages.placement.weighted import is_weighted
from stages.plan_graph import Graph, Operation
from stages.stage import Metrics, StageError
from stages.wording import listed

if TYPE_CHECKING:
    from onnx import ModelProto

CODES = {"INT8": "int8", "FLOAT8E4M3FN": "fp8_e4m3", "FLOAT4E2M1": "fp4_e2m1"}
"""ONNX's names of the types of codes, and a plan's."""


@dataclass(frozen=True)
class Product:
    """A quantized convolution or matrix product of a model.

    Attributes:
        label: How people call it: its name, or its first output.
        operator: `Conv`, …
    """

    label: str
    operator: str


@dataclass(frozen=True)
class Products:
    """What became of the quantized convolutions and matrix products of a model, by the names that a plan gives them.

    Attributes:
        asked: Those that the model asks for.
        kept: Those that read codes.
        in_float: Those that do not.
        not_found: Those that no convolution or product of the plan is said to compute: they became something else.
    """

    asked: Mapping[str, Product]
    kept: tuple[str, ...]
    in_float: tuple[str, ...]
    not_found: tuple[str, ...]


def checked(content: bytes, path: Path, compute_capability: str, allowed: bool) -> Metrics:
    """Holds the plan at `path` against its model.

    Args:
        content: The model as the parser was given it; weights may be missing.
        path: The plan.
        compute_capability: What it was built for; for the message.
        allowed: Whether products in float are taken as they are.

    Returns:
        Metrics: `quantized_asked`, `quantized_kept` (convolutions and matrix products), `quantized_in_float` and
        `quantized_not_found` (their names); where the plan's graph cannot be read these three are null, and
        `quantized_unchecked_reason` says why.

    Raises:
        StageError: Some are computed in float, and that is not allowed.
    """
    from onnx import ModelProto

    wanted = asked(ModelProto.FromString(content)) if b"DequantizeLinear" in content else {}
    reason = plan_graph.why_unreadable(path)
    if reason:
        keys = ("quantized_kept", "quantized_in_float", "quantized_not_found")
        return {"quantized_asked": len(wanted), **dict.fromkeys(keys), "quantized_unchecked_reason": reason}
    found = compared(wanted, plan_graph.read(path) if wanted else [])
    if found.in_float and not allowed:
        raise _error(found, compute_capability)
    return {
        "quantized_asked": len(found.asked),
        "quantized_kept": len(found.kept),
        "quantized_in_float": [found.asked[name].label for name in found.in_float],
        "quantized_not_found": [found.asked[name].label for name in found.not_found],
        "quantized_unchecked_reason": None,
    }


def asked(model: ModelProto) -> dict[str, Product]:
    """The convolutions and matrix products that shall read codes, by their names in a plan.

    Those inside `If`, `Loop` and `Scan` are not looked at.
    """
    view = View(model.graph)
    return {
        node.name or f"node_of_{node.output[0]}": Product(onnx_graph.label(node), node.op_type)
        for node in view.nodes
        if is_weighted(node) and _code_type(view, node.input[0]) == _code_type(view, node.input[1]) is not None
    }


def compared(asked: Mapping[str, Product], graphs: Sequence[Graph]) -> Products:
    """What became of `asked`; of a plan with several profiles, each must read codes in all of them."""
    reading: dict[str, list[bool]] = {name: [] for name in asked}
    for operation in (each for graph in graphs for each in graph.operations if each.is_weighted):
        for name in set(operation.nodes) & asked.keys():
            reading[name].append(_reads_codes(operation))
    return Products(
        asked,
        kept=tuple(name for name, reads in reading.items() if reads and all(reads)),
        in_float=tuple(name for name, reads in reading.items() if not all(reads)),
        not_found=tuple(name for name, reads in reading.items() if not reads),
    )


def _reads_codes(operation: Operation) -> bool:
    """Whether both factors are codes; a fusion and an attention read scales and biases between them."""
    factors = operation.reads[:2] if operation.kind in plan_graph.FACTORS_FIRST else operation.reads
    return sum(kind in CODES.values() for kind in factors) >= 2


def _code_type(view: View, name: str) -> str | None:
    """The type of the codes that `name` is dequantized from, moved perhaps; None for a float."""
    made = view.maker(name)
    while made is not None and made[1].op_type != "DequantizeLinear":
        sources = moved_from(view, made[1])
        made = view.maker(sources[0]) if len(sources) == 1 else None
    if made is None:
        return None
    quantize = view.maker(made[1].input[0])
    kinds = [code_type(view, each[1]) for each in (made, quantize) if each is not None]
    return next((CODES[kind] for kind in kinds if kind in CODES), None)


def _error(found: Products, compute_capability: str) -> StageError:
    names = [f"{found.asked[name].operator} {found.asked[name].label!r}" for name in found.in_float]
    return StageError(
        f"the plan for {compute_capability} computes {len(names)} of {len(found.asked)} quantized convolutions and "
        f"matrix products in float: {listed(names)}",
        f"{_way(found)}; steps.build.config.allow_fake_quant=true takes it as it is",
    )


def _way(found: Products) -> str:
    lost = [found.asked[name] for name in found.in_float]
    if {each.operator for each in lost} == {"ConvTranspose"}:
        return "leave them in float: steps.quantize.config.skip_ops=[ConvTranspose]"
    if len(lost) == len(found.asked):
        return "build in fp16 (flow=fp16), or for another target"
    return f"leave them in float: 'steps.quantize.config.skip=[{','.join(each.label for each in lost)}]'"
