"""The batches that ranges are tried on are few and spread evenly, and the better score ranks higher."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages import exact_runs, quantization, quantize
from stages.batches import Input
from stages.data.arrays import Arrays
from stages.data.options import Data
from stages.data.reading import Batches
from stages.quantize import QuantizeConfig
from stages.stage import StageError
from stages.trial import Score, Slice, compare, round_weights
from tests.stages.rewriting import outputs, parsed, residual_block

X = Input("x", "float32", ("n", 1))


def stored(folder: Path, *sizes: int) -> list[Path]:
    """Files of that many samples, whose values count on."""
    files, start = [], 0
    for index, size in enumerate(sizes):
        files.append(folder / f"{index}.npy")
        np.save(files[-1], np.arange(start, start + size, dtype=np.float32)[:, None])
        start += size
    return files


def sliced(files: list[Path], wanted: int, **options: int) -> Slice:
    return Slice(Batches(Arrays(files, [X]), [X], Data(**options)), wanted)


def firsts(data: Slice) -> list[int]:
    return [int(batch["x"][0, 0]) for batch in data]


def test_the_batches_are_spread_evenly_over_the_data(tmp_path: Path) -> None:
    data = sliced(stored(tmp_path, 100), 20, batch_size=5)
    assert firsts(data) == [0, 25, 50, 75]
    assert (data.batches, data.samples) == (4, 20)


def test_no_more_than_the_first_samples_are_looked_at(tmp_path: Path) -> None:
    assert firsts(sliced(stored(tmp_path, 60, 40), 20, batch_size=10, max_samples=40)) == [0, 20]


def test_files_that_are_batches_count_with_their_mean_size(tmp_path: Path) -> None:
    files = stored(tmp_path, *[4] * 10)
    assert firsts(sliced(files, 8)) == [0, 20]
    assert firsts(sliced(files, 8, max_samples=20)) == [0, 10 // 4 * 4]
    assert firsts(sliced(stored(tmp_path, 50), 8)) == [0]


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any), st.integers(1, 30), st.integers(1, 8))
def test_there_is_at_least_one_batch_and_never_more_than_asked_for(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], wanted: int, batch_size: int
) -> None:
    data = sliced(stored(tmp_path_factory.mktemp("files"), *sizes), wanted, batch_size=batch_size)
    found = list(data)
    assert 1 <= len(found) == data.batches <= max(1, round(wanted / batch_size))
    assert data.samples == sum(len(batch["x"]) for batch in found)
    assert len({float(batch["x"][0, 0]) for batch in found}) == len(found)


def test_accuracy_ranks_before_the_ratio_and_what_is_refused_last() -> None:
    ranked = [Score(50, 0.9), Score(20, 0.95), Score(30, 0.95), Score(inf, None, "not finite")]
    assert max(ranked, key=lambda score: score.rank) is ranked[2]
    assert min(ranked, key=lambda score: score.rank) is ranked[3]


def test_infinite_ratios_are_null_in_reports() -> None:
    assert Score(inf).result() == {"sqnr_db": None, "accuracy": None, "refused": None, "samples": 0}
    assert Score(12.5, 0.5).result()["sqnr_db"] == 12.5


def test_what_was_given_up_ranks_after_what_was_tried_to_the_end() -> None:
    ranked = [Score(20, finished=True), Score(30, finished=False), Score(inf, refused="not finite")]
    assert sorted(ranked, key=lambda score: score.rank) == ranked[::-1]


Read = Callable[[], Any]


def block() -> Any:
    return residual_block(np.random.default_rng(1))


def feeds(number: int = 1) -> list[dict[str, Any]]:
    random = np.random.default_rng(2)
    return [{"x": random.standard_normal((8, 4, 8, 8)).astype(np.float32)} for _ in range(number)]


def compared(
    scratch: Path, read: Read, choices: Mapping[str, Mapping[str, float]], given: Iterable[Any], **options: Any
) -> dict[str, Score]:
    return compare(read, choices, given, None, lambda phase, done: None, QuantizeConfig(**options), scratch)


def test_better_ranges_score_better(tmp_path: Path) -> None:
    tensors = quantization.place(block()).activations
    choices = {"far too wide": dict.fromkeys(tensors, 1000.0), "fitting": dict.fromkeys(tensors, 4.0)}
    seen: list[str] = []
    scores = compare(block, choices, feeds(), None, lambda phase, done: seen.append(phase), QuantizeConfig(), tmp_path)
    assert scores["fitting"].sqnr_db > scores["far too wide"].sqnr_db + 10
    assert seen == ["trying ranges: float32", "trying ranges"]
    assert not list(tmp_path.iterdir())


def test_a_candidate_far_behind_is_given_up_after_a_quarter_of_the_batches(tmp_path: Path) -> None:
    tensors = quantization.place(block()).activations
    choices = {"far too wide": dict.fromkeys(tensors, 1000.0), "fitting": dict.fromkeys(tensors, 4.0)}
    scores = compared(tmp_path, block, choices, feeds(8))
    assert {name: score.samples for name, score in scores.items()} == {"far too wide": 16, "fitting": 64}
    assert scores["fitting"].rank > scores["far too wide"].rank


def test_the_feeds_are_gone_through_once(tmp_path: Path) -> None:
    """A callable may draw others each time, and both models must be given the same."""
    tensors = quantization.place(block()).activations
    scores = compared(tmp_path, block, {"one": dict.fromkeys(tensors, 4.0)}, iter(feeds(3)))
    assert scores["one"].samples == 24


def test_what_quantize_keeps_in_float_is_in_float_when_ranges_are_tried(tmp_path: Path) -> None:
    """The range of the Gemm's input is far too wide, which nobody sees where the Gemm stays in float."""
    tensors = quantization.place(block()).activations
    choices = {"one too wide": {**dict.fromkeys(tensors, 4.0), "flat": 4000.0}}
    without, everything = (
        compared(tmp_path, block, choices, feeds(), **options)["one too wide"].sqnr_db
        for options in ({"skip_ops": ["Gemm"]}, {})
    )
    assert without > everything + 10
    with pytest.raises(StageError, match="leave nothing to quantize"):
        compared(tmp_path, block, choices, feeds(), skip=["*"])


