"""Reads the graph that a TensorRT-RTX plan holds as text: which operations run, and in which types they read and write.

Undocumented; read off the plans of 1.7.1.116. After `descriptors {` stands a line `tensor={ … name="x" … type=int8 }`
for each tensor, after `main {` one for each operation:

    corrltn={ name="conv1" output={"y" } input={"x" "w" "scale" } …
    function={ name=__myl_MulReluCast … input_args={ "y" "scale" } … output_args={ "z" } …

`corrltn` is a convolution, `deconvolution` a transposed one, `fully_connected` a matrix product; a `function` is a
kernel fused of what its name abbreviates, `_gemm_mha_v2` a whole attention.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from stages.stage import StageError

WEIGHTED = ("corrltn", "deconvolution", "fully_connected", "runtime_fusion")
"""Convolutions and matrix products."""

ATTENTION = "_gemm_mha"

_START = b"\ndescriptors {"
_TENSOR = re.compile(rb'^  (?:sub_)?tensor=\{.*?\bname="([^"\n]+)".*\btype=(\w+) \}', re.MULTILINE)
_OPERATION = re.compile(rb'^  (\w+)=\{ name="?([^"\s]+)"?([^\n]*)', re.MULTILINE)
_READS = re.compile(rb"\binput(?:_args)?=\{([^{}\n]*)\}")
_WRITES = re.compile(rb"\boutput(?:_args)?=\{([^{}\n]*)\}")
_NAME = re.compile(rb'"([^"]+)"')


@dataclass(frozen=True)
class Operation:
    """One step of a plan.

    Attributes:
        kind: As the plan calls it: `corrltn`, `function`, …
        name: Of a convolution or matrix product the ONNX node's, of a function what it is fused of.
        reads: The types of its inputs, in order: `int8`, `fp8_e4m3`, `half`, `float`, …; `?` for an unknown one.
        writes: The types of its outputs.
    """

    kind: str
    name: str
    reads: tuple[str, ...]
    writes: tuple[str, ...]

    @property
    def is_weighted(self) -> bool:
        """Whether it is a convolution, a matrix product or a fused attention."""
        return self.kind in WEIGHTED or self.name.startswith(ATTENTION)


def is_there(path: Path) -> bool:
    """Whether the plan at `path` holds its graph as text."""
    data = path.read_bytes()
    return data.startswith(b"vtrt") and _START in data


def read(path: Path) -> list[Operation]:
    """The operations of the plan at `path`, in the order in which they run.

    Raises:
        StageError: It holds no such graph: it is of TensorRT, or of another release.
    """
    data = path.read_bytes()
    start = data.find(_START)
    if not data.startswith(b"vtrt") or start < 0:
        raise StageError(f"{path}: no graph to read in this plan", "only plans of TensorRT-RTX 1.7 hold theirs as text")
    end = data.find(b"\nshape_main {", start)
    text = data[start : None if end < 0 else end]
    types = {name.decode(): kind.decode() for name, kind in _TENSOR.findall(text)}
    return [
        Operation(kind.decode(), name.decode(), _types(_READS, rest, types), _types(_WRITES, rest, types))
        for kind, name, rest in _OPERATION.findall(text[text.find(b"\nmain {") :])
    ]


def counts(operations: list[Operation]) -> dict[str, dict[str, int]]:
    """How many weighted operations of each kind read each type: `{"corrltn": {"int8": 16}}`."""
    found: dict[str, Counter[str]] = {}
    for operation in operations:
        if operation.is_weighted and operation.reads:
            kind = operation.kind if operation.kind in WEIGHTED else operation.name
            found.setdefault(kind, Counter())[operation.reads[0]] += 1
    return {kind: dict(types) for kind, types in found.items()}


def _types(pattern: re.Pattern[bytes], text: bytes, types: dict[str, str]) -> tuple[str, ...]:
    match = pattern.search(text)
    return tuple(types.get(name.decode(), "?") for name in _NAME.findall(match[1])) if match else ()
