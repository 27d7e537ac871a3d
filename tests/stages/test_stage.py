"""The declaration of a stage: what its files are called."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stages.stage import Stage


@dataclass(frozen=True)
class Nothing:
    pass


STAGE = Stage("rewrite", 1, Nothing, lambda job: {}, ("onnx",), {"onnx": "model.onnx", "report": "report.json"})


def test_a_data_file_is_an_output_of_its_own_where_it_was_written(tmp_path: Path) -> None:
    files = {"onnx": tmp_path / "model.onnx", "report": tmp_path / "report.json"}
    assert STAGE.written(tmp_path) == files
    (tmp_path / "model.onnx.data").write_bytes(b"weights")
    assert STAGE.written(tmp_path) == {**files, "onnx.data": tmp_path / "model.onnx.data"}


def test_a_data_file_is_called_after_the_file_it_belongs_to() -> None:
    assert STAGE.file_name("onnx") == "model.onnx"
    assert STAGE.file_name("onnx.data") == "model.onnx.data"
