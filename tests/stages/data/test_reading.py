"""The door: every source gives the same samples for the same options, and says how many there will be where it can."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stages.batches import Input
from stages.data.reading import Batches, opened
from stages.stage import Job, StageError

X = Input("x", "uint8", ("n", 2, 2, 1))
COUNT = 9
SCRIPT = """
import numpy as np
def load_data(files):
    values = np.load(files[0])["x"]
    yield from ({"x": values[start:start + 2]} for start in range(0, len(values), 2))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same nine samples in every form: each value says which it is."""
    place = tmp_path_factory.mktemp("data")
    values = np.arange(COUNT, dtype=np.uint8).repeat(4).reshape(COUNT, 2, 2, 1)
    np.savez(place / "all.npz", x=values)
    for index, value in enumerate(values):
        Image.fromarray(value[:, :, 0]).save(place / f"{index}.png")
    (place / "load.py").write_text(SCRIPT)
    return place


def read(folder: Path, kind: str, wanted: list[Input] | None = None, **options: Any) -> Batches:
    files = sorted(folder.glob("*.png")) if kind == "images" else [folder / "all.npz"]
    own: dict[str, Any] = {
        "arrays": {},
        "images": {"images": {"color": "gray", "layout": "nhwc"}},
        "callable": {"callable": ".py:load_data"},
    }[kind]
    inputs = {"calibration": files, "calibration_source": [folder / "load.py"]}
    job: Job[Any] = Job(None, inputs, {"calibration": {**own, **options, "packages": {}, "shapes": {}}}, folder)
    return opened(job, "calibration", wanted or [X])


def values(batches: Any) -> list[list[int]]:
    return [batch["x"][:, 0, 0, 0].tolist() for batch in batches]


@given(batch_size=st.integers(1, 12), most=st.none() | st.integers(1, 12))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25)
def test_every_source_gives_the_same_batches(folder: Path, batch_size: int, most: int | None) -> None:
    found = [
        values(read(folder, kind, batch_size=batch_size, max_samples=most)) for kind in ("arrays", "images", "callable")
    ]
    assert found[0] == found[1] == found[2]
    assert [value for batch in found[0] for value in batch] == list(range(COUNT))[:most]


def test_a_shuffled_choice_is_the_same_of_files_of_any_kind(folder: Path) -> None:
    options = {"batch_size": 4, "max_samples": 5, "order": "shuffled", "seed": 3}
    assert values(read(folder, "arrays", **options)) == values(read(folder, "images", **options))


@pytest.mark.parametrize(("kind", "extent"), [("arrays", (9, 1)), ("images", (9, 9)), ("callable", (9, 5))])
def test_the_extent_is_that_of_what_comes(folder: Path, kind: str, extent: tuple[int, int]) -> None:
    given = read(folder, kind)
    assert given.extent == extent
    assert [len(batch["x"]) for batch in given] == [extent[0] // extent[1] or 2] * extent[1] or kind == "callable"


def test_the_share_that_is_done_is_known_where_the_number_of_samples_is(folder: Path) -> None:
    assert read(folder, "arrays").share(3) == pytest.approx(1 / 3)
    assert read(folder, "callable").share(3) is None
    assert read(folder, "callable", max_samples=6).share(3) == 0.5


def test_random_samples_come_at_the_shapes_of_the_profiles_as_many_as_asked_for(folder: Path) -> None:
    profile = {"x": {"min": [1, 4], "opt": [2, 6], "max": [4, 8]}}
    wanted = [Input("x", "float32", ("n", "length"))]

    def drawn(labels: str | None = None, **options: Any) -> Batches:
        fact = {"random": 9, "profiles": {"default": profile}, **options}
        return opened(Job(None, {"calibration": []}, {"calibration": fact}, folder), "calibration", wanted, labels)

    assert [batch["x"].shape for batch in drawn()] == [(1, 4), (2, 6), (4, 8), (1, 4), (1, 6)]
    assert (drawn().known, drawn().kind, drawn(max_samples=4).extent[0]) == (9, "random", 4)
    one, same, other = (next(iter(drawn(seed=seed)))["x"].tolist() for seed in (0, 0, 1))
    assert one == same != other
    with pytest.raises(StageError, match="random samples have no 'labels'"):
        iter(drawn("labels"))


@pytest.mark.parametrize("kind", ["arrays", "images", "callable"])
def test_shape_tensors_are_in_no_sample_and_the_same_in_every_batch(folder: Path, kind: str) -> None:
    wanted = [Input("sizes", "int64", (2,)), X, Input("rows", "int32", ())]
    batches = list(read(folder, kind, wanted, batch_size=4, held={"sizes": [4, 4], "rows": [7]}))
    assert values(batches) == values(read(folder, kind, batch_size=4))
    assert {tuple(batch["sizes"].tolist()) for batch in batches} == {(4, 4)}
    assert {(batch["rows"].item(), batch["rows"].shape, batch["rows"].dtype.name) for batch in batches} == {
        (7, (), "int32")
    }