def test_fp8_is_tried_as_fp8(tmp_path: Path) -> None:
    """A range 20 times too wide costs INT8 most of its codes, and FP8 none: its steps grow with the values."""
    choices = {"wide": dict.fromkeys(quantization.place(block()).activations, 80.0)}
    int8, fp8 = (
        compared(tmp_path, block, choices, feeds(), precision=name)["wide"].sqnr_db for name in ("int8", "fp8")
    )
    assert fp8 > int8 + 5


def test_weights_that_are_rounded_beforehand_change_no_bit() -> None:
    model = block()
    quantize.prepare(model)
    placement = quantization.place(model)
    quantize.insert(model, placement, dict.fromkeys(placement.activations, 4.0))
    expected = outputs(model, feeds()[0])
    before = len(model.graph.node)
    round_weights(model)
    weights = sum(read.axis is not None for read in placement.reads)
    assert len(model.graph.node) == before - 2 * weights
    session = exact_runs.open_exact(model)
    for name, value in zip([output.name for output in model.graph.output], expected, strict=True):
        np.testing.assert_array_equal(exact_runs.run(session, [name], feeds()[0], 0)[name], value)


SEQUENCE = """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (OUTPUTS) {
    t = MatMul(x, w)
    s = SequenceConstruct(t) }"""


def test_an_output_that_is_no_tensor_is_not_compared_and_one_at_least_must_be(tmp_path: Path) -> None:
    given = [{"x": np.ones((2, 4), np.float32)}]
    choices = {"wide": {"x": 9.0}, "right": {"x": 1.0}}
    both, alone = (
        lambda shown=shown: parsed(SEQUENCE.replace("OUTPUTS", shown), w=np.eye(4))
        for shown in ("float[n, 4] t, seq(float[n, 4]) s", "seq(float[n, 4]) s")
    )
    scores = compared(tmp_path, both, choices, given)
    assert scores["right"].rank > scores["wide"].rank
    with pytest.raises(StageError, match="none of the outputs is a tensor of numbers: s") as caught:
        compared(tmp_path, alone, choices, given)
    assert "algorithm=mse" in caught.value.next_step
