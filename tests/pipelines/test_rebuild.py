"""`trtforge rebuild`: a catalog of models, each brought up to date whatever becomes of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from conf.errors import ConfigError
from pipelines import rebuild
from pipelines.errors import Exit

MODEL = "name: {name}\nsource: onnx\npath: {path}\ndims: {{batch: [1, 8, 32]}}\n"
DIGITS = "${package:conf}/data/digits/digits.onnx"


def write_catalog(home: Path, **paths: str) -> Path:
    """A config directory with a model for each of `paths`."""
    directory = home / "catalog"
    (directory / "model").mkdir(parents=True, exist_ok=True)
    for name, path in paths.items():
        (directory / "model" / f"{name}.yaml").write_text(MODEL.format(name=name, path=path))
    return directory


def states(ran):
    return {each["model"]: each["state"] for each in ran.document["models"]}


def test_a_model_that_fails_does_not_keep_the_others_from_being_built(forge):
    (forge.home / "broken.onnx").write_bytes(b"no model")
    catalog = write_catalog(forge.home, net_a=DIGITS, net_b="nowhere.onnx", net_c=DIGITS, net_d="broken.onnx")
    verb = ("rebuild", "--config-dir", str(catalog), "flow=export", "runner=local")
    ran = forge(*verb, "--json")
    assert ran.code == 2  # of the first one that is not up to date
    # The second of two that are the same but for their names finds all in the store.
    assert states(ran) == {"net_a": "built", "net_b": "wrong", "net_c": "cached", "net_d": "wrong"}
    assert ran.document["ok"] is False
    assert [step["state"] for step in ran.document["models"][0]["steps"]] == ["built", "built"]
    assert "nowhere.onnx" in ran.document["models"][1]["error"]
    assert "error: net_b: " in ran.err
    assert (forge.store / "published/net_a/export").is_dir()
    assert (forge.store / "published/net_c/export").is_dir()

    told = forge(*verb, "--models", "net_c,net_a").out.splitlines()
    assert [line.split() for line in told] == [
        ["model", "state", "steps", "built", "seconds"],
        ["net_c", "cached", "2", "0", told[1].split()[-1]],
        ["net_a", "cached", "2", "0", told[2].split()[-1]],
        ["2", "models:", "2", "cached"],
    ]


def test_a_failed_step_is_the_models_own(forge):
    catalog = write_catalog(forge.home, net_a=DIGITS, net_b=DIGITS)
    late = ("steps.surgery.time_limit_s=0.01", "steps.surgery.config.compare_max_bytes=0")
    ran = forge("rebuild", "--json", "--config-dir", str(catalog), "flow=export", "runner=local", *late)
    assert ran.code == 1
    assert states(ran) == {"net_a": "failed", "net_b": "failed"}
    assert forge("rebuild", "-q", "--config-dir", str(catalog), "flow=export", "runner=local").code == 0


def test_a_catalog_with_nothing_to_do_asks_no_server(built):
    built.environment = {"PREFECT_API_URL": "http://127.0.0.1:9/api"}  # which nobody answers
    ran = built("rebuild", "--json", "--models", "digits")
    assert (ran.code, states(ran)) == (0, {"digits": "cached"}), ran.err


def test_all_models_of_the_own_directories_are_a_catalog_and_no_shipped_one(tmp_path):
    catalog = write_catalog(tmp_path, net_b=DIGITS, net_a=DIGITS)
    assert rebuild.choose([], None, [catalog]) == ["net_a", "net_b"]
    assert rebuild.choose([], ["digits", "net_a", "digits"], [catalog]) == ["digits", "net_a"]


@pytest.mark.parametrize(
    ("overrides", "models", "told"),
    [
        ([], None, "no model of your own"),
        ([], [], "--models names none"),
        ([], ["digit"], "there is no model 'digit'"),
        (["model=digits"], None, "model=digits: a catalog has its models from --models"),
    ],
)
def test_what_is_no_catalog_is_refused(overrides, models, told):
    with pytest.raises(ConfigError, match=told):
        rebuild.choose(overrides, models, [])


def test_the_exit_code_is_that_of_the_first_model_that_is_not_up_to_date():
    done, gone = rebuild.Rebuilt("a", 0.0), rebuild.Rebuilt("b", 0.0, exit=Exit.NOBODY_CAN_BUILD)
    late = rebuild.Rebuilt("c", 0.0, exit=Exit.WRONG_CALL)
    assert rebuild.code([done]) is Exit.DONE
    assert rebuild.code([done, gone, late]) is Exit.NOBODY_CAN_BUILD
    assert rebuild.total([gone, late]) == "2 models: 2 wrong"


def test_of_an_architecture_only_its_targets_are_rebuilt():
    overrides = ["flow=fp16", "targets=[l4,a10,rtx4090]"]
    assert rebuild.of_architecture("sm_89", overrides, []) == [*overrides, "targets=[l4,rtx4090]"]
    assert rebuild.of_architecture(None, overrides, []) == overrides
    with pytest.raises(ConfigError, match=r"no target is of sm_90: there are l4 \(sm_89\), a10 \(sm_86\)"):
        rebuild.of_architecture("sm_90", overrides, [])
