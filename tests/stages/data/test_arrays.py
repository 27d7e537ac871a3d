"""Arrays in files: what comes out of them, in pieces, and what a person is told when they do not fit the model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.batches import Input, Limits
from stages.data.arrays import Arrays
from stages.data.options import Data
from stages.data.reading import Batches
from stages.stage import StageError

X = Input("x", "float32", ("n", 3))


def stored(path: Path, **arrays: np.ndarray) -> Path:
    with path.open("wb") as file:  # the name stays as it is: objects of a store have no suffix
        np.savez(file, **arrays)
    return path


def rows(count: int, start: int = 0, width: int = 3) -> np.ndarray:
    return np.arange(start * width, (start + count) * width, dtype=np.float32).reshape(count, width)


def read(
    files: list[Path], inputs: list[Input], batch_size: int | None = None, max_samples: int | None = None, **how: object
) -> Batches:
    options = Data(batch_size=batch_size, max_samples=max_samples, **how)
    return Batches(Arrays(files, inputs), inputs, options)


def error(files: list[Path], inputs: list[Input], **options: int) -> StageError:
    with pytest.raises(StageError) as caught:
        list(read(files, inputs, **options))
    assert caught.value.next_step
    return caught.value


def test_each_file_is_a_batch_in_the_given_order(tmp_path: Path) -> None:
    files = [stored(tmp_path / "b", x=rows(2)), stored(tmp_path / "a", x=rows(1, 2))]
    assert [batch["x"].shape[0] for batch in read(files, [X])] == [2, 1]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 100])
@pytest.mark.parametrize("max_samples", [None, 1, 5, 10, 99])
def test_batches_run_across_files_and_lose_nothing(tmp_path: Path, batch_size: int, max_samples: int | None) -> None:
    files = [stored(tmp_path / str(i), x=rows(n, s)) for i, (n, s) in enumerate([(3, 0), (1, 3), (6, 4)])]
    batches = list(read(files, [X], batch_size, max_samples))
    expected = rows(10)[:max_samples]
    np.testing.assert_array_equal(np.concatenate([batch["x"] for batch in batches]), expected)
    assert all(batch["x"].shape[0] == batch_size for batch in batches[:-1])
    assert read(files, [X], None, max_samples).known == len(expected)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(1, 7))
def test_any_files_regroup_to_the_same_samples(tmp_path_factory: pytest.TempPathFactory, sizes, batch_size) -> None:
    folder = tmp_path_factory.mktemp("files")
    files, start = [], 0
    for index, count in enumerate(sizes):
        files.append(stored(folder / str(index), x=rows(count, start)))
        start += count
    if not start:
        assert "0 samples" in str(error(files, [X]))
        return
    batches = [batch["x"] for batch in read(files, [X], batch_size)]
    np.testing.assert_array_equal(np.concatenate(batches), rows(start))


def test_samples_of_another_shape_begin_a_new_batch(tmp_path: Path) -> None:
    files = [stored(tmp_path / str(width), x=rows(2, width=width)) for width in (3, 4)]
    wide = Input("x", "float32", ("n", "length"))
    assert [b["x"].shape for b in read(files, [wide], batch_size=3)] == [(2, 3), (2, 4)]


def test_an_npy_file_feeds_a_model_with_one_input(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", rows(2))
    np.testing.assert_array_equal(next(iter(read([tmp_path / "x.npy"], [X])))["x"], rows(2))
    assert "2 are wanted" in str(error([tmp_path / "x.npy"], [X, Input("k", "int64", ("n",))]))


def test_other_names_are_ignored_and_labels_come_when_asked_for(tmp_path: Path) -> None:
    file = stored(tmp_path / "f", x=rows(2), labels=np.array([7, 8], np.uint8), text=np.array(["a", "b"]))
    assert list(next(iter(read([file], [X])))) == ["x"]
    assert next(iter(read([file], [X, Input("labels", None, None)], 1)))["labels"].tolist() == [7]


def test_a_scalar_input_is_fed_to_every_batch(tmp_path: Path) -> None:
    file = stored(tmp_path / "f", x=rows(3), rate=np.int64(16000))
    batches = list(read([file], [X, Input("rate", "int64", ())], 2))
    assert [batch["rate"].item() for batch in batches] == [16000, 16000]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"y": rows(2)}, "has no array 'x': it has y"),
        ({"x": rows(2).astype(np.float64)}, "float64 (2, 3); allowed: x: float32 (n, 3)"),
        ({"x": rows(2)[None]}, "float32 (1, 2, 3); allowed: x: float32 (n, 3)"),
        ({"x": rows(2, width=4)}, "float32 (2, 4); allowed: x: float32 (n, 3)"),
        ({"x": np.float32(1)}, "float32 (); allowed: x: float32 (n, 3)"),
        ({"x": np.array([[None] * 3])}, "object (1, 3); allowed: x: float32 (n, 3)"),
        ({"x": rows(0)}, "0 samples"),
    ],
)
def test_a_file_that_does_not_fit_is_named_with_what_is_allowed(tmp_path: Path, arrays: dict, says: str) -> None:
    file = stored(tmp_path / "bad", **arrays)
    message = str(error([file], [X]))
    assert says in message
    assert "\n" not in message
    assert "samples" in says or str(file) in message


def test_a_bad_file_is_found_before_the_first_batch_is_given(tmp_path: Path) -> None:
    files = [stored(tmp_path / "good", x=rows(2)), stored(tmp_path / "bad", x=rows(2, width=5))]
    with pytest.raises(StageError, match="bad"):
        iter(read(files, [X]))


def test_equal_names_mean_equal_sizes(tmp_path: Path) -> None:
    pair = [Input("a", "float32", ("n", "length")), Input("b", "float32", ("n", "length"))]
    file = stored(tmp_path / "f", a=rows(2), b=rows(2, width=4))
    assert "where length=3" in str(error([file], pair))


def test_arrays_of_different_lengths_are_refused(tmp_path: Path) -> None:
    file = stored(tmp_path / "f", x=rows(2), k=rows(3))
    assert "different numbers of samples" in str(error([file], [X, Input("k", "float32", ("m", 3))]))


def test_a_model_of_a_fixed_batch_says_which_batch_size_it_wants(tmp_path: Path) -> None:
    fixed = Input("x", "float32", (4, 3))
    file = stored(tmp_path / "f", x=rows(8))
    assert "takes exactly 4" in str(error([file], [fixed]))
    assert len(list(read([file], [fixed], 4))) == 2
    assert "takes exactly 4" in str(error([file], [fixed], batch_size=4, max_samples=6))


@pytest.mark.parametrize("content", [b"", b"hello, world", b"PK\x03\x04 and nothing", b"\x93NUMPY\x01\x00"])
def test_what_is_no_numpy_file_is_said_so(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f").write_bytes(content)
    assert str(tmp_path / "f") in str(error([tmp_path / "f"], [X]))


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_a_truncated_file_is_an_error(tmp_path: Path, keep: float) -> None:
    file = stored(tmp_path / "f", x=rows(500))
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * keep)])
    assert "damaged" in str(error([file], [X]))


def test_altered_data_are_an_error_though_the_headers_are_whole(tmp_path: Path) -> None:
    file = stored(tmp_path / "f", x=rows(500))
    content = bytearray(file.read_bytes())
    content[1000] ^= 0xFF
    file.write_bytes(bytes(content))
    assert "damaged" in str(error([file], [X]))


def test_a_missing_file_and_an_empty_set_are_errors(tmp_path: Path) -> None:
    assert "none.npz" in str(error([tmp_path / "none.npz"], [X]))
    assert "no file" in str(error([], [X]))


@pytest.mark.parametrize("store", [np.savez, np.savez_compressed], ids=["stored", "compressed"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_file_is_read_in_pieces_in_either_order(tmp_path: Path, store: Any, order: str) -> None:
    values = np.asarray(rows(3000, width=200), order=order)
    store(tmp_path / "all.npz", x=values, rate=np.float32(3))
    wide, rate = Input("x", "float32", ("n", 200)), Input("rate", "float32", ())
    pieces = list(Arrays([tmp_path / "all.npz"], [wide, rate]).pieces(range(3000), 7))
    assert len(pieces) == 3  # of a MiB
    np.testing.assert_array_equal(np.concatenate([piece["x"] for piece in pieces]), values)
    assert {float(piece["rate"]) for piece in pieces} == {3}


PEAK = """
import resource, sys
from pathlib import Path
from stages.batches import Input
from stages.data.arrays import Arrays
from stages.data.options import Data
from stages.data.reading import Batches
inputs = [Input("x", "float32", ("n", 4096))]
given = Batches(Arrays([Path(sys.argv[1])], inputs), inputs, Data(batch_size=4, max_samples=int(sys.argv[2])))
print(sum(len(batch["x"]) for batch in given), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_memory_does_not_grow_with_the_size_of_a_file(tmp_path: Path, kind: str) -> None:
    values = np.ones((4096, 4096), np.float32)  # 64 MiB
    path = tmp_path / f"all.{kind}"
    np.savez_compressed(path, x=values) if kind == "npz" else np.save(path, values)
    found = [
        subprocess.run([sys.executable, "-c", PEAK, path, most], capture_output=True, text=True, check=True).stdout
        for most in ("4", "4096")
    ]
    (few, low), (all_, high) = (map(int, each.split()) for each in found)
    assert (few, all_) == (4, 4096)
    assert high - low < 16 << 10  # KiB


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any),
    st.integers(1, 12),
    st.none() | st.integers(1, 7),
    st.integers(0, 3),
)
def test_a_shuffled_choice_is_one_of_all_samples_and_the_same_for_a_seed(
    tmp_path_factory: pytest.TempPathFactory, sizes, most, batch_size, seed
) -> None:
    folder, start = tmp_path_factory.mktemp("files"), 0
    files = []
    for index, count in enumerate(sizes):
        files.append(stored(folder / str(index), x=rows(count, start)))
        start += count
    given = read(files, [X], batch_size, most, order="shuffled", seed=seed)
    once, again = (np.concatenate([batch["x"] for batch in given])[:, 0] / 3 for _ in range(2))
    assert list(once) == list(again) == sorted(set(once) & set(range(start)))
    assert len(once) == min(most, start) == given.known


