"""What a pass of surgery is: a function that changes a model in place and says what it did.

A pass is a file of its own: a frozen dataclass of options, the function, and `PASS`::

    @dataclass(frozen=True)
    class Options:
        names: list[str] = field(default_factory=list)

    def mark_outputs(model: ModelProto, options: Options) -> Metrics: ...

    PASS = Pass("mark_outputs", Options, mark_outputs)

and a line in `stages/passes/__init__.py`. Every option is part of the step's key. No pass loads weights that lie in
external files: `stages.onnx_data` gives the size of a tensor, and its values where they are really needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from stages.stage import Metrics

if TYPE_CHECKING:
    from onnx import ModelProto

O = TypeVar("O")  # noqa: E741 - options


@dataclass(frozen=True)
class NoOptions:
    """Nothing to choose."""


@dataclass(frozen=True)
class Pass(Generic[O]):
    """The declaration of a pass.

    Attributes:
        name: What a flow's YAML calls it.
        options: A frozen dataclass of plain values, lists and mappings of them.
        run: Changes the model in place, and returns what it did. Raises `StageError`.
        keeps_results: Whether the model computes the same afterwards, so that it can be compared with what it was.
    """

    name: str
    options: type[O]
    run: Callable[[ModelProto, O], Metrics]
    keeps_results: bool = True
