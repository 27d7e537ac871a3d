"""A wrong value of a stage's config is refused while the config is composed, in one wording everywhere."""

from __future__ import annotations

from typing import Any

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from stages import STAGES
from stages.allowed import NotAllowedError
from stages.build_config import BuildConfig
from stages.refit import RefitConfig
from stages.sizes import SIZES

RANGES = "steps.ranges.config"
BUILD, VALIDATE = "steps.build.config", "steps.validate.config"


@pytest.mark.parametrize(
    ("stage", "key", "value", "allowed"),
    [
        ("ranges", "algorithm", "kl", "auto, mse, percentile, max, entropy"),
        *(("ranges", "percentile", value, "above 0, at most 100") for value in (0, 100.1, float("nan"))),
        *(("ranges", key, 0, "1 and more") for key in ("trial_samples", "cache_version")),
        ("cast", "precision", "fp8", "fp16, bf16, fp32"),
        ("build", "refit", "some", "none, any, identical, named"),
        ("build", "max_num_tactics", 0, "-1, or 1 and more, or null"),
        ("build", "refittable_weights", ["w"], "patterns, with refit: named and only then"),
        ("build", "exclude_lean_runtime", True, "with version_compatible: true"),
        ("build", "profiling_verbosity", "loud", "layer_names_only, none, detailed, or null"),
        *(("build", "optimization_level", value, "0 to 5, or null") for value in (-1, 6)),
        ("build", "avg_timing_iterations", 0, "1 and more, or null"),
        ("build", "max_aux_streams", -1, "0 and more, or null"),
        ("refit", "fallback", "maybe", "rebuild, fail"),
        *(("refit", "tolerance", value, "above 0, below 1, or null") for value in (0.0, 1.0, float("nan"))),
        ("surgery", "compare_max_bytes", -1, "0 and more"),
        ("surgery", "tolerance", -1.0, "0 and more, or null"),
        ("validate", "generated_samples", 0, "1 and more"),
        ("validate", "seed", -1, "0 and more"),
        ("export", "opset", 6, "7 and more, or null"),
        *(("export", key, value, "0 and more") for key in ("atol", "rtol") for value in (-1e-9, float("nan"))),
    ],
)
def test_a_config_with_a_wrong_value_cannot_be_made(stage: str, key: str, value: object, allowed: str) -> None:
    with pytest.raises(NotAllowedError) as caught:
        STAGES[stage].config(**{key: value})
    assert str(caught.value) == f"{key}: got {value!r}; allowed: {allowed}"
    assert (caught.value.key, caught.value.allowed) == (key, allowed)


@pytest.mark.parametrize("key", ["pin_tactics", "error_on_miss"])
@pytest.mark.parametrize("without", [{"disable_timing_cache": True}, {"optimization_level": 0}])
def test_timings_cannot_be_asked_for_where_there_is_no_timing_cache(key: str, without: dict[str, Any]) -> None:
    with pytest.raises(NotAllowedError, match="with a timing cache"):
        BuildConfig(**{key: True, **without})
    BuildConfig(**{key: False, **without})


def test_the_ends_of_what_is_allowed_are_allowed() -> None:
    STAGES["ranges"].config(trial_samples=1, percentile=100)
    STAGES["export"].config(opset=7, atol=0.0, rtol=0.0)
    STAGES["surgery"].config(compare_max_bytes=0, tolerance=0.0)
    for level in (0, 5):
        BuildConfig(optimization_level=level, max_num_tactics=-1, avg_timing_iterations=1, max_aux_streams=0)


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ([f"{RANGES}.percentile=0"], f"{RANGES}.percentile: got 0.0; allowed: above 0, at most 100"),
        ([f"{RANGES}.algorithm=kl"], f"{RANGES}.algorithm: got 'kl'; allowed: auto, mse, percentile, max, entropy"),
        ([f"{BUILD}.optimization_level=9"], f"{BUILD}.optimization_level: got 9; allowed: 0 to 5, or null"),
        (
            [f"{BUILD}.memory_pools.workspace=lots"],
            f"{BUILD}.memory_pools.workspace: got 'lots'; allowed: {SIZES}, such as 8GiB, or null",
        ),
        (
            [f"{BUILD}.layer_device_types={{conv0: npu}}"],
            f"{BUILD}.layer_device_types: got 'npu'; allowed: gpu, dla",
        ),
        ([f"{VALIDATE}.seed=-1"], f"{VALIDATE}.seed: got -1; allowed: 0 and more"),
        (["model.holdout.batch_size=0"], "model.holdout.batch_size: got 0; allowed: 1 and more, or null"),
        (
            ["flow=refit", "steps.refit.config.build.optimization_level=9"],
            "steps.refit.config.build.optimization_level: got 9; allowed: 0 to 5, or null",
        ),
        *(
            ([f"steps.build.time_limit_s={limit}"], f"steps.build.time_limit_s: got {got}; allowed: finite, above 0")
            for limit, got in (("inf", "inf"), ("nan", "nan"), ("0", "0.0"), ("-1", "-1.0"))
        ),
    ],
)
def test_composing_refuses_it_with_its_key(overrides: list[str], what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert caught.value.what == what


def test_a_value_taken_from_elsewhere_says_where_to_correct_it() -> None:
    with pytest.raises(ConfigError) as caught:
        compose([f"{RANGES}.percentile=${{model.calibration.seed}}"])
    assert caught.value.what == f"{RANGES}.percentile: got 0.0; allowed: above 0, at most 100"
    assert caught.value.next_step == "it is ${model.calibration.seed}: correct that"


def test_what_is_right_composes_to_the_same_objects() -> None:
    built = BuildConfig(refit="any", strip_plan=True)
    assert compose(["flow=refit"]).steps["refit"].config == RefitConfig(build=built)
    assert compose([f"{BUILD}.optimization_level=5"]).steps["build"].config == BuildConfig(optimization_level=5)
