"""Constant folding: what does not depend on the inputs is computed once, here.

Subgraphs are entered, and an `If` with a constant condition gives way to the branch that is taken. Shapes are followed
too: `Shape` of static dims is a constant, and so is `Gather(Shape(x), 1)` where only dim 0 of x is dynamic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stages import onnx_shapes
from stages.allowed import require_at_least
from stages.folding import Folding, fold
from stages.passes.contract import Pass
from stages.stage import Metrics

if TYPE_CHECKING:
    from onnx import ModelProto

MAX_ROUNDS = 16
"""A folded constant can reveal a shape, and a shape a constant: real models were done after 2 or 3 rounds."""


@dataclass(frozen=True)
class Options:
    """How much folding may add.

    Attributes:
        max_bytes: A result larger than this stays a node, unless it is no larger than the constants it is made of: a
            transposed weight of 4 MB is folded, a vector expanded to 4 MB is not.
        max_growth_bytes: The constants of the whole model never grow by more than this.
    """

    max_bytes: int = 1048576
    max_growth_bytes: int = 8388608

    def __post_init__(self) -> None:
        require_at_least(self, 0, "max_bytes", "max_growth_bytes")


def fold_constants(model: ModelProto, options: Options) -> Metrics:
    """Folds until nothing changes."""
    done, problem = Folding(options.max_bytes, options.max_growth_bytes), ""
    for _ in range(MAX_ROUNDS):
        inferred, problem = onnx_shapes.infer_what_can_be(model)
        done.left.clear()
        if not fold(model, inferred, done):
            break
    return {
        "folded": done.folded,
        "branches_taken": done.branches,
        "grown_bytes": done.grown_bytes,
        "not_folded": done.left,
        "shape_inference": problem or "ok",
    }


PASS = Pass("fold", Options, fold_constants)
