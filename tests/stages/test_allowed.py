"""A wrong value of a stage's config is refused while the config is composed, in one wording everywhere."""

from __future__ import annotations

import pytest

from conf.compose import compose
from conf.errors import ConfigError
from stages import STAGES
from stages.allowed import NotAllowedError
from stages.build import BuildConfig
from stages.refit import RefitConfig

CALIBRATE, RANGES = "steps.calibrate.config", "steps.ranges.config"
BUILD, VALIDATE = "steps.build.config", "steps.validate.config"


@pytest.mark.parametrize(
    ("stage", "key", "value", "allowed"),
    [
        ("ranges", "algorithm", "kl", "auto, mse, percentile, max, entropy"),
        *(("ranges", "percentile", value, "above 0, at most 100") for value in (0, 100.1, float("nan"))),
        *(("ranges", key, 0, "1 and more") for key in ("trial_samples", "cache_version")),
        *(("calibrate", key, 0, "1 and more, or null") for key in ("batch_size", "max_samples")),
        ("cast", "precision", "fp8", "fp16, bf16"),
        ("build", "refit", "some", "none, any, identical"),
        ("build", "profiling_verbosity", "loud", "layer_names_only, none, detailed, or null"),
        *(("build", "optimization_level", value, "0 to 5, or null") for value in (-1, 6)),
        ("build", "workspace_bytes", 0, "1 and more, or null"),
        ("build", "max_aux_streams", -1, "0 and more, or null"),
        ("refit", "fallback", "maybe", "rebuild, fail"),
        ("surgery", "compare_max_bytes", -1, "0 and more"),
        ("surgery", "tolerance", -1.0, "0 and more, or null"),
        ("validate", "batch_size", 0, "1 and more"),
        ("validate", "max_samples", -5, "1 and more, or null"),
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


def test_the_ends_of_what_is_allowed_are_allowed() -> None:
    STAGES["calibrate"].config(batch_size=1, max_samples=1)
    STAGES["ranges"].config(batch_size=1, max_samples=1, trial_samples=1, percentile=100)
    STAGES["export"].config(opset=7, atol=0.0, rtol=0.0)
    STAGES["surgery"].config(compare_max_bytes=0, tolerance=0.0)
    for level in (0, 5):
        BuildConfig(optimization_level=level, workspace_bytes=1, max_aux_streams=0)


@pytest.mark.parametrize(
    ("overrides", "what"),
    [
        ([f"{RANGES}.percentile=0"], f"{RANGES}.percentile: got 0.0; allowed: above 0, at most 100"),
        ([f"{RANGES}.algorithm=kl"], f"{RANGES}.algorithm: got 'kl'; allowed: auto, mse, percentile, max, entropy"),
        ([f"{BUILD}.optimization_level=9"], f"{BUILD}.optimization_level: got 9; allowed: 0 to 5, or null"),
        ([f"{VALIDATE}.batch_size=0"], f"{VALIDATE}.batch_size: got 0; allowed: 1 and more"),
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
        compose(["model.calibration.batch_size=0"])
    assert caught.value.what == f"{CALIBRATE}.batch_size: got 0; allowed: 1 and more, or null"
    assert caught.value.next_step == "it is ${model.calibration.batch_size}: correct that"


def test_what_is_right_composes_to_the_same_objects() -> None:
    assert compose(["flow=refit"]).steps["refit"].config == RefitConfig()
    assert compose([f"{BUILD}.optimization_level=5"]).steps["build"].config == BuildConfig(optimization_level=5)
