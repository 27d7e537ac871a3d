"""`trtforge validate`: compares what is built, builds nothing, and says in one line what cannot be compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from conf.errors import ConfigError
from stages.intervals import wilson
from tests.pipelines.conftest import Forge
from tests.pipelines.planning import plan

DIGITS = Path(__file__).parents[2] / "conf/data/digits"
L4 = "targets=[l4]"


@pytest.fixture(scope="module")
def shared(tmp_path_factory, default_store):
    """A store with the default build, for tests that only add records to it."""
    home = tmp_path_factory.mktemp("validation")
    shutil.copytree(default_store, home / ".trtforge", symlinks=True)
    return Forge(home)


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    images = np.load(DIGITS / "holdout.npz")["images"]
    logits = onnxruntime.InferenceSession(str(DIGITS / "digits.onnx")).run(None, {"images": images})[0]
    path = tmp_path_factory.mktemp("golden") / "golden.npz"
    np.savez(path, logits=logits)
    return path


def test_it_prints_a_row_for_each_output_and_target_and_moves_nothing(shared):
    before = sorted(path.name for path in (shared.store / "records").iterdir())
    ran = shared("validate")
    assert ran.code == 0, ran.err
    rows = [line.split() for line in ran.out.splitlines() if "candidate / onnx" in line]
    assert [row[0] for row in rows] == ["a10", "l4", "rtx5090"] and {row[4] for row in rows} == {"logits"}
    assert "l4: accuracy of the candidate 99.44%, of the reference 99.44%: drop" in ran.out
    assert "l4: the plan was not executed: no GPU of 8.9 here" in ran.out
    assert sorted(path.name for path in (shared.store / "records").iterdir()) == before


def test_its_document_holds_the_whole_report(shared):
    document = shared("validate", "--json", L4).document
    assert document["ok"] is True and document["flow"] == "int8"
    (told,) = document["validations"]
    assert (told["step"], told["target"], told["state"], told["refusals"]) == ("validate", "l4", "cached", [])
    assert told["report"] == json.loads(Path(told["path"]).read_text())
    assert told["report"]["summary"]["overlap"]["count"] == 0


def test_a_plan_that_is_not_built_is_named_with_the_command_that_builds_it(shared):
    ran = shared("validate", L4, "flow=fp16")
    assert ran.code == 2
    assert (
        "build[l4], cast: not built yet" in ran.err
        and "next: build first: trtforge build targets=[l4] flow=fp16" in ran.err
    )


def test_a_flow_without_validation_is_refused(shared):
    ran = shared("validate", "flow=export")
    assert ran.code == 2 and "flow export has no step of stage validate" in ran.err


def test_a_gate_that_says_no_is_exit_code_3(shared):
    ran = shared("validate", L4, "gates.min_cosine=0.9999999")
    assert ran.code == 3 and "the gate says no: cosine" in ran.err


def test_it_compares_against_another_plan_by_name_and_by_key(shared):
    listed = json.loads(shared("ls", "--json").out)["plans"]
    earlier = next(each for each in listed if "sm_89" in each["name"])
    (told,) = shared("validate", "--json", L4, "--against", earlier["name"]).document["validations"]
    summary = told["report"]["summary"]
    assert summary["reference"] == "against" and summary["max_abs_error"] == 0.0
    assert told["report"]["runtimes"]["reference"]["name"] == "ONNX of an earlier plan"
    by_name, by_key = (
        next(node.files for node in plan(shared.store, [L4, f"steps.validate.config.against='{against}'"]).nodes
             if node.step == "validate") for against in (earlier["name"], earlier["key"][:12])
    )  # fmt: skip
    assert by_name == by_key and {"against_plan", "against_onnx"} <= set(by_key)


def test_it_compares_against_an_onnx_file_and_against_golden_outputs(shared, golden):
    for against, word in ((DIGITS / "digits.onnx", "against"), (golden, "golden")):
        (told,) = shared("validate", "--json", L4, "--against", str(against)).document["validations"]
        assert told["report"]["summary"]["reference"] == word
        assert 0.05 < told["report"]["summary"]["max_abs_error"] < 0.5


def test_a_place_where_nothing_else_was_published_has_nothing_to_be_held_against(shared):
    ran = shared("validate", L4, "--against", "published")
    assert ran.code == 1 and "no other plan is published in this place" in ran.err


def test_labels_of_another_length_are_refused_with_the_file(shared):
    with np.load(DIGITS / "holdout.npz") as data:
        np.savez(shared.home / "short.npz", images=data["images"], labels=data["labels"][:-1])
    ran = shared("validate", L4, f"model.holdout.path={shared.home}/short.npz")
    assert ran.code == 1 and ran.err.count("error: ") == 1
    assert "different numbers of samples" in ran.err and "next: " in ran.err


def test_a_metric_that_raises_is_named_with_its_line(shared):
    (shared.home / "judge.py").write_text("def metric(outputs, labels):\n    return outputs[0]['boxes']\n")
    ran = shared("validate", L4, "model.holdout.metric=judge.py")
    assert ran.code == 1 and ran.err.count("error: ") == 1
    assert f"judge.py:metric raised KeyError: 'boxes' ({shared.home}/judge.py:2)" in ran.err


def test_a_metric_judges_with_intervals_and_its_source_is_in_the_key(shared):
    code = (
        "import numpy as np\n\n\ndef hit(outputs, labels):\n"
        "    return np.concatenate([each['logits'].argmax(1) == right for each, right in zip(outputs, labels)])\n"
    )
    (shared.home / "own_metric.py").write_text(code)
    override = "model.holdout.metric=own_metric:hit"
    ran = shared("validate", L4, override)
    assert ran.code == 0, ran.err
    low, high = wilson(358, 360)
    assert f"l4: metric of the candidate 0.994444 ({low:.6g} to {high:.6g})" in ran.out and "drop 0 (-0.01" in ran.out
    (shared.home / "own_metric.py").write_text(code + "\n")
    assert shared.status(L4, override).states()["validate[l4]"] == "missing"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["model.holdout.metric=absent:hit"], "model.holdout.metric: module 'absent' is not found"),
        (["model.holdout.metric=hit"], "model.holdout.metric is 'hit'"),
        (["model.holdout.metric=a:b", "model.holdout.labels=null"], "needs labels, and the held-out data have none"),
        (["model.holdout.golden=nowhere.npz"], "model.holdout.golden=nowhere.npz: no such file"),
        (["steps.validate.config.references=[torch]"], "compares with torch, and model digits is an ONNX file"),
        (
            ["steps.validate.config.references=[gold]"],
            "references: got ['gold']; allowed: some of onnx, torch, golden, against",
        ),
        (["steps.validate.config.against=golden.npz"], "arrays are golden outputs"),
        (["steps.validate.config.against=nowhere.onnx"], "no file, no key of the store, no name of a plan"),
        (["model.holdout.metric_direction=up"], "metric_direction: got 'up'; allowed: higher, lower"),
    ],
)
def test_what_the_config_has_wrong_is_refused_before_anything_runs(overrides, words, shared):
    with pytest.raises(ConfigError) as caught:
        plan(shared.store, [L4, *overrides])
    assert words in caught.value.what and caught.value.next_step


def test_held_out_samples_that_were_calibrated_with_are_a_warning_by_name_and_count(shared):
    with np.load(DIGITS / "holdout.npz") as held, np.load(DIGITS / "calibration.npz") as calibrated:
        images = np.concatenate([held["images"][:5], calibrated["images"][10:13], held["images"][5:9]])
    np.savez(shared.home / "mixed.npz", images=images)
    mixed = (L4, f"model.holdout.path={shared.home}/mixed.npz", "model.holdout.labels=null")
    for _ in range(2):  # built, then cached
        ran = shared("validate", "--json", *mixed)
        assert ran.code == 0
        assert "warning: validate: 3 of 12 held-out samples are in model.calibration, too: 5, 6, 7" in ran.err
    assert ran.document["validations"][0]["report"]["summary"]["overlap"]["count"] == 3


def test_a_flow_that_calibrates_nothing_does_not_depend_on_calibration_data(shared):
    names = {flow: next(n for n in plan(shared.store, [L4, f"flow={flow}"]).nodes if n.step == "validate").files
             for flow in ("fp32", "int8")}  # fmt: skip
    assert "calibration" not in names["fp32"] and "calibration" in names["int8"]


def test_a_published_plan_is_what_the_next_one_is_held_against_and_not_itself(built):
    first = built.build(L4).step("validate", "l4")["metrics"]
    assert first["reference"] == "onnx"
    overrides = (L4, "steps.validate.config.against=published", "steps.ranges.config.algorithm=max")
    ran = built.build(*overrides)
    assert ran.code == 0, ran.err
    metrics = ran.step("validate", "l4")["metrics"]
    assert metrics["reference"] == "against" and 0 < metrics["max_abs_error"] < 1
    again = built.build(*overrides)
    assert set(again.states().values()) == {"cached"}
    assert again.step("validate", "l4")["key"] == ran.step("validate", "l4")["key"]
