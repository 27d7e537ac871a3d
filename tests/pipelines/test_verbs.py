"""`status`, `ls`, `inspect` and `doctor`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.stages.stage_runs import classifier, facts, run_stage

DIGITS = Path(__file__).parents[2] / "conf/data/digits/digits.onnx"


def test_status_runs_nothing(forge):
    ran = forge.status("targets=[l4]")
    assert ran.code == 0
    assert ran.states()["export"] == "missing"
    assert ran.step("export")["key"]
    assert ran.states()["surgery"] == ran.states()["build[l4]"] == "waiting"
    assert ran.step("surgery")["key"] is None
    assert ran.document["ok"] is False
    assert ran.document["plans"] == []
    assert not list((forge.store / "refs/plans").glob("*"))


def test_status_says_what_a_change_would_run(built):
    states = built.status("steps.quantize.config.skip=[*]").states()
    assert states["calibrate"] == "cached"
    assert states["ranges"] == "missing"  # `auto` tries what `quantize` will make
    assert states["quantize"] == "waiting"
    assert states["build[a10]"] == "waiting"


def test_status_for_people_gives_reasons(built):
    ran = built("status", "flow=fp32")
    assert "build[a10]: missing: not built yet" in ran.out or "waits for" in ran.out


def test_ls_lists_every_record_the_latest_first(built):
    records = built("ls", "--records", "--json").document["records"]
    assert {each["key"] for each in records} == built.records()
    assert [each["built"] for each in records] == sorted((each["built"] for each in records), reverse=True)
    lines = built("ls", "--records").out.splitlines()
    assert [line[:16] for line in lines] == [each["key"][:16] for each in records]
    assert ["digits/int8", "build[l4]"] in [line.split()[-2:] for line in lines]


def test_ls_names_every_plan(built):
    plans = json.loads(built("ls", "--json").out)["plans"]
    assert [plan["name"].split("/")[:2] for plan in plans] == [
        ["digits", "sm_120"],
        ["digits", "sm_86"],
        ["digits", "sm_89"],
    ]
    assert all(plan["published"] and plan["state"] == "ok" for plan in plans)
    for plan in plans:
        assert plan["name"] in built("ls").out


def test_ls_of_an_empty_store_says_what_to_run(forge):
    assert "trtforge build" in forge("ls").out


def test_inspect_reads_a_plan_without_a_gpu(built):
    plan = built.build().document["plans"][0]
    found = json.loads(built("inspect", "--json", plan["path"]).out)
    assert found["kind"] == "plan"
    assert found["compute_capabilities"] == [plan["compute_capability"]]
    assert found["version"] == plan["backend_version"]
    (graph,) = found["profiles"]
    assert graph["weighted"] == {"corrltn": {"int8": 6}, "fully_connected": {"int8": 1}}
    assert [section["tag"] for section in found["sections"]] == ["NGNE", "THGW"]
    assert (found["graphs"], found["unknown"], found["graph_unread_reason"]) == (1, None, None)
    assert graph["memory_budget_bytes"] >= 2**36
    convolution = next(each for each in graph["operations"] if each["kind"] == "corrltn")
    assert "node_conv2d" in convolution["nodes"]
    assert f"\n  corrltn {convolution['name']}: int8 int8 float float -> float\n" in built("inspect", plan["path"]).out


def test_inspect_shows_the_graph_of_every_profile(forge):
    profiles = {
        name: {"x": {end: [rows, 4, 8, 8] for end in ("min", "opt", "max")}} for name, rows in (("few", 4), ("many", 8))
    }
    run_stage("build", forge.home, {"onnx": classifier(forge.home / "net.onnx")}, given=facts(profiles=profiles))
    path = str(forge.home / "model.plan")
    found = forge("inspect", "--json", path).document
    assert (found["graphs"], len(found["profiles"])) == (2, 2)
    for graph in found["profiles"]:
        assert graph["weighted"] and "conv0" in {node for each in graph["operations"] for node in each["nodes"]}
    out = forge("inspect", path).out
    assert "profile 0:" in out and "profile 1:" in out


def test_inspect_reads_an_onnx_file(forge):
    found = json.loads(forge("inspect", "--json", str(DIGITS)).out)
    assert found["kind"] == "onnx"
    assert found["inputs"] == [{"name": "images", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]


@pytest.mark.parametrize("by", ["key", "beginning", "name", "digest"])
def test_inspect_finds_a_record_by_key_by_its_beginning_and_by_name_and_an_object_by_digest(built, by):
    step = built.build().step("build", "l4")
    name = next(p["name"] for p in json.loads(built("ls", "--json").out)["plans"] if p["key"] == step["key"])
    what = {
        "key": step["key"],
        "beginning": step["key"][:12],
        "name": name,
        "digest": step["outputs"]["plan"]["digest"],
    }
    found = json.loads(built("inspect", "--json", what[by]).out)
    if by == "digest":
        assert found["kind"] == "plan"
    else:
        assert (found["kind"], found["key"], found["stage"]) == ("record", step["key"], "build")
        assert "Build" in Path(found["log"]).read_text() or Path(found["log"]).stat().st_size > 0


def test_inspect_of_nothing_and_of_damage_is_one_line(built):
    ran = built("inspect", "nothing-of-that-name")
    assert ran.code == 2
    assert "trtforge ls" in ran.err
    plan = shutil.copy(built.build().document["plans"][0]["path"], built.home / "cut.plan")
    Path(plan).chmod(0o644)
    Path(plan).write_bytes(Path(plan).read_bytes()[:500])
    ran = built("inspect", str(plan))
    assert ran.code == 1
    assert ran.err.count("error: ") == 1


def test_doctor_says_what_this_machine_can_build(forge):
    found = json.loads(forge("doctor", "--json").out)
    builds = {(entry["target"], entry["backend"]): entry["can_build"] for entry in found["targets"]}
    assert builds["l4", "tensorrt_rtx"] is True
    assert builds["h100", "tensorrt_rtx"] is False
    assert found["backends"]["tensorrt_rtx"]["version"].startswith("1.7")
    assert {entry["memory"] for entry in found["targets"] if entry["target"] == "h200"} == {"141GB"}
    for word in ("l4", "h100", "tensorrt_rtx", "GPUs:", "store:"):
        assert word in forge("doctor").out


@pytest.mark.parametrize("verb", ["build", "status", "ls", "inspect", "layers", "diff", "bench", "doctor"])
def test_every_verb_explains_itself(forge, verb):
    ran = forge(verb, "--help")
    assert ran.code == 0
    assert "--json" in ran.out
