"""The YAML that trtforge ships: all of it composes, and says what its name says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from conf.compose import GROUPS, compose, options
from conf.schema import Source
from stages import STAGES

CONF = Path(__file__).parents[2] / "conf"
GIVEN = {  # what a model that names nothing itself must be given
    "digits": [],
    "onnx": ["model.path=net.onnx"],
    "torch": ["model.entry_point=mine:net", "model.inputs={x: {shape: [batch, 3]}}", "model.dims.batch=[1,8,32]"],
}


def shipped(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.mark.parametrize("group", GROUPS)
def test_every_shipped_file_can_be_chosen(group: str) -> None:
    assert options(group) == shipped(group)


def test_every_directory_of_yaml_is_a_group() -> None:
    assert {path.parent.name for path in CONF.glob("*/*.yaml")} == set(GROUPS)


@pytest.mark.parametrize("flow", shipped("flow"))
@pytest.mark.parametrize("model", shipped("model"))
def test_every_flow_composes_with_every_model(flow: str, model: str) -> None:
    config = compose([f"flow={flow}", f"model={model}", "targets=[l4]", *GIVEN[model]])
    assert config.flow == flow
    assert config.model.name == {"digits": "digits", "onnx": "net", "torch": "mine"}[model]


def test_all_targets_are_composed_at_once() -> None:
    targets = shipped("targets")
    assert sorted(compose([f"targets=[{','.join(targets)}]"]).targets) == targets


@pytest.mark.parametrize("backend", shipped("backend"))
def test_a_backend_is_called_what_its_file_is_called(backend: str) -> None:
    assert compose([f"backend={backend}"]).backend.name == backend


@pytest.mark.parametrize("name", shipped("targets"))
def test_a_target_is_called_what_its_file_and_its_package_are_called(name: str) -> None:
    first_line = (CONF / "targets" / f"{name}.yaml").read_text().splitlines()[0]
    assert first_line == f"# @package targets.{name}"
    config = compose([f"targets=[{name}]"])
    assert list(config.targets) == [name]
    target = config.targets[name]
    assert target.name == name
    assert target.gpu
    assert re.fullmatch(r"\d+\.\d(,\d+\.\d)*|local", target.compute_capability)
    assert (target.compute_capability == "local") == (name == "local")
    assert ("," in target.compute_capability) == (name == "portable")
    assert (target.memory is None) == (name in ("local", "portable"))


@pytest.mark.parametrize("flow", shipped("flow"))
def test_a_flow_gives_each_stage_its_inputs_from_outputs_that_exist(flow: str) -> None:
    steps = compose([f"flow={flow}"]).steps
    before: list[str] = []
    for name, step in steps.items():
        stage = STAGES[step.stage]
        assert isinstance(step.config, stage.config)
        assert set(stage.inputs) <= set(step.inputs) <= {*stage.inputs, *stage.optional}
        for source in step.inputs.values():
            giver, _, output = source.partition(".")
            if giver != "model":
                assert giver in before
                assert output in STAGES[steps[giver].stage].outputs
        before.append(name)


def test_the_embedded_model_has_every_file_it_names() -> None:
    assert compose(["model=digits"]).model.weights is None
    model = compose(["model=digits", "model.source=torch"]).model
    assert model.source is Source.torch
    for path in (model.path, model.weights, model.calibration.path, model.holdout.path):
        assert path is not None
        assert Path(path).is_file()


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.relative_to(CONF).as_posix())
def test_the_first_lines_of_a_file_are_about_the_file(path: Path) -> None:
    assert OmegaConf.load(path)
    assert path.read_text().startswith("#") or len(path.read_text().splitlines()) == 1
