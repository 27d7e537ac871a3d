"""`trtforge why`, and the reasons that `status` and `build` give."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from conf.compose import compose
from conf.origin import Origins, causing
from pipelines.keys import NOT_KEYED
from stages import STAGES

DIGITS = Path(__file__).parents[2] / "conf/data/digits"
STREAMS = "steps.build.config.max_aux_streams=5"
FOLD = "steps.surgery.config.compare_max_bytes=4096"


def why(forge, *arguments):
    ran = forge("why", "--json", *arguments)
    assert ran.code == 0, ran.err
    return ran.document


def batches(directory, *values):
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for position, value in enumerate(values):
        np.savez(directory / f"{position:02}.npz", images=np.full((4, 1, 8, 8), value, np.float32))
    return f"model.calibration.path={directory}"


def test_the_document_has_the_fields_of_the_contract(built):
    document = why(built, "build@l4", STREAMS)
    assert set(document) == {"step", "target", "key", "state", "nearest", "differences"}
    assert (document["step"], document["target"], document["state"]) == ("build", "l4", "missing")
    assert document["key"] == built.status(STREAMS).step("build", "l4")["key"]
    assert document["nearest"] == built.status().step("build", "l4")["key"]
    assert document["differences"] == [
        {
            "field": "config.max_aux_streams",
            "before": None,
            "after": 5,
            "because": f"override {STREAMS}",
        }
    ]


def test_both_spellings_of_a_target_are_one(built):
    assert why(built, "build[l4]", STREAMS) == why(built, "build@l4", STREAMS)
    assert why(built, "build", STREAMS, "targets=[l4]")["target"] == "l4"


def test_why_for_people_names_the_field_and_the_override(built):
    ran = built("why", "surgery", FOLD)
    assert "surgery: missing" in ran.out
    assert "steps.surgery.config.compare_max_bytes 268435456 -> 4096, by override" in ran.out


def test_status_and_build_give_the_same_reason(built):
    expected = "steps.surgery.config.compare_max_bytes 268435456 -> 4096, by override"
    status = built.status(FOLD)
    assert status.step("surgery")["reason"] == expected
    assert status.step("calibrate")["reason"] == "waits for surgery"
    assert f"surgery: missing: {expected}" in built("status", FOLD).out
    ran = built.build(FOLD)
    assert (ran.step("surgery")["state"], ran.step("surgery")["reason"]) == ("built", expected)


def test_of_a_step_that_waits_it_says_what_is_to_run_first_and_why(built):
    out = built("why", "build@l4", FOLD).out
    assert "surgery is to run first: steps.surgery.config.compare_max_bytes 268435456 -> 4096" in out
    document = why(built, "build@l4", FOLD)
    assert (document["state"], document["key"]) == ("waiting", None)
    assert [d["because"] for d in document["differences"]] == ["quantize is to run first"]


def test_what_was_never_built_says_so(forge, built):
    forge.build("flow=export")
    shutil.rmtree(forge.store)
    assert "surgery: waiting: never built before" in forge("why", "surgery", "flow=export").out
    assert why(forge, "export", "flow=export") | {"key": None} == {
        "step": "export", "target": None, "key": None, "state": "missing", "nearest": None, "differences": [],
    }  # fmt: skip
    assert forge.status("flow=export").step("export")["reason"] == "not built yet"


def test_what_is_up_to_date_says_so_and_why_it_was_built(built):
    assert "build[l4]: up to date" in built("why", "build@l4").out
    assert why(built, "build@l4")["state"] == "cached"
    built.build(STREAMS, "targets=[l4]")
    again = why(built, "build@l4", STREAMS)
    assert (again["state"], again["nearest"]) == ("cached", why(built, "build@l4")["key"])
    assert [d["because"] for d in again["differences"]] == [f"override {STREAMS}"]


def test_two_records_are_compared_after_the_fact(built):
    earlier = built.status().step("build", "l4")["key"]
    later = built.build(STREAMS, "targets=[l4]").step("build", "l4")["key"]
    document = why(built, earlier, later)
    assert (document["nearest"], document["key"], document["state"]) == (earlier, later, None)
    assert [(d["field"], d["after"]) for d in document["differences"]] == [("config.max_aux_streams", 5)]
    assert document["differences"][0]["because"] == f"override {STREAMS}"
    back = why(built, later[:12], earlier[:12])
    assert [d["because"] for d in back["differences"]] == [f"no override; before: override {STREAMS}"]
    assert "max_aux_streams null -> 5, by override" in built("why", later).out
    assert "no difference" in built("why", later, later).out


def test_changed_batches_are_counted(built):
    given = batches(built.home / "batches", *range(16))
    override = (given, "targets=[l4]", "model.calibration.batch_size=null")
    assert built.build(*override).code == 0
    batches(built.home / "batches", 90, 91, 92, *range(3, 16))
    status = built.status(*override).step("calibrate")
    assert status["reason"] == "calibration batches: 3 of 16 files changed"
    document = why(built, "calibrate", *override)
    assert [d["field"] for d in document["differences"]] == [f"inputs.calibration[{i}]" for i in range(3)]
    assert {d["because"] for d in document["differences"]} == {"another content"}
    batches(built.home / "batches", *reversed(range(16)))
    assert "the same 16 files in another order" in built("why", "calibrate", *override).out
    batches(built.home / "batches", *range(12), 70)
    assert "calibration batches: 16 -> 13 files, 1 of them new" in built("why", "calibrate", *override).out


def test_an_upstream_step_that_gave_other_bytes_is_named(built):
    built.build("flow=export")
    with np.load(DIGITS / "calibration.npz") as content:
        np.savez(built.home / "half.npz", images=content["images"][:64])
    given = f"model.calibration.path={built.home}/half.npz"
    reason = built.build(given, "targets=[l4]").step("quantize")["reason"]
    assert reason == "input ranges: ranges gave other bytes"
    assert built.status().step("quantize")["state"] == "cached"


def test_another_version_of_the_backend_is_told(built):
    _as_if(built, "build", "l4", lambda fields: fields["facts"].update(backend_version="1.6.1.120"))
    now = built.build("targets=[l4]").step("build", "l4")
    assert (now["state"], now["reason"]) == ("built", "tensorrt_rtx 1.6.1.120 -> 1.7.1.116")


def test_another_tool_and_another_version_of_a_stage_are_told(built):
    def older(fields):
        fields["tools"]["onnx"] = "1.0"
        fields["version"] = 0

    _as_if(built, "surgery", None, older)
    reason = built.status().step("surgery")["reason"]
    assert "onnx 1.0 -> " in reason
    assert f"stage surgery: version 0 -> {STAGES['surgery'].version}" in reason
    because = {d["field"]: d["because"] for d in why(built, "surgery")["differences"]}
    assert because == {"tools.onnx": "installed", "version": "the stage's own code"}


def test_where_a_value_came_from(built):
    own = built.home / "own"
    (own / "flow").mkdir(parents=True)
    text = (DIGITS.parents[1] / "flow/int8.yaml").read_text()
    own_config = "inputs: {onnx: export.onnx}\n    config: {passes: [adopt, fold, drop_dead, infer_shapes]}"
    (own / "flow/lean.yaml").write_text(text.replace("inputs: {onnx: export.onnx}", own_config))
    found = why(built, "surgery", "--config-dir", str(own), "flow=lean")["differences"]
    assert {d["because"] for d in found} == {f"{own}/flow/lean.yaml (override flow=lean)"}
    found = why(built, "calibrate", "model.calibration.batch_size=16")["differences"]
    assert [d["because"] for d in found] == ["override model.calibration.batch_size=16"]


def test_a_value_that_is_the_default_again_is_told_with_the_override_of_then(built):
    key = built.status().step("surgery")["key"]
    built.build(FOLD, "targets=[l4]")
    (built.store / f"records/{key}.json").unlink()
    found = why(built, "surgery")["differences"]
    assert [d["because"] for d in found] == [f"default; before: override {FOLD}"]


def test_records_keep_where_their_values_came_from(built):
    earlier = built.status().step("calibrate")["key"]
    override = "model.calibration.batch_size=16"
    later = built.build(override, "targets=[l4]").step("calibrate")["key"]
    found = why(built, earlier, later)["differences"]
    assert [d["because"] for d in found] == [f"override {override}"]
    back = why(built, later, earlier)["differences"]
    assert [d["because"] for d in back] == [f"conf/model/digits.yaml; before: override {override}"]


def test_the_environment_and_files_are_told_apart(monkeypatch):
    monkeypatch.setenv("TRTFORGE_STORE", "elsewhere")
    origins = Origins(["flow=fp16"], [])
    assert compose(["flow=fp16"]).store.root == "elsewhere"
    assert origins.of("store.root") == "variable TRTFORGE_STORE"
    assert origins.of("steps.cast.config.precision") == "conf/flow/fp16.yaml (override flow=fp16)"
    assert origins.of("steps.validate.config.labels") == "conf/model/digits.yaml"
    assert origins.of("runner") == "conf/config.yaml"
    assert origins.of("steps.cast.config.keep_io_types") == "default"


def test_the_last_override_that_matters_is_the_cause():
    given = ["flow=fp16", "++steps.cast.config.keep=[a]", "steps.cast.config.keep=[b]", "steps.cast_other=1"]
    assert causing(given, "steps.cast.config.keep") == "steps.cast.config.keep=[b]"
    assert causing(given, "steps.cast.config") == "steps.cast.config.keep=[b]"
    assert causing(given, "steps.castle") is None


def test_an_override_that_is_in_no_key_is_named_with_the_reason(built):
    out = built("why", "build@l4", "gates.min_cosine=0.5").out
    assert "up to date" in out
    assert f"gates.min_cosine=0.5: in no key: {NOT_KEYED['gates.*']}" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["bild"], ("no step 'bild'", "did you mean build?")),
        (["build@l5"], ("no target 'l5'", "build@l4")),
        (["build"], ("once for each target", "build@l4")),
        (["surgery@l4"], ("shared by all targets", "surgery")),
        (["f" * 64], ("no readable record", "status")),
        (["f" * 64, "e" * 64], ("no readable record", "status")),
    ],
)
def test_what_is_not_there_is_refused_with_close_matches(built, arguments, words):
    ran = built("why", *arguments)
    assert ran.code == 2
    assert words[0] in ran.err
    assert words[1] in ran.err


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"no database" * 999)])
def test_an_index_that_is_gone_or_garbage_changes_no_answer(built, damage):
    expected = why(built, "build@l4", STREAMS)
    damage(built.store / "records.sqlite")
    assert why(built, "build@l4", STREAMS) == expected


def test_with_nothing_to_do_the_index_is_not_touched(built):
    (built.store / "records.sqlite").unlink(missing_ok=True)
    assert set(built.build().states().values()) == {"cached"}
    assert built.status().code == 0
    assert not (built.store / "records.sqlite").exists()


def test_two_processes_ask_at_once(built):
    asked = [built.start("why", "--json", "build@l4", STREAMS) for _ in range(2)]
    answers = [process.communicate(timeout=60)[0] for process in asked]
    assert [process.returncode for process in asked] == [0, 0]
    assert answers[0] == answers[1]


def test_a_store_that_cannot_be_written_still_answers(built):
    (built.store / "records.sqlite").unlink(missing_ok=True)
    (built.store / "records.sqlite").mkdir()  # no file can be made there
    assert why(built, "build@l4", STREAMS)["nearest"]


def _as_if(built, step, target, change):
    """Lets the record of a step look as if it had answered another question."""
    from artifacts.record import Record
    from artifacts.store import Store

    store = Store(built.store)
    key = built.status().step(step, target)["key"]
    record = store.record(key)
    (built.store / f"records/{key}.json").unlink()
    fields = json.loads(json.dumps(record.fields))
    change(fields)
    store.put(Record(fields, record.outputs, record.metrics, record.provenance, record.log))


def test_a_setting_that_changes_nothing_on_the_backend_is_called_so(built):
    level = "steps.build.config.optimization_level=5"
    out = built("why", "build@l4", level).out
    assert f"{level}: in no key: without effect on tensorrt_rtx" in out
    assert "build[l4]: up to date" in out
