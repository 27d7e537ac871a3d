"""What a composed config was made from is known, and every change of it is seen."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import omegaconf
import pytest

from conf import schema
from conf.compose import compose
from conf.trace import Trace

HOUR_NS = 3600 * 10**9
MODEL = "path: ${oc.env:NET,net}.onnx\n"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "own/model").mkdir(parents=True)
    (tmp_path / "own/model/mine.yaml").write_text(MODEL)
    return tmp_path / "own"


def traced(own: Path, *overrides: str) -> Trace:
    trace = Trace()
    compose(["targets=[l4]", *overrides], [own], trace)
    return trace


def test_files_places_and_variables_are_noted(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NET", "other")
    trace = traced(own, "model=mine")
    assert trace.variables["NET"] == "other"
    assert list(trace.files) == [f"{own}/model/mine.yaml"]
    assert trace.places[f"{own}/model/mine.yaml"] == "file"
    assert not trace.unsure
    assert trace.holds()


def test_what_is_young_is_not_settled_and_settles_later(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = traced(own, "model=mine")
    assert not trace.settled()
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + HOUR_NS)
    assert trace.settled()
    os.utime(own / "model/mine.yaml")  # the same bytes, and yet something happened to it while it was read
    assert not trace.settled()
    assert trace.holds()


@pytest.mark.parametrize(
    "change",
    [
        lambda own: (own / "model/mine.yaml").write_text(MODEL + "name: x\n"),
        lambda own: (own / "model/mine.yaml").unlink(),
        lambda own: (own / "hydra/launcher").mkdir(parents=True) or (own / "hydra/launcher/basic.yaml").touch(),
        lambda own: os.environ.update(NET="else"),
    ],
    ids=["edited", "gone", "a file where none was", "variable"],
)
def test_a_change_is_seen(own: Path, change: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NET", "net")
    trace = traced(own, "model=mine")
    assert trace.holds()
    change(own)
    assert not trace.holds()


@pytest.mark.parametrize("value", ["${now:%H}", "${now:%Y-%m-%d}", "${package:json}"])
def test_what_is_not_in_the_config_alone_is_doubted(own: Path, value: str) -> None:
    assert traced(own, "model=mine", f"model.name='{value}'").unsure


def test_nothing_is_noted_of_a_config_that_nobody_traces(own: Path) -> None:
    trace = traced(own, "model=mine")
    before = dict(trace.variables), dict(trace.places)
    compose(["targets=[l4]", "model=mine"], [own])
    assert (trace.variables, trace.places) == before


def test_what_must_be_given_is_called_as_omegaconf_calls_it() -> None:
    assert schema.MISSING == omegaconf.MISSING
