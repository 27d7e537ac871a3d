"""`steps.quantize.config.skip=auto`: the flow gets the steps that find the layers, with the flow's gates."""

from __future__ import annotations

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from conf.origin import Origins
from stages.keep_float import JUDGED

AUTO = "steps.quantize.config.skip=auto"
GATE = "gates.min_sqnr_db=30"


@pytest.mark.parametrize("flow", ["int8", "fp8", "int8_fp16"])
def test_a_flow_that_quantizes_gets_the_two_steps_before_it(flow: str) -> None:
    config = compose([f"flow={flow}", AUTO, GATE, "targets=[l4]"])
    names = list(config.steps)
    place = names.index("quantize")
    assert names[place - 2 : place] == ["sensitivity", "keep_float"]
    quantize, search = config.steps["quantize"], config.steps["keep_float"]
    assert quantize.inputs["float_layers"] == "keep_float.layers"
    assert search.inputs == {
        "onnx": "surgery.onnx",
        "ranges": "ranges.ranges",
        "calibration": "model.calibration",
        "sensitivity": "sensitivity.sensitivity",
    }
    assert search.config.precision == config.steps["sensitivity"].config.precision == quantize.config.precision
    assert {gate: getattr(search.config, gate) for gate in JUDGED if getattr(search.config, gate)} == {
        "min_sqnr_db": 30.0
    }


def test_what_quantize_leaves_out_is_left_out_of_the_search() -> None:
    given = ["steps.quantize.config.skip_ops=[Add]", "steps.quantize.config.attention=qk_pv"]
    search = compose([AUTO, GATE, *given]).steps["keep_float"].config
    assert (search.skip_ops, search.attention) == (["Add"], "qk_pv")


def test_the_search_takes_options_of_its_own_and_may_ask_for_more_than_the_gate() -> None:
    config = compose([AUTO, GATE, "steps.keep_float.config.samples=8", "steps.keep_float.config.min_sqnr_db=32"])
    assert config.steps["keep_float"].config.samples == 8
    assert config.steps["keep_float"].config.min_sqnr_db == 32
    assert config.gates.min_sqnr_db == 30


def test_ranges_are_the_same_question_as_without() -> None:
    assert compose([AUTO, GATE]).steps["ranges"].config == compose([]).steps["ranges"].config


def test_it_goes_together_with_refitting() -> None:
    names = list(compose([AUTO, GATE, "refit=true"]).steps)
    assert names[names.index("sensitivity") :][:6] == [
        "sensitivity",
        "keep_float",
        "quantize",
        "split",
        "build",
        "refit",
    ]


def test_flows_that_do_not_ask_are_as_they_were() -> None:
    assert "keep_float" not in compose([GATE]).steps
    assert "keep_float" not in compose(["flow=fp16"]).steps


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ([AUTO], "no gate says how near to float32 the model must stay"),
        ([AUTO, "gates.plan_bytes=100"], "no gate says how near to float32"),
        ([AUTO, GATE, "flow=int8_sensitive"], r"skip_sensitive=3: skip=auto finds how many"),
        ([AUTO, GATE, "steps.quantize.config.min_sqnr_db=20"], "min_sqnr_db=20: skip=auto finds how many"),
        ([AUTO, GATE, "steps.quantize.stage=modelopt_quantize"], "stage modelopt_quantize takes a list of patterns"),
        (["steps.quantize.config.skip=conv1", GATE], "a list of patterns, or auto"),
        ([AUTO, GATE, "steps.keep_float.config.most_tries=1"], r"steps.keep_float.config.most_tries: got 1"),
        ([AUTO, GATE, "steps.keep_float.config.min_cosin=1"], "there is no such option"),
    ],
)
def test_what_makes_no_sense_is_refused_while_composing(overrides: list[str], what: str) -> None:
    with pytest.raises(ConfigError, match=what):
        compose(overrides)


def test_a_gate_of_the_search_came_from_the_flows_gate() -> None:
    assert Origins([AUTO, GATE], []).of("steps.keep_float.config.min_sqnr_db") == f"override {GATE}"
