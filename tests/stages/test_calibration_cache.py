"""TensorRT's calibration caches: ranges survive the way there and back, and a line that is wrong is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.calibration_cache import is_cache, parse, text_of
from stages.stage import StageError

NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=9)


def test_a_cache_is_the_header_and_the_scale_of_each_tensor_as_a_big_endian_float32() -> None:
    text = text_of({"y:0": 127.0, "x": 254.0, "zeros": 0.0}, 8601)
    assert text == "TRT-8601-EntropyCalibration2\nx: 40000000\ny:0: 3f800000\nzeros: 3c010204\n"
    assert is_cache(text)


def test_a_cache_as_tensorrt_writes_it_is_read() -> None:
    text = "TRT-100300-EntropyCalibration2\n(Unnamed Layer* 3) [Convolution]_output: 3c010a14\ninput.1: 3cadd5d1\n"
    found = parse(text)
    assert list(found) == ["(Unnamed Layer* 3) [Convolution]_output", "input.1"]
    expected = np.frombuffer(bytes.fromhex("3cadd5d1"), ">f4")[0] * 127.0
    assert found["input.1"] == pytest.approx(float(expected), rel=1e-6)


def test_hex_without_its_leading_zeros_is_read() -> None:
    assert parse("TRT-8601-MinMaxCalibration\nx: 0\n") == {"x": 0.0}


@given(st.dictionaries(NAMES, st.floats(1e-20, 1e20), max_size=5))
def test_ranges_come_back_as_the_same_scales(ranges: dict[str, float]) -> None:
    again = parse(text_of(ranges, 101303))
    assert again.keys() == ranges.keys()
    for name, amax in ranges.items():
        assert np.float32(again[name] / 127) == np.float32(amax / 127)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1 is ''"),
        ("TRT-x\nx: 3f800000", "line 1 is 'TRT-x'"),
        ("TRT-8601-EntropyCalibration2\nx 3f800000", "line 2 is 'x 3f800000'"),
        ("TRT-8601-EntropyCalibration2\n\nx: 3f80000g", "line 3 is"),
        ("TRT-8601-EntropyCalibration2\nx: 7fc00000", "line 2: the scale of 'x' is nan"),
        ("TRT-8601-EntropyCalibration2\nx: bf800000", "line 2: the scale of 'x' is -1.0"),
        ("TRT-8601-EntropyCalibration2\nx: 3f800000\nx: 3f800000", "line 3: 'x' has a scale already"),
    ],
)
def test_a_line_that_is_wrong_is_named(text: str, says: str) -> None:
    with pytest.raises(ValueError, match="line") as caught:
        parse(text)
    assert says in str(caught.value)


def test_a_name_with_a_line_break_cannot_be_written() -> None:
    with pytest.raises(StageError, match="line break") as caught:
        text_of({"a\nb": 1.0}, 8601)
    assert "rename" in caught.value.next_step
