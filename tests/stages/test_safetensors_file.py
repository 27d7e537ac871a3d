import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, numpy_helper

from stages import safetensors_file
from stages.stage import StageError

DTYPES = ("float32", "float16", "float64", "int64", "int8", "bool")


def tensors(random: np.random.Generator, count: int) -> list[TensorProto]:
    made = []
    for number in range(count):
        shape = tuple(random.integers(0, 4, size=random.integers(0, 4)))
        values = (random.standard_normal(shape) * 3).astype(DTYPES[number % len(DTYPES)])
        made.append(numpy_helper.from_array(np.asarray(values), f"net.{number}"))
    return made


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), count=st.integers(0, 8))
def test_what_is_written_is_read_in_whatever_order_it_was_given(
    tmp_path_factory: pytest.TempPathFactory, seed: int, count: int
) -> None:
    home, random = tmp_path_factory.mktemp("files"), np.random.default_rng(seed)
    given = tensors(random, count)
    safetensors_file.write(given, home / "one")
    safetensors_file.write(random.permutation(np.array(given, object)), home / "two")
    assert (home / "one").read_bytes() == (home / "two").read_bytes()
    found = safetensors_file.read(home / "one")
    assert found.keys() == {tensor.name for tensor in given}
    for tensor in given:
        values, each = numpy_helper.to_array(tensor), found[tensor.name]
        content = each.at.path.read_bytes()[each.at.offset : each.at.end]
        assert (each.shape, content) == (values.shape, values.tobytes())
        assert each.at.offset % values.itemsize == 0


@pytest.mark.torch  # there its package is installed
def test_the_formats_own_package_reads_it(tmp_path: Path) -> None:
    import safetensors.numpy as safetensors  # type: ignore[import-not-found, unused-ignore]

    given = tensors(np.random.default_rng(1), 6)
    safetensors_file.write(given, tmp_path / "w.safetensors")
    found = safetensors.load_file(tmp_path / "w.safetensors")
    assert all(np.array_equal(found[tensor.name], numpy_helper.to_array(tensor)) for tensor in given)


HEADER = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


def file_of(header: object, content: bytes = bytes(8)) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 a checkpoint of torch",
        file_of(HEADER)[:-1],
        file_of(HEADER)[:20],
        file_of([]),
        file_of({"w": {**HEADER["w"], "dtype": "F7"}}),
        file_of({"w": {**HEADER["w"], "shape": [3]}}),
        file_of({"w": {**HEADER["w"], "shape": [-2]}}),
        file_of({"w": {**HEADER["w"], "data_offsets": [-8, 0]}}),
        file_of({"w": {"dtype": "F32"}}),
        (2**63).to_bytes(8, "little") + b"{}",
    ],
)
def test_what_is_damaged_is_refused_in_one_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(content)
    with pytest.raises(StageError) as caught:
        safetensors_file.read(path)
    assert caught.value.what.startswith(f"{path}: not a safetensors file, or a truncated one")
    assert "\n" not in caught.value.what and caught.value.next_step


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="cannot be read: No such file"):
        safetensors_file.read(tmp_path / "nowhere")
