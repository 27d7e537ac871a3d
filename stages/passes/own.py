"""The user's own pass: a Python function over an onnx-graphsurgeon graph, found from the working directory.

    def drop_softmax(graph: onnx_graphsurgeon.Graph, *, keep: bool = False) -> None: ...

It changes the graph in place, or returns another. Everything that its entry in the config gives beside `pass` and
`changes_results` is handed over as keyword arguments.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import onnx_file, onnx_graph
from stages.stage import Metrics, StageError
from stages.users_python import find, imports_from
from stages.wording import first_line

if TYPE_CHECKING:
    from onnx import ModelProto

_NEXT_STEP = "run from the directory that holds its package, and name package.module.callable"


def run(model: ModelProto, name: str, arguments: Mapping[str, Any]) -> Metrics:
    """Runs the pass `name`, `package.module.callable`, over the whole model.

    Raises:
        StageError: The function is not found, raises, or gives no graph; or the model is larger than 2 GiB, which
            onnx-graphsurgeon would hold in memory several times.
    """
    import onnx_graphsurgeon as gs

    with imports_from(Path.cwd()):
        module, _, callable_name = name.replace(":", ".").rpartition(".")
        function = find(f"{module}:{callable_name}", called=f"pass {name}", next_step=_NEXT_STEP)
        graph = gs.import_onnx(onnx_file.inlined(model))
        try:
            returned = function(graph, **arguments)
        except Exception as error:
            raise StageError(
                f"pass {name} raised {type(error).__name__}: {first_line(error)}", f"mend {name}"
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
