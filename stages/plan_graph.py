"""Reads the graph that a TensorRT-RTX plan holds as text: which operations run, and in which types they read and write.

Undocumented; read off the plans of 1.7.1.116. Within the section `NGNE` there is a text for each optimization profile:

====== ===== ==============================================
offset bytes field
====== ===== ==============================================
0      4     `NLYM`
8      8     length of the text, which follows
====== ===== ==============================================

The text begins with `header {`, where the version of this layout and the memory budget stand. After `descriptors {`
there is a line `tensor={ … name="x" … type=int8 }` for each tensor, with a `const_payload_size` in bytes where the plan
holds its values, after `main {` one for each operation:

    corrltn={ name="conv1" output={"y" } input={"x" "w" "scale" } … layers="[ONNX Layer: conv1] [ONNX Layer: x_dq]" }
    function={ name=__myl_MulReluCast … input_args={ "y" "scale" } … output_args={ "z" } …

`corrltn` is a convolution, `deconvolution` a transposed one, `fully_connected` a matrix product; a `function` is a
kernel fused of what its name abbreviates, `_gemm_mha_v2` a whole attention. `layers` are the ONNX nodes in it, with the
character 1F between them, and perhaps with what became of them (`[ONNX Layer: conv2]__gemm_from_conv1x1`); a node that
the ONNX file does not name goes by `node_of_` and its first output. A `runtime_fusion` has a text of its own, which
names no memory budget and is not read: what it reads stands outside.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stages import plan
from stages.plan import PlanHeader
from stages.stage import StageError

FACTORS_FIRST = ("corrltn", "deconvolution", "fully_connected")
"""Convolutions and matrix products that read their two factors before all else."""

WEIGHTED = (*FACTORS_FIRST, "runtime_fusion")
"""And those fused with what comes before and after, which read in any order."""

ATTENTION = "_gemm_mha"

LAYOUT = 5
"""The version of the text that is known."""

_SECTION = "NGNE"
_TAG = b"NLYM"
_HEAD = struct.Struct("<4s4xQ")
_LAYOUT = re.compile(rb"\Aheader \{\n  version = (\d+)$", re.MULTILINE)
_MEMORY_BUDGET = re.compile(rb"^  memory_budget = (\d+)$", re.MULTILINE)
_TF32 = re.compile(rb"^  tf32=([01])$", re.MULTILINE)
_TENSOR = re.compile(
    rb'^  (?:sub_)?tensor=\{(?: alignment=\d+)?(?: const_payload_size=(\d+))?.*?\bname="([^"\n]+)".*\btype=(\w+) \}',
    re.MULTILINE,
)
_OPERATION = re.compile(rb'^  (\w+)=\{ name=(?:"([^"\n]*)"|(\S+))([^\n]*)', re.MULTILINE)
_READS = re.compile(rb'\binput(?:_args)?=\{((?: ?"[^"\n]*")*) \}')
_WRITES = re.compile(rb'\boutput(?:_args)?=\{((?: ?"[^"\n]*")*) \}')
_NAME = re.compile(rb'"([^"]+)"')
_NODES = re.compile(rb'\blayers="\[ONNX Layer: ([^\n]*\]\w*)"')
_BETWEEN_NODES = re.compile(r"\]\w*\x1f\[ONNX Layer: ")
_AFTER_NODES = re.compile(r"\]\w*$")


@dataclass(frozen=True)
class _Tensor:
    """A tensor's type as the plan calls it, and how many bytes of it the plan holds; 0: it is computed."""

    kind: str
    held_bytes: int


_UNKNOWN = _Tensor("?", 0)


@dataclass(frozen=True)
class Operation:
    """One step of a plan.

    Attributes:
        kind: As the plan calls it: `corrltn`, `function`, …
        name: Of a convolution or matrix product the ONNX node's, of a function what it is fused of.
        reads: The types of its inputs, in order: `int8`, `fp8_e4m3`, `half`, `float`, …; `?` for an unknown one.
        writes: The types of its outputs.
        nodes: The ONNX nodes that it computes, whole or in part, as the plan calls them.
        weights: The types of those of its inputs that the plan holds: weights, biases, scales.
        weight_bytes: The size of these; one that two operations read counts for both.
    """

    kind: str
    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    nodes: tuple[str, ...] = ()
    weights: tuple[str, ...] = ()
    weight_bytes: int = 0

    @property
    def factors(self) -> tuple[str, ...]:
        """Of a weighted one, the types among which its two factors are; a fusion reads scales and biases between."""
        return self.reads[:2] if self.kind in FACTORS_FIRST else self.reads

    @property
    def is_weighted(self) -> bool:
        """Whether it is a convolution, a matrix product or a fused attention."""
        return self.kind in WEIGHTED or self.name.startswith(ATTENTION)


