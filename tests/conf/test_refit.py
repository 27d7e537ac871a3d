"""`refit` on a flow: what it makes of the steps, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from conf.schema import Config, Refit


def shape(config: Config) -> dict[str, dict[str, str]]:
    return {name: dict(step.inputs) for name, step in config.steps.items()}


@pytest.mark.parametrize("flow", ["fp32", "fp16", "bf16", "int8", "int8_fp16", "fp8", "qat", "int8_sensitive"])
def test_any_flow_builds_from_a_structure_and_puts_the_weights_in_afterwards(flow: str) -> None:
    plain, turned = shape(compose([f"flow={flow}"])), compose([f"flow={flow}", "refit=true"])
    steps = shape(turned)
    source = plain["build"]["onnx"]
    assert steps["split"] == {"onnx": source}
    assert steps["build"] == {**plain["build"], "onnx": "split.structure"}
    assert steps["refit"] == {"plan": "build.plan", "structure": "split.structure", "weights": "split.weights"}
    assert steps["validate"] == {**plain["validate"], "plan": "refit.plan"}
    assert steps["publish"] == {**plain["publish"], "plan": "refit.plan"}
    assert [name for name in steps if name not in ("split", "refit")] == list(plain)
    build = turned.steps["build"].config
    assert (build.refit, build.strip_plan, build.refittable_weights) == ("any", True, [])


def test_flow_refit_is_fp32_with_refit() -> None:
    assert shape(compose(["flow=refit"])) == shape(compose(["flow=fp32", "refit=true"]))
    assert shape(compose(["flow=refit", "refit=false"])) == shape(compose(["flow=fp32"]))


def test_named_weights_are_named_to_the_split_and_to_the_builder() -> None:
    config = compose(["refit={mode: named, weights: ['*lora*']}"])
    split, build = config.steps["split"].config, config.steps["build"].config
    assert (split.mode, split.weights) == ("named", ["*lora*"])
    assert (build.refit, build.refittable_weights) == ("named", ["*lora*"])


def test_identical_builds_from_the_whole_model_and_publishes_the_small_plan() -> None:
    config = compose(["flow=fp16", "refit=identical"])
    assert config.steps["build"].inputs["onnx"] == "cast.onnx"
    assert config.steps["validate"].inputs["plan"] == "refit.plan"
    assert config.steps["publish"].inputs["plan"] == "build.plan"
    assert config.steps["publish"].config.stripped


def test_what_is_said_of_the_added_steps_is_taken_and_the_rest_comes_from_build() -> None:
    said = [
        "steps.build.config.tf32=false",
        "steps.refit.config.build.optimization_level=1",
        "steps.refit.time_limit_s=9",
    ]
    step = compose(["flow=refit", "refit.fallback=fail", *said]).steps["refit"]
    assert (step.config.fallback, step.time_limit_s) == ("fail", 9)
    assert (step.config.build.tf32, step.config.build.optimization_level) == (False, 1)


def test_a_flow_of_the_users_own_says_refit_in_its_file_and_an_override_adds_to_it(tmp_path: Path) -> None:
    (tmp_path / "flow").mkdir()
    (tmp_path / "flow" / "mine.yaml").write_text("# @package _global_\ndefaults: [fp16, _self_]\nrefit: true\n")
    assert compose(["flow=mine"], [tmp_path]).refit == Refit()
    assert compose(["flow=mine", "refit.ranges=keep"], [tmp_path]).refit == Refit(ranges="keep")


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        (["refit=often"], "refit.mode: got 'often'; allowed: any, identical, named"),
        (["refit=3"], "refit=3: allowed is true, false, any, identical, named"),
        (["refit.mod=any"], "refit.mod: there is no such option"),
        (["refit=named"], "refit.weights: got []; allowed: patterns, with mode: named and only then"),
        (["refit.weights=['*lora*']"], "refit.weights: got ['*lora*']"),
        (["refit=any", "steps.build.config.refit=identical"], "and steps.build.config.refit is identical"),
        (["refit=any", "steps.build.config.strip_plan=false"], "and steps.build.config.strip_plan is False"),
        (["flow=export", "refit=true"], "flow export: refit needs one step of stage build"),
        (["+steps.again={stage: build, inputs: {onnx: surgery.onnx}}", "refit=true"], "it has 2 steps that build"),
        (
            ["flow=refit", "+steps.own={stage: split, inputs: {onnx: surgery.onnx}}"],
            "own of stage split is its own way",
        ),
    ],
)
def test_a_wrong_mix_is_refused_while_composing(overrides: list[str], what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert what in caught.value.what
    assert caught.value.next_step


BY_HAND: list[str] = [
    "+steps.split={stage: split, inputs: {onnx: surgery.onnx}}",
    "steps.build.inputs.onnx=split.structure",
]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ([], "steps.build.config.refit=none: it builds a structure, whose weights come later"),
        (
            ["steps.build.config.refit=any"],
            "steps.validate.inputs.plan=build.plan: that plan has no weights of the model",
        ),
    ],
)
def test_a_plan_without_weights_is_of_no_use_to_a_step_of_a_flow_written_by_hand(more: list[Any], what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["flow=fp32", *BY_HAND, *more])
    assert what in caught.value.what
