"""Which files a model's data are, what of them is in a key, and builds from data as users have them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from conf.errors import ConfigError
from conf.schema import Calibration, Holdout
from pipelines import data
from stages import installed
from stages.data.options import Dataset, Images
from tests.pipelines.planning import DIGITS, keys, plan

RGB = Images(range=[0, 1])


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    return root


def found(root: Path, **options: Any) -> list[str]:
    given = data.files("calibration", Calibration(path=str(root), **options))["calibration"]
    return [path.relative_to(root).as_posix() for path in given]


def refused(**options: Any) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        data.files("calibration", Calibration(**options))
    assert caught.value.next_step
    return caught.value


def test_a_model_without_data_has_none() -> None:
    assert data.files("calibration", Calibration()) == {}
    assert data.fact("calibration", Calibration(), {}, {}) is None


def test_a_directory_of_arrays_is_taken_by_name_and_nothing_else_in_it(tmp_path: Path) -> None:
    assert found(touched(tmp_path, "2.npz", "10.npz", "1.npy", "notes.txt")) == ["1.npy", "10.npz", "2.npz"]


def test_images_are_taken_from_all_subdirectories_in_their_order_and_hidden_ones_are_not(tmp_path: Path) -> None:
    names = ("b/2.jpg", "a-b/1.PNG", "a/9.jpeg", "a/deeper/1.webp", "a/notes.txt", ".thumbs/1.jpg", "a/.1.jpg")
    assert found(touched(tmp_path, *names), images=RGB) == ["a/9.jpeg", "a/deeper/1.webp", "a-b/1.PNG", "b/2.jpg"]


def test_the_number_of_images_in_each_subdirectory_is_known(tmp_path: Path) -> None:
    def classes(holdout: Holdout) -> Any:
        known = data.fact("holdout", holdout, data.files("holdout", holdout), {})
        return known and known["classes"]

    touched(tmp_path, "all/b/1.png", "all/a/2.png", "all/a/c/3.png")
    assert classes(Holdout(path=f"{tmp_path}/all", images=RGB)) == [2, 1]
    assert classes(Holdout(path=f"{tmp_path}/all/a", images=RGB)) is None
    assert classes(Holdout(path=f"{tmp_path}/all/a/2.png", images=RGB)) is None


def test_a_dataset_is_one_split_of_what_was_saved_or_parquet_files(tmp_path: Path) -> None:
    touched(tmp_path, "one/data-0.arrow", "one/state.json", "one/cache.tmp")
    assert found(tmp_path / "one", dataset=Dataset()) == ["data-0.arrow", "state.json"]
    several = touched(tmp_path / "several", "dataset_dict.json", "train/d.arrow", "train/state.json", "test/d.arrow")
    assert found(several, dataset=Dataset(split="train")) == ["train/d.arrow", "train/state.json"]
    with pytest.raises(ConfigError, match="split is None; the dataset has test, train"):
        found(several, dataset=Dataset())
    parquet = touched(tmp_path / "parquet", "train-0.parquet", "train-1.parquet", "test-0.parquet")
    assert found(parquet, dataset=Dataset(split="train")) == ["train-0.parquet", "train-1.parquet"]
    with pytest.raises(ConfigError, match="no file begins so"):
        found(parquet, dataset=Dataset(split="dev"))


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        (["a.txt"], {}, "holds no .npz or .npy file"),
        (["a.txt"], {"images": RGB}, "holds no image file (.jpg, "),
        (["a.txt"], {"dataset": Dataset()}, "holds no Parquet file"),
        ([], {"random": 3}, "samples come from one place"),
        ([], {"dataset": Dataset("a/b", "a" * 40, split="test")}, "samples come from one place"),
        ([], {"callable": "nowhere_at_all:f"}, "module 'nowhere_at_all' is not found"),
        ([], {"callable": "os.path"}, "model.calibration.callable is 'os.path'"),
        ([], {"callable": "gone.py"}, "no such file: gone.py"),
    ],
)
def test_what_is_not_there_is_refused_with_its_key(tmp_path: Path, names: list[str], options: Any, says: str) -> None:
    assert says in str(refused(path=str(touched(tmp_path, *names)), **options))


def test_a_directory_of_another_kind_says_how_to_name_it(tmp_path: Path) -> None:
    assert "model.calibration.images={" in refused(path=str(touched(tmp_path / "i", "a/b.jpg"))).next_step
    assert "model.calibration.dataset.split" in refused(path=str(touched(tmp_path / "d", "a.parquet"))).next_step
    assert "no such file" in str(refused(path=str(tmp_path / "gone"), images=RGB))
    assert "model.calibration.path is not given" in str(refused(images=RGB))


def test_what_reads_the_data_must_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "version", lambda name: None)
    for options, extra in (({"images": RGB}, "images"), ({"dataset": Dataset()}, "datasets")):
        said = Calibration(path=str(touched(tmp_path, "a.png", "a.parquet")), **options)
        with pytest.raises(ConfigError) as caught:
            data.fact("calibration", said, data.files("calibration", said), {})
        assert caught.value.next_step == f"pip install 'trtforge[{extra}]'"


# Keys


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "store"


def key(store: Path, *overrides: str, step: str = "calibrate") -> str:
    return keys(plan(store, ["targets=[l4]", *overrides]))[step]


def pictures(folder: Path, *names: str) -> str:
    rng = np.random.default_rng(len(names))
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(folder / name)
    return f"model.calibration.path='{folder}'"


def test_images_are_known_by_content_and_preprocessing_and_not_by_place(store: Path, tmp_path: Path) -> None:
    how = "model.calibration.images={color: gray, range: [0, 1]}"
    first = key(store, pictures(tmp_path / "one", "a.png", "b.png"), how)
    assert first == key(store, pictures(tmp_path / "two", "a.png", "b.png"), how)
    assert first != key(store, pictures(tmp_path / "two", "c.png"), how)
    assert first != key(store, pictures(tmp_path / "one"), how, "model.calibration.images.range=[-1,1]")


def test_the_same_images_in_other_subdirectories_have_other_labels(store: Path, tmp_path: Path) -> None:
    found = set()
    for name, places in (
        ("one", ("a/1", "a/2", "b/3")),
        ("two", ("a/1", "b/2", "b/3")),
        ("three", ("x/1", "y/2", "y/3")),
    ):
        folder = touched(tmp_path / name)
        for index, place in enumerate(places):
            touched(folder, f"{place}.png")
            (folder / f"{place}.png").write_bytes(bytes([index]))
        given = [f"model.holdout.path='{folder}'", "model.holdout.images={color: gray, range: [0, 1]}"]
        found.add(plan(store, ["targets=[l4]", *given]).workshop.model_facts["holdout"]["classes"].__repr__())
    assert found == {"[2, 1]", "[1, 2]"}


def test_a_callable_is_known_by_its_source_and_the_files_of_its_path(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "load.py").write_text("from helper import N\ndef load_data(files): ...\ndef other(files): ...\n")
    (tmp_path / "helper.py").write_text("N = 1\n")
    touched(tmp_path, "data/a.bin")
    given = ("model.calibration.path=data", "model.calibration.callable=load.py")
    first = key(store, *given)
    assert first == key(store, *given[:1], "model.calibration.callable=load.py:load_data")
    assert first != key(store, *given[:1], "model.calibration.callable=load.py:other")
    moved = touched(tmp_path / "moved", "load.py", "helper.py", "data/a.bin")
    for name in ("load.py", "helper.py", "data/a.bin"):
        (moved / name).write_bytes((tmp_path / name).read_bytes())
    assert first == key(store, "model.calibration.path=moved/data", "model.calibration.callable=moved/load.py")
    found = [first]
    for name in ("load.py", "helper.py", "data/a.bin", "data/b.bin"):
        with (tmp_path / name).open("a") as file:
            file.write("# another line\n")
        found.append(key(store, *given))
    assert len(set(found)) == 5


def test_random_samples_are_known_by_number_seed_and_profile(store: Path) -> None:
    given = ("model.calibration.path=null", "model.calibration.random=8")
    found = [
        key(store, *given, *more)
        for more in ((), ("model.calibration.random=9",), ("model.calibration.seed=1",), ("model.dims.batch=[1,8,64]",))
    ]
    assert len(set(found)) == 4


def test_of_shape_tensors_the_opt_of_the_first_profile_is_known_and_no_sample_is_held_to_them(tmp_path: Path) -> None:
    sizes = {"min": [1, 8], "opt": [1, 16], "max": [1, 32], "values": True}
    x = {"min": [1, 3], "opt": [2, 3], "max": [4, 3]}
    given = {"calibration": [touched(tmp_path, "a.npz") / "a.npz"]}
    profiles = {"b": {"sizes": {**sizes, "opt": [1, 24]}, "x": x}, "a": {"sizes": sizes, "x": x}}
    found = data.fact("calibration", Calibration(path=str(tmp_path)), given, profiles)
    assert found is not None and found["held"] == {"sizes": [1, 16]}
    assert found["shapes"] == {profile: {"x": {"min": [3], "max": [3]}} for profile in profiles}


def test_how_many_samples_a_batch_may_have_is_no_matter_of_calibration(store: Path) -> None:
    """The histograms do not depend on it: a larger batch in the profile runs no pass again."""
    assert key(store) == key(store, "model.dims.batch=[1,8,64]")
    assert key(store, step="validate[l4]") != key(store, "model.dims.batch=[1,8,64]", step="validate[l4]")


def test_other_data_than_the_steps_own_are_refused(store: Path) -> None:
    with pytest.raises(ConfigError, match=r"steps.calibrate.inputs.calibration=model.holdout: how data are read"):
        key(store, "steps.calibrate.inputs.calibration=model.holdout")


# Builds


def digits(folder: Path, archive: str, most: int) -> tuple[np.ndarray, np.ndarray]:
    stored = np.load(DIGITS / archive)
    labels = stored["labels"] if "labels" in stored else np.zeros(len(stored["images"]), int)
    return stored["images"][:most], labels[:most]


BUILD = ("flow=int8", "targets=[l4]", "steps.ranges.config.trial_samples=16")


def test_int8_from_images_and_labelled_images(built: Any) -> None:
    images, labels = digits(built.home, "holdout.npz", 60)
    low, high = float(images.min()), float(images.max())
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = built.home / f"photos/{label}"
        folder.mkdir(parents=True, exist_ok=True)
        values = (image[0] - low) / (high - low) * 255
        Image.fromarray(values.round().astype(np.uint8)).save(folder / f"{index:03}.png")
    how = f"{{path: photos, images: {{color: gray, range: [{low}, {high}]}}}}"
    ran = built.build(*BUILD, f"model.calibration={how}", "model.calibration.batch_size=16", f"model.holdout={how}")
    assert ran.code == 0, ran.err
    calibrated, validated = ran.step("calibrate")["metrics"], ran.step("validate", "l4")["metrics"]
    assert (calibrated["inputs"], calibrated["samples"], calibrated["batches"]) == ("images", 60, 4)
    assert validated["accuracy_reference"] > 0.95  # so that every image has its own label
    assert validated["accuracy_drop"] <= 0.02


def test_int8_from_a_script_that_reads_declared_files(built: Any) -> None:
    images, _ = digits(built.home, "calibration.npz", 48)
    (built.home / "raw").mkdir()
    for index in range(3):
        (built.home / f"raw/{index}.bin").write_bytes(images[index * 16 : index * 16 + 16].tobytes())
    (built.home / "load.py").write_text(
        "import numpy as np\n"
        "def load_data(files):\n"
        "    for file in files:\n"
        "        yield {'images': np.fromfile(file, np.float32).reshape(-1, 1, 8, 8)}\n"
    )
    given = ("model.calibration.path=raw", "model.calibration.callable=load.py")
    ran = built.build(*BUILD, *given)
    assert ran.code == 0, ran.err
    metrics = ran.step("calibrate")["metrics"]
    assert (metrics["inputs"], metrics["samples"], metrics["batches"]) == ("callable", 48, 2)
    document = json.loads(Path(ran.step("ranges")["outputs"]["ranges"]["path"]).read_text())
    assert (document["inputs"], document["trial"]["inputs"]) == ("callable", "callable")
    (built.home / "raw/0.bin").write_bytes(images[32:].tobytes())
    os.utime(built.home / "raw/0.bin")
    assert built.status(*BUILD, *given).step("calibrate")["state"] == "missing"


def test_random_data_are_called_random_in_every_report(built: Any) -> None:
    random = "{path: null, random: 20}"
    given = (f"model.calibration={random}", f"model.holdout={random}", "model.holdout.labels=null")
    ran = built.build(*BUILD, *given)
    assert ran.code == 0, ran.err
    for step, target in (("calibrate", None), ("ranges", None), ("validate", "l4")):
        assert ran.step(step, target)["metrics"]["inputs"] == "random", step
    assert ran.step("ranges")["metrics"]["trial"]["inputs"] == "random"
    assert ran.step("validate", "l4")["metrics"]["samples"] == 20