@dataclass(frozen=True)
class Graph:
    """What runs for one optimization profile.

    Attributes:
        memory_budget_bytes: The most device memory that it was allowed to take: the pool `workspace`, about.
        operations: In the order in which they run.
        constants: How many bytes the plan holds for them, by type, each tensor once.
        tf32: Whether float products may be computed in TF32; None where the plan does not say.
    """

    memory_budget_bytes: int
    operations: tuple[Operation, ...]
    constants: Mapping[str, int] = field(default_factory=dict)
    tf32: bool | None = None


def why_unreadable(path: Path) -> str | None:
    """Why the graph of the plan at `path` cannot be read; None where it can.

    Raises:
        StageError: The file is no plan, or a damaged one.
    """
    header = plan.read(path)
    return header.unknown or _why_unreadable(_texts(path, header))


def read(path: Path) -> list[Graph]:
    """The graphs of the plan at `path`: one for each optimization profile.

    Raises:
        StageError: The file is no plan, or a damaged one; or its graph cannot be read: `why_unreadable`.
    """
    header = plan.read(path)
    texts = _texts(path, header)
    reason = header.unknown or _why_unreadable(texts)
    if reason:
        raise StageError(f"{path}: {reason}", "look at the engine on a GPU, with TensorRT's engine inspector")
    return [_graph(text) for text in texts]


def counts(operations: Sequence[Operation]) -> dict[str, dict[str, int]]:
    """How many weighted operations of each kind read each type: `{"corrltn": {"int8": 16}}`."""
    found: dict[str, Counter[str]] = {}
    for operation in operations:
        if operation.is_weighted and operation.reads:
            kind = operation.kind if operation.kind in WEIGHTED else operation.name
            found.setdefault(kind, Counter())[operation.reads[0]] += 1
    return {kind: dict(types) for kind, types in found.items()}


def _texts(path: Path, header: PlanHeader) -> list[bytes]:
    """The text of each graph; only the section that holds them is read, not the weights."""
    sections = [section for section in header.sections if section.tag == _SECTION]
    found = [text for section in sections for text in _texts_in(plan.content(path, section))]
    # A layout that is not known may call the budget something else: then all are judged by their version.
    return [text for text in found if _MEMORY_BUDGET.search(text)] or found


def _texts_in(section: bytes) -> list[bytes]:
    found, at = [], section.find(_TAG)
    while 0 <= at <= len(section) - _HEAD.size:
        _, length = _HEAD.unpack_from(section, at)
        start, end = at + _HEAD.size, at + len(_TAG)
        if section.startswith(b"header {", start) and start + length <= len(section):
            found.append(section[start : start + length])
            end = start + length
        at = section.find(_TAG, end)
    return found


def _why_unreadable(texts: list[bytes]) -> str | None:
    if not texts:
        return "the plan holds no graph as text, as those of TensorRT-RTX 1.7 do"
    for text in texts:
        match = _LAYOUT.search(text)
        if match is None or int(match[1]) != LAYOUT:
            given = match[1].decode() if match else "?"
            return f"the plan's graph has layout version {given}, and only {LAYOUT} is known"
    return None


def _graph(text: bytes) -> Graph:
    budget = _MEMORY_BUDGET.search(text)
    if budget is None:
        raise StageError("the plan's graph names no memory budget", "build it again, or fetch it again")
    end = text.find(b"\nshape_main {")
    text = text[: None if end < 0 else end]
    tensors = {_text(name): _Tensor(_text(kind), int(size or 0)) for size, name, kind in _TENSOR.findall(text)}
    found = _OPERATION.findall(text[text.find(b"\nmain {") :])
    constants: Counter[str] = Counter()
    for tensor in tensors.values():
        constants[tensor.kind] += tensor.held_bytes
    tf32 = _TF32.search(text)
    return Graph(
        int(budget[1]),
        tuple(_operation(_text(kind), _text(quoted or bare), rest, tensors) for kind, quoted, bare, rest in found),
        {kind: size for kind, size in sorted(constants.items()) if size},
        tf32[1] == b"1" if tf32 else None,
    )


def _operation(kind: str, name: str, rest: bytes, tensors: Mapping[str, _Tensor]) -> Operation:
    reads, writes = ([tensors.get(name, _UNKNOWN) for name in _names(pattern, rest)] for pattern in (_READS, _WRITES))
    held = [tensor for tensor in reads if tensor.held_bytes]
    return Operation(
        kind,
        name,
        tuple(tensor.kind for tensor in reads),
        tuple(tensor.kind for tensor in writes),
        _nodes(rest),
        tuple(tensor.kind for tensor in held),
        sum(tensor.held_bytes for tensor in held),
    )


def _names(pattern: re.Pattern[bytes], text: bytes) -> list[str]:
    match = pattern.search(text)
    return [_text(name) for name in _NAME.findall(match[1])] if match else []


def _nodes(text: bytes) -> tuple[str, ...]:
    match = _NODES.search(text)
    named = _AFTER_NODES.sub("", _text(match[1]).replace('\\"', '"')) if match else ""
    return tuple(_BETWEEN_NODES.split(named)) if match else ()


def _text(name: bytes) -> str:
    return name.decode(errors="replace")
