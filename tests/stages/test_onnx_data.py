"""Values of tensors in external files: read in pieces, mapped, and copied from file to file."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from stages import onnx_data
from stages.stage import StageError

NUMBERS = np.arange(1000, dtype=np.float32)


def pinned(path: Path, offset: int = 0, count: int = 1000) -> TensorProto:
    """A tensor of `count` float32 at `offset` of a file that holds `NUMBERS`."""
    path.write_bytes(NUMBERS.tobytes())
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[count])
    onnx_data.put(tensor, str(path), offset, 4 * count)
    return tensor


def copied(tensor: TensorProto, path: Path) -> bytes:
    with path.open("wb", buffering=0) as file:
        onnx_data.copy(tensor, file)
    return path.read_bytes()


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_copy_by_itself_gives_the_same_bytes(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "copy_file_range", refuse)
    assert copied(pinned(tmp_path / "w", 400, 200), tmp_path / "out") == NUMBERS[100:300].tobytes()


def test_a_copy_that_stops_halfway_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.copy_file_range, []

    def slow(source: int, destination: int, count: int, offset: int) -> int:
        calls.append(count)
        return real(source, destination, min(count, 100), offset) if len(calls) < 4 else 0

    monkeypatch.setattr(os, "copy_file_range", slow)
    assert copied(pinned(tmp_path / "w"), tmp_path / "out") == NUMBERS.tobytes()
    assert calls == [4000, 3900, 3800, 3700]


def test_a_file_that_is_cut_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    tensor = pinned(tmp_path / "w")
    os.truncate(tmp_path / "w", 3000)
    with pytest.raises(StageError, match="became shorter while it was read"):
        list(onnx_data.pieces(tensor))
    with pytest.raises(StageError, match="became shorter while it was read"):
        copied(tensor, tmp_path / "out")


@settings(max_examples=30, deadline=None)
@given(offset=st.integers(0, 999), count=st.integers(0, 1000), piece=st.sampled_from([4, 12, 400, 1 << 24]))
def test_pieces_are_the_whole_in_order_wherever_it_lies(
    offset: int, count: int, piece: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    count = min(count, 1000 - offset)
    tensor = pinned(tmp_path_factory.mktemp("pieces") / "w", 4 * offset, count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_data, "PIECE_BYTES", piece)
        pieces = list(onnx_data.pieces(tensor))
    want = NUMBERS[offset : offset + count]
    assert np.concatenate([np.empty(0, np.float32), *pieces]).tolist() == want.tolist()
    assert all(values.nbytes <= piece for values in pieces)
    assert onnx_data.array(tensor).tolist() == want.tolist()


def test_mapped_values_cannot_be_changed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        onnx_data.array(pinned(tmp_path / "w"))[0] = 1


@pytest.mark.parametrize(
    ("kind", "count", "size"),
    [("FLOAT", 5, 20), ("INT4", 5, 3), ("UINT4", 4, 2), ("BFLOAT16", 5, 10), ("BOOL", 5, 5), ("DOUBLE", 0, 0)],
)
def test_the_size_of_values_is_that_of_their_storage(kind: str, count: int, size: int) -> None:
    tensor = TensorProto(data_type=TensorProto.DataType.Value(kind), dims=[count])
    assert onnx_data.nbytes(tensor) == size


def test_the_size_of_strings_is_that_of_their_letters() -> None:
    assert onnx_data.nbytes(helper.make_tensor("words", TensorProto.STRING, [2], [b"ab", b"cde"])) == 5


def test_values_in_typed_fields_are_copied_as_raw_ones(tmp_path: Path) -> None:
    typed = TensorProto(data_type=TensorProto.BFLOAT16, dims=[3], int32_data=[0x3F80, 0x4000, 0x4040])
    assert copied(typed, tmp_path / "out") == np.array([0x3F80, 0x4000, 0x4040], np.uint16).tobytes()
    nibbles = TensorProto(data_type=TensorProto.INT4, dims=[3], int32_data=[0x21, 0x03])
    assert copied(nibbles, tmp_path / "out") == b"\x21\x03"
    assert numpy_helper.to_array(nibbles).astype(int).tolist() == [1, 2, 3]
