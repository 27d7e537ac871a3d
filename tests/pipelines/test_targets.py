"""A target that lacks what a step makes is refused by name, before a model is even read."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.errors import ConfigError
from stages import STAGES
from stages.gpus import PRECISIONS
from tests.pipelines.planning import plan

REFUSED = [
    (["flow=bf16", "targets=[t4]"], "step cast asks for bf16; target t4: bf16 needs compute capability 8.0"),
    (["flow=fp16", "targets=[t4]", "steps.cast.config.layers={*conv*: bf16}"], "step cast asks for bf16; target t4"),
    (["flow=int4_weights", "targets=[t4]"], "step quantize asks for int4; target t4"),
    (["flow=nvfp4_weights", "targets=[l4]"], "step quantize asks for nvfp4; target l4: nvfp4 needs"),
    (["flow=int8", "steps.quantize.config.precision=fp8", "targets=[a10]"], "step quantize asks for fp8; target a10"),
]


@pytest.mark.parametrize(("overrides", "words"), REFUSED)
def test_a_precision_that_a_target_lacks_is_refused_before_anything_runs(
    overrides: list[str], words: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, overrides)
    assert words in caught.value.what
    assert not list(tmp_path.glob("records/*"))


def test_the_targets_that_have_it_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(tmp_path, ["flow=nvfp4_weights", "targets=[l4,rtx5090,a10]"])
    assert "target l4: nvfp4 needs compute capability 10.0 or higher, the target has 8.9" in caught.value.what
    assert "target a10: nvfp4" in caught.value.what
    assert "targets=[rtx5090]" in caught.value.next_step
    assert "b200, dgx_spark, rtx5090, rtx_pro_6000, thor" in caught.value.next_step
    assert "h100" not in caught.value.next_step


@pytest.mark.parametrize(
    "overrides",
    [
        ["flow=fp16", "targets=[t4]"],
        ["flow=int8_fp16", "targets=[t4,a100]"],
        ["flow=nvfp4_weights", "targets=[rtx5090]"],
    ],
)
def test_what_a_target_has_is_planned(overrides: list[str], tmp_path: Path) -> None:
    assert plan(tmp_path, overrides).nodes


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_asks_for_precisions_that_the_table_of_gpus_knows(name: str) -> None:
    stage = STAGES[name]
    if name != "publish":  # its config has no defaults
        assert set(stage.precisions(stage.config())) <= set(PRECISIONS)