def test_another_seed_chooses_others_and_not_the_first(tmp_path: Path) -> None:
    files = [stored(tmp_path / "f", x=rows(1000))]
    firsts = [
        [float(batch["x"][0, 0]) for batch in read(files, [X], 1, 5, order="shuffled", seed=seed)] for seed in (0, 1)
    ]
    assert firsts[0] != firsts[1]
    assert [0, 3, 6, 9, 12] not in firsts


def test_the_extent_is_known_from_headers(tmp_path: Path) -> None:
    files = [stored(tmp_path / str(index), x=rows(count)) for index, count in enumerate((3, 0, 4, 5))]
    assert read(files, [X]).extent == (12, 3)
    assert read(files, [X], max_samples=4).extent == (4, 2)
    assert read(files, [X], 5).extent == (12, 3)


@pytest.mark.parametrize(("shape", "fits"), [((4, 8), True), ((4, 9), False), ((9, 3), False), ((9, 4), True)])
def test_samples_outside_of_every_profile_are_refused_before_they_are_read(
    tmp_path: Path, shape: tuple[int, int], fits: bool
) -> None:
    """How many samples there are in a batch is no matter of the profile here."""
    wide = Input("x", "float32", ("n", "length"))
    limits = [Limits("short", {"x": ((4,), (4,))}), Limits("long", {"x": ((5,), (8,))})]
    given = Arrays([stored(tmp_path / "f.npz", x=np.ones(shape, np.float32))], [wide], limits)
    if fits:
        assert given.count() == shape[0]
        return
    with pytest.raises(StageError) as caught:
        given.count()
    assert caught.value.what == (
        f"{tmp_path}/f.npz: a sample of 'x' is ({shape[1]},), profile 'short' takes (4,) to (4,), "
        "profile 'long' takes (5,) to (8,)"
    )
