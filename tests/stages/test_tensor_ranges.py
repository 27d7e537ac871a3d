"""Files of ranges are read as what they are, and what is no range is refused by tensor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stages.stage import StageError
from stages.tensor_ranges import TensorRange, read, require_match


def test_an_entry_needs_its_amax_only(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps({"tensors": {"x": {"amax": 2}, "y": {"amax": 0.5, "max": 1.0, "algorithm": "mse"}}}))
    assert read(path) == {"x": TensorRange(2), "y": TensorRange(0.5, 1.0, "mse")}


def test_a_calibration_cache_is_recognized_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text("TRT-8601-EntropyCalibration2\nx: 3f800000\n")
    assert read(path) == {"x": TensorRange(127.0)}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "Expecting value"),
        ("[]", "no ranges"),
        ('{"tensors": {"x": {}}}', "amax"),
        ('{"tensors": {"x": {"amax": -1}}}', "'x' has amax -1; allowed: a finite number, 0 or more"),
        ('{"tensors": {"x": {"amax": NaN}}}', "'x' has amax nan"),
        ('{"tensors": {"x": {"amax": 1, "max": Infinity}}}', "'x' has max inf"),
        ('{"tensors": {"x": {"amax": "1"}}}', "'x' has amax '1'"),
        ('{"tensors": {"x": {"amax": true}}}', "'x' has amax True"),
        ('{"tensors": {"x": {"amax": 1, "amin": 2}}}', "'x' has amin; allowed: amax, max"),
        ("TRT-8601-EntropyCalibration2\nx\n", "line 2"),
        ("\xff", "no ranges"),
    ],
)
def test_what_is_no_ranges_file_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(StageError, match=r"r\.json: no ranges") as caught:
        read(path)
    assert says in caught.value.what
    assert "ranges.json" in caught.value.next_step


def test_missing_and_foreign_tensors_are_named_ten_of_each_at_most() -> None:
    wanted = [f"t{number}" for number in range(12)]
    with pytest.raises(StageError, match=r"no range for t0, .*t9 and 2 more; no tensor for the range of a, b$"):
        require_match(["b", "a"], wanted, wanted, "next")
    require_match(wanted, wanted[:3], wanted, "next")
