"""A user's own config directory stands beside the shipped one, and never in front of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.compose import compose, options
from conf.errors import SEE
from tests.conf.test_compose import refused


@pytest.fixture(params=["conf", "my own, 'best' configs (größe=2)"])
def own(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with a model, a flow and a target of the user's own."""
    files = {
        "model/net.yaml": "source: onnx\npath: net.onnx\n",
        "flow/look.yaml": "# @package _global_\nsteps:\n  export: {stage: export, inputs: {onnx: model.onnx}}\n",
        "targets/mine.yaml": '# @package targets.mine\nname: mine\ngpu: Mine\ncompute_capability: "8.6"\n',
    }
    for name, text in files.items():
        path = tmp_path / request.param / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path / request.param


def test_a_target_without_its_package_line_is_told_so(tmp_path):
    (tmp_path / "targets").mkdir()
    (tmp_path / "targets/lab.yaml").write_text("name: lab\ngpu: X\ncompute_capability: '8.9'\n")
    error = refused("targets=[lab]", dirs=[tmp_path])
    assert "# @package targets." in error.next_step


def test_it_adds_models_flows_and_targets(own: Path) -> None:
    config = compose(["model=net", "flow=look", "targets=[mine,l4]"], [own])
    assert (config.model.path, config.flow, list(config.steps)) == ("net.onnx", "look", ["export"])
    assert [target.name for target in config.targets.values()] == ["mine", "l4"]
    assert {"digits", "net"} <= set(options("model", config_dirs=[own]))


def test_the_shipped_ones_stay(own: Path) -> None:
    assert compose([], [own]) == compose()


def test_a_relative_directory_is_found(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(own.parent)
    assert compose(["model=net"], [Path(own.name)]).model.path == "net.onnx"


def test_two_directories_add_up(own: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "model").mkdir(parents=True)
    (tmp_path / "other" / "model" / "other.yaml").write_text("path: other.onnx\n")
    dirs = [own, tmp_path / "other"]
    assert [compose([f"model={name}"], dirs).model.path for name in ("net", "other")] == ["net.onnx", "other.onnx"]


def test_a_wrong_name_gets_close_matches_from_it_too(own: Path) -> None:
    assert refused("model=nett", dirs=[own]).next_step == "did you mean net?"


@pytest.mark.parametrize("name", ["model/digits.yaml", "flow/int8.yaml", "targets/l4.yaml", "backend/tensorrt.yaml"])
def test_a_shipped_name_cannot_be_taken(name: str, own: Path) -> None:
    (own / name).parent.mkdir(exist_ok=True)
    (own / name).write_text("name: x\n")
    error = refused(dirs=[own])
    assert str(own / name) in error.what
    assert f"choose it with {name.partition('/')[0]}=NEW_NAME" in error.next_step


@pytest.mark.parametrize("scheme", ["file://", ""])
def test_hydras_own_search_path_works_and_is_checked(scheme: str, own: Path) -> None:
    quoted = f"{scheme}{own}".replace("'", r"\'")
    search = f"hydra.searchpath=['{quoted}']"
    assert compose([search, "model=net"]).model.path == "net.onnx"
    assert "use one of the two" in refused(search, dirs=[own]).next_step
    (own / "model" / "digits.yaml").write_text("path: x\n")
    assert "trtforge ships a model of this name" in refused(search).what


@pytest.mark.parametrize("name", ["nowhere", "file"])
def test_a_directory_that_is_none_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    error = refused(dirs=[tmp_path / name])
    assert error.what == f"{tmp_path / name}: no such config directory"
    assert "--config-dir" in error.next_step


@pytest.mark.parametrize("text", ["a: [", "\t- a", "name: {{", "a: 1\na: 2", "\0"])
def test_broken_yaml_is_one_line(text: str, own: Path) -> None:
    (own / "model" / "net.yaml").write_text(text)
    refused("model=net", dirs=[own])


@pytest.mark.parametrize(
    ("text", "what", "next_step"),
    [
        ("pth: net.onnx", "In 'model/net': model.pth: Key 'pth' not in 'Model'", "did you mean path?"),
        ("calibration: {bath_size: 3}", "model.calibration.bath_size: Key", "did you mean batch_size?"),
        ("calibration: {batch_size: many}", "In 'model/net': model.calibration.batch_size: Value 'many'", SEE),
        ("source: onx", "In 'model/net': model.source: Invalid value 'onx', expected one of [onnx, torch]", SEE),
        ("dims: 3", "In 'model/net': model.dims: Cannot assign int", SEE),
        ("a: [", "a YAML file cannot be read: ", SEE),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_the_file_and_the_key(
    text: str, what: str, next_step: str, own: Path
) -> None:
    (own / "model" / "net.yaml").write_text(text)
    error = refused("model=net", dirs=[own])
    assert what in error.what
    assert error.next_step == next_step
