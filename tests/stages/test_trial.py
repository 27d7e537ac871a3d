"""The batches that ranges are tried on are few and spread evenly, and the better score ranks higher."""

from __future__ import annotations

from math import inf
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import quantization
from stages.batches import Input
from stages.stage import StageError
from stages.trial import Score, Slice, compare
from tests.stages.rewriting import parsed, residual_block

X = Input("x", "float32", ("n", 1))


def stored(folder: Path, *sizes: int) -> list[Path]:
    """Files of that many samples, whose values count on."""
    files, start = [], 0
    for index, size in enumerate(sizes):
        files.append(folder / f"{index}.npy")
        np.save(files[-1], np.arange(start, start + size, dtype=np.float32)[:, None])
        start += size
    return files


def firsts(data: Slice) -> list[int]:
    return [int(batch["x"][0, 0]) for batch in data]


def test_the_batches_are_spread_evenly_over_the_data(tmp_path: Path) -> None:
    data = Slice(stored(tmp_path, 100), [X], 20, batch_size=5)
    assert firsts(data) == [0, 25, 50, 75]
    assert (data.batches, data.samples) == (4, 20)


def test_no_more_than_the_first_samples_are_looked_at(tmp_path: Path) -> None:
    assert firsts(Slice(stored(tmp_path, 60, 40), [X], 20, batch_size=10, max_samples=40)) == [0, 20]


def test_files_that_are_batches_count_with_their_mean_size(tmp_path: Path) -> None:
    data = Slice(stored(tmp_path, *[4] * 10), [X], 8)
    assert firsts(data) == [0, 20]
    assert firsts(Slice(data.files, [X], 8, max_samples=20)) == [0, 10 // 4 * 4]
    assert firsts(Slice(stored(tmp_path, 50), [X], 8)) == [0]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), st.integers(1, 30), st.integers(1, 8))
def test_there_is_at_least_one_batch_and_never_more_than_asked_for(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], wanted: int, batch_size: int
) -> None:
    data = Slice(stored(tmp_path_factory.mktemp("files"), *sizes), [X], wanted, batch_size)
    found = list(data)
    assert 1 <= len(found) == data.batches <= max(1, round(wanted / batch_size))
    assert data.samples == sum(len(batch["x"]) for batch in found)
    assert len({float(batch["x"][0, 0]) for batch in found}) == len(found)


def test_accuracy_ranks_before_the_ratio_and_what_is_refused_last() -> None:
    ranked = [Score(50, 0.9), Score(20, 0.95), Score(30, 0.95), Score(inf, None, "not finite")]
    assert max(ranked, key=lambda score: score.rank) is ranked[2]
    assert min(ranked, key=lambda score: score.rank) is ranked[3]


def test_infinite_ratios_are_null_in_reports() -> None:
    assert Score(inf).result() == {"sqnr_db": None, "accuracy": None, "refused": None}
    assert Score(12.5, 0.5).result()["sqnr_db"] == 12.5


def test_better_ranges_score_better() -> None:
    block = residual_block(np.random.default_rng(1))
    tensors = quantization.place(block).activations
    feeds = [{"x": np.random.default_rng(2).standard_normal((8, 4, 8, 8)).astype(np.float32)}]
    choices = {"far too wide": dict.fromkeys(tensors, 1000.0), "fitting": dict.fromkeys(tensors, 4.0)}
    seen: list[str] = []
    other = residual_block(np.random.default_rng(1))
    scores = compare(block, other, choices, feeds, None, lambda phase, fraction: seen.append(phase))
    assert scores["fitting"].sqnr_db > scores["far too wide"].sqnr_db + 10
    assert seen == ["trying ranges"]


SEQUENCE = """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (OUTPUTS) {
    t = MatMul(x, w)
    s = SequenceConstruct(t) }"""


def test_an_output_that_is_no_tensor_is_not_compared_and_one_at_least_must_be() -> None:
    feeds = [{"x": np.ones((2, 4), np.float32)}]
    choices = {"wide": {"x": 9.0}, "right": {"x": 1.0}}
    both, alone = (
        [parsed(SEQUENCE.replace("OUTPUTS", outputs), w=np.eye(4)) for _ in range(2)]
        for outputs in ("float[n, 4] t, seq(float[n, 4]) s", "seq(float[n, 4]) s")
    )
    scores = compare(*both, choices, feeds, None, lambda phase, fraction: None)
    assert scores["right"].rank > scores["wide"].rank
    with pytest.raises(StageError, match="none of the outputs is a tensor: s") as caught:
        compare(*alone, choices, feeds, None, lambda phase, fraction: None)
    assert "algorithm=mse" in caught.value.next_step
