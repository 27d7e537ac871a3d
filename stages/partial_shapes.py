"""What is known of shapes that are computed in the graph, also where some of their dims are dynamic.

`Gather(Shape(x), 1)` of x (N, 3, 8, 8) is 3, though N is not known: exporters write reshapes so. What a `Shape` gives
is followed through the few operators that exporters build shapes with; a result all of whose elements are known is
a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from operator import add, mul, sub
from typing import TYPE_CHECKING

from stages import onnx_data, onnx_file

if TYPE_CHECKING:
    from onnx import NodeProto, TensorProto, TypeProto

MAX_ELEMENTS = 64
"""Shapes are short: a longer vector is data."""


@dataclass(frozen=True)
class Partial:
    """Whole numbers, None for each that is not known.

    Attributes:
        values: The elements.
        is_scalar: Whether they are one scalar, and not a vector of them.
    """

    values: tuple[int | None, ...]
    is_scalar: bool = False


@dataclass
class PartialShapes:
    """Follows shapes through one graph, whose nodes are shown to `result` in order.

    Attributes:
        types: The type of each tensor, as far as it is known.
        known: The graph's constants; grows while the graph is folded.
    """

    types: Mapping[str, TypeProto]
    known: Mapping[str, TensorProto]

    def __post_init__(self) -> None:
        self._found: dict[str, Partial] = {}

    def result(self, node: NodeProto) -> TensorProto | None:
        """What `node` gives, where shape inference alone says it; None where it does not."""
        partial = self._partial(node) if node.domain in ("", "ai.onnx") else None
        if partial is None:
            return None
        self._found[node.output[0]] = partial
        return self._tensor(node.output[0], partial)

    def _tensor(self, name: str, partial: Partial) -> TensorProto | None:
        from onnx import TensorProto, helper

        kind = self.types[name].tensor_type.elem_type if name in self.types else TensorProto.INT64
        if None in partial.values or kind not in (TensorProto.INT64, TensorProto.INT32):
            return None
        dims = [] if partial.is_scalar else [len(partial.values)]
        made: TensorProto = helper.make_tensor(name, kind, dims, [value or 0 for value in partial.values])
        return made

    def _partial(self, node: NodeProto) -> Partial | None:
        if len(node.output) != 1 or not node.input:
            return None
        match node.op_type:
            case "Shape":
                return self._shape(node)
            case "Size":
                dims = self._dims(node.input[0])
                return None if dims is None or None in dims else Partial((prod(d or 0 for d in dims),), True)
            case "Gather":
                return self._gather(node)
            case "Slice":
                return self._slice(node)
            case "Concat":
                return self._concat(node)
            case "Squeeze" | "Unsqueeze":
                return self._reranked(node)
            case "Cast" | "Identity":
                return self._followed(node.input[0])
            case "Add" | "Sub" | "Mul":
                return self._computed(node)
        return None

    def _dims(self, name: str) -> list[int | None] | None:
        return static_dims(self.types[name]) if name in self.types else None

    def _followed(self, name: str) -> Partial | None:
        """Only what came from a `Shape`: constants alone are folded elsewhere."""
        return self._found.get(name)

    def _value(self, name: str) -> Partial | None:
        from onnx import TensorProto

        if name in self._found:
            return self._found[name]
        tensor = self.known.get(name)
        if tensor is None or tensor.data_type not in (TensorProto.INT64, TensorProto.INT32) or len(tensor.dims) > 1:
            return None
        if prod(tensor.dims) > MAX_ELEMENTS:
            return None
        return Partial(tuple(int(v) for v in onnx_data.array(tensor).reshape(-1)), not tensor.dims)

    def _known(self, name: str) -> list[int] | None:
        found = self._value(name)
        return None if found is None or None in found.values else [value or 0 for value in found.values]

    def _shape(self, node: NodeProto) -> Partial | None:
        """`Shape` of a tensor (N, 3, 8, 8) with start=1 is (3, 8, 8)."""
        dims = self._dims(node.input[0])
        if dims is None:
            return None
        bounds = {attribute.name: attribute.i for attribute in node.attribute}
        return Partial(tuple(dims[bounds.get("start", 0) : bounds.get("end", len(dims))]))

    def _gather(self, node: NodeProto) -> Partial | None:
        data, index = self._followed(node.input[0]), self._value(node.input[1])
        if data is None or data.is_scalar or index is None or None in index.values:
            return None
        size = len(data.values)
        places = [value or 0 for value in index.values]
        if not all(-size <= place < size for place in places):
            return None
        return Partial(tuple(data.values[place] for place in places), index.is_scalar)

    def _slice(self, node: NodeProto) -> Partial | None:
        data = self._followed(node.input[0])
        if data is None or data.is_scalar:
            return None
        attributes = {attribute.name: list(attribute.ints) for attribute in node.attribute}
        given: list[Sequence[int] | None] = [attributes.get(name) for name in ("starts", "ends")]
        if len(node.input) > 1:  # since opset 10
            given = [self._known(name) for name in (node.input[1], node.input[2])]
        steps = self._known(node.input[4]) if len(node.input) > 4 and node.input[4] else [1]
        starts, ends = given
        if starts is None or ends is None or steps is None or len(starts) != 1 or steps[0] < 1:
            return None
        size = len(data.values)
        start, end = (min(max(v + size if v < 0 else v, 0), size) for v in (starts[0], ends[0]))
        return Partial(data.values[start : end : steps[0]])

    def _concat(self, node: NodeProto) -> Partial | None:
        parts = [self._value(name) for name in node.input]
        if not any(name in self._found for name in node.input) or any(p is None or p.is_scalar for p in parts):
            return None
        return Partial(tuple(value for part in parts if part for value in part.values))

    def _reranked(self, node: NodeProto) -> Partial | None:
        """A scalar to a vector of one element, or back."""
        data = self._followed(node.input[0])
        axes = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
        if len(node.input) > 1 and node.input[1]:  # since opset 13
            axes = self._known(node.input[1])
        wants_scalar = node.op_type == "Squeeze"
        if data is None or len(data.values) != 1 or data.is_scalar is wants_scalar:
            return None
        if axes not in ([0], [-1]) and not (wants_scalar and axes is None and len(node.input) < 2):
            return None
        return Partial(data.values, wants_scalar)

    def _computed(self, node: NodeProto) -> Partial | None:
        compute = {"Add": add, "Sub": sub, "Mul": mul}[node.op_type]
        if not any(name in self._found for name in node.input):
            return None
        left, right = (self._value(name) for name in node.input)
        if left is None or right is None or not _broadcast(left, right):
            return None
        size = max(len(left.values), len(right.values))
        pairs = zip(_stretched(left, size), _stretched(right, size), strict=True)
        values = tuple(None if a is None or b is None else int(compute(a, b)) for a, b in pairs)
        return Partial(values, left.is_scalar and right.is_scalar)


def static_dims(type_: TypeProto) -> list[int | None] | None:
    """The dimensions of a tensor, None for each that is not static; None if even their number is unknown."""
    if not type_.HasField("tensor_type") or not type_.tensor_type.HasField("shape"):
        return None
    dims = map(onnx_file.dimension, type_.tensor_type.shape.dim)
    return [dim if isinstance(dim, int) else None for dim in dims]


def _broadcast(left: Partial, right: Partial) -> bool:
    sizes = {len(part.values) for part in (left, right) if len(part.values) != 1}
    return len(sizes) <= 1 and 0 not in sizes


def _stretched(part: Partial, size: int) -> tuple[int | None, ...]:
    return part.values * size if len(part.values) == 1 else part.values
