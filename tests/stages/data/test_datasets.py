"""Rows of Hugging Face datasets that lie on this machine; where `datasets` is not installed, all of it is skipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stages.batches import Input
from stages.data.datasets import Rows
from stages.data.options import Data, Dataset
from stages.data.reading import Batches
from stages.stage import StageError

datasets = pytest.importorskip("datasets")

TOKENS = Input("tokens", "int64", ("n", "length"))
LABELS = Input("labels", None, None)
TABLE = {
    "input_ids": [[1, 2, 3], [4, 5, 6], [7, 8], [9, 1]],
    "x": [[0.5, 1.0], [1.5, 2.0], [2.5, 3.0], [3.5, 4.0]],
    "labels": [0, 1, 2, 3],
    "text": ["a", "b", "c", "d"],
}


def saved(folder: Path, kind: str, table: dict[str, Any] = TABLE) -> list[Path]:
    made = datasets.Dataset.from_dict(table)
    if kind == "parquet":
        made.to_parquet(str(folder / "train.parquet"))
    else:
        made.save_to_disk(str(folder))
    return sorted(path for path in folder.iterdir() if path.is_file())


def read(files: list[Path], inputs: list[Input], scratch: Path, columns: dict[str, str], **options: Any) -> Batches:
    which = Dataset(columns=columns)
    return Batches(Rows(files, inputs, which, scratch), inputs, Data(dataset=which, **options))


@pytest.mark.parametrize("kind", ["saved", "parquet"])
def test_rows_are_samples_and_columns_inputs(tmp_path: Path, kind: str) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "scratch").mkdir()
    files = saved(tmp_path / "data", kind)
    given = read(files, [TOKENS, LABELS], tmp_path / "scratch", {"input_ids": "tokens"}, batch_size=3)
    batches = list(given)
    assert [batch["tokens"].tolist() for batch in batches] == [[[1, 2, 3], [4, 5, 6]], [[7, 8], [9, 1]]]
    assert [batch["labels"].tolist() for batch in batches] == [[0, 1], [2, 3]]
    assert (batches[0]["tokens"].dtype, given.known, given.kind) == (np.int64, 4, "dataset")


def test_floats_take_the_models_type_and_a_choice_is_one_of_all_rows(tmp_path: Path) -> None:
    x = Input("x", "float16", ("n", 2))
    options = {"max_samples": 2, "order": "shuffled", "seed": 1, "batch_size": 4}
    (batch,) = read(saved(tmp_path, "saved"), [x], tmp_path, {}, **options)
    assert (batch["x"].dtype, batch["x"].shape) == (np.float16, (2, 2))
    assert {tuple(row) for row in batch["x"].tolist()} < {tuple(row) for row in TABLE["x"]}


@pytest.mark.parametrize(
    ("inputs", "columns", "says"),
    [
        ([TOKENS], {}, "no column 'tokens': it has input_ids, labels, text, x"),
        ([TOKENS], {"ids": "tokens"}, "no column 'ids'"),
        ([Input("text", "float32", ("n",))], {}, "row 0 of the dataset (counted from 0): 'text' is <U1 (1,)"),
        ([Input("input_ids", "float32", ("n", 3))], {}, "'input_ids' is int64 (1, 3)"),
        ([Input("input_ids", "int64", ("n", 3))], {}, "row 2 of the dataset (counted from 0)"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, inputs: list[Input], columns: dict[str, str], says: str) -> None:
    with pytest.raises(StageError) as caught:
        list(read(saved(tmp_path, "saved"), inputs, tmp_path, columns))
    assert says in caught.value.what
    assert caught.value.next_step


def test_a_number_that_does_not_fit_the_models_type_is_refused(tmp_path: Path) -> None:
    files = saved(tmp_path, "saved", {"x": [[1], [300]]})
    with pytest.raises(StageError, match=r"row 1 .*'x' is int64"):
        list(read(files, [Input("x", "uint8", ("n", 1))], tmp_path, {}))


def test_a_damaged_dataset_is_named(tmp_path: Path) -> None:
    files = saved(tmp_path, "saved")
    next(file for file in files if file.suffix == ".arrow").write_bytes(b"damaged")
    with pytest.raises(StageError, match=f"the dataset {tmp_path} cannot be loaded"):
        list(read(files, [TOKENS], tmp_path, {"input_ids": "tokens"}))
