"""Models whose weights are kept beside the ONNX file: from step to step, in the store, and in what is published."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.pipelines import heavy
from tests.pipelines.conftest import Forge


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A working directory with a model of 320 MiB, and the store after its export."""
    home = tmp_path_factory.mktemp("heavy")
    heavy.save(home / "net", 5)
    forge = Forge(home)
    ran = forge.build(*EXPORT)
    assert ran.code == 0, ran.err
    yield forge, ran
    shutil.rmtree(home)


EXPORT = ("flow=export", "model=onnx", "model.path=net/heavy.onnx")


def run(path: Path) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path)).run(None, {"x": np.ones((1, heavy.SIDE), np.float32)})[0]


@pytest.mark.xdist_group("heavy")
def test_what_is_published_is_a_whole_model_with_its_data_under_its_own_name(exported):
    forge, _ = exported
    published = forge.store / "published/heavy/export"
    assert {path.name for path in published.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert heavy.locations(published / "model.onnx") == {"model.onnx.data"}
    np.testing.assert_allclose(run(published / "model.onnx"), run(forge.home / "net/heavy.onnx"), atol=1e-6)


@pytest.mark.xdist_group("heavy")
def test_the_end_of_an_export_says_where_the_model_is(exported):
    forge, _ = exported
    assert "heavy: .trtforge/published/heavy/export/model.onnx\n" in forge("build", "runner=local", *EXPORT).out


@pytest.mark.xdist_group("heavy")
def test_the_data_file_is_an_output_and_an_input_of_its_own(exported):
    forge, ran = exported
    outputs = ran.step("export")["outputs"]
    assert set(outputs) == {"onnx", "onnx.data"}
    assert outputs["onnx"]["bytes"] < 10_000
    assert outputs["onnx.data"]["bytes"] == 5 * 4 * heavy.SIDE**2
    record = json.loads((forge.store / "records" / f"{ran.step('surgery')['key']}.json").read_text())
    assert record["fields"]["inputs"] == {"onnx": [outputs[name]["digest"] for name in ("onnx", "onnx.data")]}


@pytest.mark.xdist_group("heavy")
def test_the_store_holds_weights_once_that_no_step_changes(exported):
    _, ran = exported
    assert ran.step("surgery")["outputs"]["onnx.data"] == ran.step("export")["outputs"]["onnx.data"]


@pytest.mark.xdist_group("heavy")
def test_with_nothing_to_do_nothing_is_done(exported):
    forge, _ = exported
    assert forge.build(*EXPORT).states() == {"export": "cached", "surgery": "cached"}


@pytest.mark.xdist_group("heavy")
def test_one_bit_of_the_weights_is_another_model_down_to_the_last_step(exported):
    forge, _ = exported
    heavy.flip(forge.home / "net/w1.bin", 12345)
    try:
        status = forge.status(*EXPORT)
        assert status.states() == {"export": "missing", "surgery": "waiting"}
        assert "model.onnx: 1 of 6 files changed" in status.step("export")["reason"]
        why = forge("why", "surgery", *EXPORT)
        assert why.code == 0, why.err
    finally:
        heavy.flip(forge.home / "net/w1.bin", 12345)


@pytest.mark.xdist_group("heavy")
def test_a_damaged_data_file_in_the_store_is_noticed_and_built_again(exported):
    forge, ran = exported
    damaged = Path(ran.step("export")["outputs"]["onnx.data"]["path"])
    damaged = damaged if damaged.is_absolute() else forge.home / damaged
    damaged.chmod(0o644)
    heavy.flip(damaged, 99)
    again = forge.build(*EXPORT)
    assert again.states() == {"export": "built", "surgery": "cached"}, again.err
    assert again.step("export")["outputs"] == ran.step("export")["outputs"]


@pytest.mark.xdist_group("heavy")
def test_a_missing_external_file_is_one_line(exported):
    forge, _ = exported
    (forge.home / "net/w0.bin").rename(forge.home / "net/away")
    try:
        ran = forge("build", "runner=local", *EXPORT)
    finally:
        (forge.home / "net/away").rename(forge.home / "net/w0.bin")
    assert ran.code == 2
    assert "its external data w0.bin is not there" in ran.err


def test_a_small_model_is_published_as_one_file(forge):
    assert forge.build("flow=export").code == 0
    assert [path.name for path in (forge.store / "published/digits/export").iterdir()] == ["model.onnx"]
