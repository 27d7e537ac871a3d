"""Histogram files: equal data give equal bytes, what was written is read again, and what is damaged is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from stages.histogram_file import Observed, digest, read, write
from stages.histograms import Histogram
from stages.stage import StageError

FLOATS = arrays(np.float32, st.integers(0, 200), elements=st.floats(-(2.0**100), 2.0**100, width=32))


def histogram(*parts: np.ndarray) -> Histogram:
    counted = Histogram()
    for part in parts:
        counted.add(np.asarray(part, np.float32))
    return counted


def written(observed: Observed, path: Path) -> Path:
    write(observed, path)
    return path


@given(st.dictionaries(st.text(max_size=5), FLOATS, max_size=3))
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, values) -> None:
    path = tmp_path_factory.mktemp("file") / "h.bin"
    observed = Observed({name: histogram(array) for name, array in values.items()}, 7, 3)
    again = read(written(observed, path))
    assert (again.samples, again.batches, set(again.histograms)) == (7, 3, set(values))
    for name, each in observed.histograms.items():
        found = again.histograms[name]
        assert [a.tolist() for a in found.sparse()] == [a.tolist() for a in each.sparse()]
        assert (found.low, found.high, digest(found)) == (each.low, each.high, digest(each))


def test_the_order_of_tensors_and_of_batches_does_not_change_a_byte(tmp_path: Path) -> None:
    parts = [np.arange(5.0), np.ones(3), -np.arange(400.0)]
    one = Observed({"b": histogram(*parts), "a": histogram(parts[0])}, 3, 1)
    other = Observed({"a": histogram(parts[0]), "b": histogram(*parts[::-1])}, 3, 1)
    assert written(one, tmp_path / "1").read_bytes() == written(other, tmp_path / "2").read_bytes()


def test_two_files_merge_to_the_file_of_all_data(tmp_path: Path) -> None:
    parts = [np.random.default_rng(i).standard_normal(999) for i in range(2)]
    first, second = (read(written(Observed({"x": histogram(part)}), tmp_path / "p")) for part in parts)
    first.histograms["x"].merge(second.histograms["x"])
    whole = written(Observed({"x": histogram(*parts)}), tmp_path / "whole")
    assert written(first, tmp_path / "merged").read_bytes() == whole.read_bytes()


def test_a_tensor_of_a_million_values_takes_less_than_40_kb_and_none_more_than_640_kib(tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal(1_000_000)
    assert written(Observed({"x": histogram(values)}), tmp_path / "h").stat().st_size < 40_000
    full = Histogram.from_sparse(np.arange(1 << 16), np.full(1 << 16, 1 << 40), -1, 1)
    assert written(Observed({"x": full}), tmp_path / "h").stat().st_size < (640 << 10) + 200


def test_other_values_have_another_digest() -> None:
    base = np.arange(100.0)
    digests = {digest(histogram(base)), digest(histogram(base, [0.0])), digest(histogram(base[:-1], [99.1]))}
    assert len(digests) == 3


def damaged(content: bytes) -> dict[str, bytes]:
    header, _, block = content.partition(b"\n")
    return {
        "empty": b"",
        "of another format": content.replace(b"histograms 2", b"histograms 9"),
        "cut short": content[:-1],
        "longer": content + b"x",
        "without its bins": header + b"\n",
        "with bins out of order": header + b"\n" + block[::-1],
        "another file": b"PK\x03\x04 not a histogram\n",
        "of widths that there are not": content.replace(b'"width": 1', b'"width": 3'),
        "a list": b"[]\n",
    }


@pytest.mark.parametrize("how", damaged(b"\n"))
def test_a_file_that_is_damaged_is_refused_by_name(tmp_path: Path, how: str) -> None:
    path = written(Observed({"x": histogram(np.arange(50.0))}), tmp_path / "h.bin")
    path.write_bytes(damaged(path.read_bytes())[how])
    with pytest.raises(StageError, match=r"h\.bin: no histograms") as caught:
        read(path)
    assert "calibrate" in caught.value.next_step
