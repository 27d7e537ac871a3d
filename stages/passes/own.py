"""The user's own pass: a Python function over an onnx-graphsurgeon graph, found from the working directory.

    def drop_softmax(graph: onnx_graphsurgeon.Graph, *, keep: bool = False) -> None: ...

It changes the graph in place, or returns another. Everything that its entry in the config gives beside `pass` and
`changes_results` is handed over as keyword arguments.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import onnx_file, onnx_graph
from stages.stage import Metrics, StageError
from stages.users_python import imports_from

if TYPE_CHECKING:
    from onnx import ModelProto


def run(model: ModelProto, name: str, arguments: Mapping[str, Any]) -> Metrics:
    """Runs the pass `name`, `package.module.callable`, over the whole model.

    Raises:
        StageError: The function is not found, raises, or gives no graph; or the model is larger than 2 GiB, which
            onnx-graphsurgeon would hold in memory several times.
    """
    import onnx_graphsurgeon as gs

    with imports_from(Path.cwd()):
        function = _find(name)
        graph = gs.import_onnx(onnx_file.inlined(model))
        try:
            returned = function(graph, **arguments)
        except Exception as error:
            raise StageError(
                f"pass {name} raised {type(error).__name__}: {onnx_file.first_line(error)}", f"mend {name}"
            ) from error
    graph = graph if returned is None else returned
    if not isinstance(graph, gs.Graph):
        raise StageError(
            f"pass {name} returned {type(graph).__name__}, and must return an onnx_graphsurgeon.Graph or nothing",
            f"mend {name}",
        )
    exported = gs.export_onnx(graph.toposort(), do_type_check=False)
    model.graph.CopyFrom(exported.graph)
    del model.opset_import[:]
    model.opset_import.extend(exported.opset_import)
    onnx_graph.sort(model.graph)
    return {"arguments": dict(arguments)}


def _find(name: str) -> Callable[..., Any]:
    module, _, function = name.replace(":", ".").rpartition(".")
    try:
        found = getattr(importlib.import_module(module), function)
    except Exception as error:  # whatever the module's own code raises
        raise StageError(
            f"pass {name} cannot be imported: {type(error).__name__}: {onnx_file.first_line(error)}",
            "run from the directory that holds its package, and name package.module.callable",
        ) from error
    if not callable(found):
        raise StageError(f"pass {name} is no function: it is {type(found).__name__}", "name one")
    return found  # type: ignore[no-any-return]
