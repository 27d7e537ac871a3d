"""Ranges through the command line: calibration runs once for every algorithm, and a user's own file takes its place."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

LOCAL = ("runner=local", "targets=[l4]")
UNCALIBRATED = ("model.calibration.path=null",)


def output(ran, step: str, name: str) -> Path:
    return Path(ran.step(step)["outputs"][name]["path"])


def test_another_algorithm_does_not_run_the_model_over_all_batches_again(built):
    ran = built.build(*LOCAL, "steps.ranges.config.algorithm=max")
    assert (ran.step("calibrate")["state"], ran.step("ranges")["state"]) == ("cached", "built")
    assert ran.step("ranges")["metrics"]["algorithm"] == "max"


def test_auto_reports_each_candidate_and_the_one_that_won(built):
    ran = built.build(*LOCAL)
    metrics = ran.step("ranges")["metrics"]
    assert metrics["algorithm"] in metrics["trial"]["scores"]
    document = json.loads(output(ran, "ranges", "ranges").read_text())
    assert document["trial"] == metrics["trial"]


def test_an_exported_cache_fed_back_without_calibration_data_gives_the_same_model(built):
    before = built.build(*LOCAL)
    cache = built.home / "own.cache"
    cache.write_bytes(output(before, "ranges", "cache").read_bytes())
    ran = built.build(*LOCAL, f"model.ranges={cache}", *UNCALIBRATED)
    assert ran.code == 0, ran.err
    assert ran.step("ranges")["metrics"]["format"] == "calibration cache"
    assert ran.step("quantize")["outputs"] == before.step("quantize")["outputs"]
    assert ran.step("build", "l4")["state"] == "cached"


def test_of_own_ranges_the_content_counts_and_not_the_path(built):
    document = json.loads(output(built.build(*LOCAL), "ranges", "ranges").read_text())
    keys = []
    for name, amax in (("a.json", 1.0), ("b.json", 1.0), ("b.json", 1.5)):
        document["tensors"]["images"]["amax"] = amax
        (built.home / name).write_text(json.dumps(document))
        keys.append(built.status(*LOCAL, f"model.ranges={built.home}/{name}").step("ranges")["key"])
    assert keys[0] == keys[1] != keys[2]


def test_ranges_of_another_model_fail_in_one_line_with_what_to_do(built):
    (built.home / "own.json").write_text('{"tensors": {"elsewhere": {"amax": 1}}}')
    ran = built("build", *LOCAL, f"model.ranges={built.home}/own.json")
    assert ran.code == 1
    (line,) = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert "no tensor for the range of elsewhere" in line
    assert "next: model.ranges: give ranges of this model" in ran.err


def test_a_ranges_file_that_is_not_there_is_refused_before_anything_runs(built):
    ran = built("build", *LOCAL, "model.ranges=nowhere.json")
    assert ran.code == 2
    assert "model.ranges=nowhere.json: no such file" in ran.err


def test_auto_tries_what_quantize_will_make_of_its_options(built):
    """The step `ranges` takes them from the step `quantize`, so that they are said once."""
    ran = built.build(*LOCAL, 'steps.quantize.config.skip_ops=["Gemm"]')
    assert (ran.step("calibrate")["state"], ran.step("ranges")["state"]) == ("cached", "built")
    assert len(ran.step("quantize")["metrics"]["skipped"]) == 1


@pytest.mark.skipif(find_spec("modelopt") is not None, reason="modelopt is installed")
def test_modelopt_takes_the_place_of_quantize_by_one_override_and_says_what_it_needs(built):
    """It needs calibration data, which the flow gives to no step `quantize`: the model's are taken."""
    ran = built("build", *LOCAL, "steps.quantize.stage=modelopt_quantize")
    assert ran.code == 1
    assert "nvidia-modelopt is not installed" in ran.err
