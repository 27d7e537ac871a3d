"""ONNX files in and out, with errors in plain words.

Between stages a model is one self-contained file: 2 GiB is what protobuf can hold in one message.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stages.stage import StageError

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 2**31 - 1
"""The largest message that protobuf serializes."""


def read(path: Path, *, external_data: bool = True) -> onnx.ModelProto:
    """Reads the ONNX file at `path`.

    Args:
        path: The file; its external data lies in the same directory or below it.
        external_data: Whether tensors kept in external files are loaded too.

    Raises:
        StageError: The file is missing, empty, damaged, no ONNX, or its external data is missing.
    """
    import onnx
    from google.protobuf.message import DecodeError

    if not path.is_file():
        raise StageError(f"{path}: no such file", "give the path of an ONNX file: model.path=net.onnx")
    if path.stat().st_size == 0:
        raise StageError(f"{path}: the file is empty", "export the model again")
    try:
        # The format is always protobuf, whatever the name ends in: objects of a store have no suffix.
        model = onnx.load(str(path), format="protobuf", load_external_data=external_data)
    except DecodeError:
        raise StageError(
            f"{path}: not an ONNX file, or a truncated one ({path.stat().st_size} bytes, which do not decode)",
            "check how it was downloaded or exported: `python -m onnx.checker` on the original file",
        ) from None
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise StageError(
            f"{path}: its external data cannot be read: {_first_line(error)}",
            "keep the external files beside the ONNX file, under the names they were saved with",
        ) from error
    if not model.graph.output or not model.opset_import:
        raise StageError(
            f"{path}: not an ONNX model: it has {len(model.graph.output)} outputs and {len(model.opset_import)} opsets",
            "give an ONNX file with a graph",
        )
    return model


def write(model: onnx.ModelProto, path: Path) -> None:
    """Writes `model` to `path` as one file.

    Raises:
        StageError: The model would be larger than 2 GiB.
    """
    import onnx

    if model.ByteSize() > MAX_BYTES:
        raise StageError(
            f"the model has {model.ByteSize()} bytes, and one ONNX file holds at most {MAX_BYTES}",
            "use a smaller model: models beyond 2 GiB are not supported yet",
        )
    onnx.save(model, str(path), format="protobuf")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
