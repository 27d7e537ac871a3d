"""`trtforge build`: what it makes, what it keeps, and what it does when something has changed."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stages.plan import read as read_plan
from tests.stages.shape_tensors import ranges, shaper

DIGITS = Path(__file__).parents[2] / "conf/data/digits"
SHARED = ["export", "surgery", "calibrate", "ranges", "quantize"]
TARGETS = {"a10": "8.6", "l4": "8.9", "rtx5090": "12.0"}


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def flip_a_byte(path):
    path = Path(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.chmod(0o644)
    path.write_bytes(content)


def test_the_default_is_a_validated_int8_plan_for_each_of_three_gpus(built):
    ran = built.build()
    assert ran.code == 0
    document = ran.document
    assert document["flow"] == "int8"
    assert document["ok"] is True
    assert {plan["target"]: plan["compute_capability"] for plan in document["plans"]} == TARGETS
    for plan in document["plans"]:
        assert plan["backend"] == "tensorrt_rtx"
        assert plan["validated"] is True
        assert digest(plan["path"]) == plan["digest"]
        assert Path(plan["path"]).stat().st_size == plan["bytes"]


def test_the_document_has_the_fields_of_the_contract_and_no_others(built):
    document = built.build().document
    assert set(document) == {"flow", "ok", "steps", "plans"}
    for step in document["steps"]:
        assert set(step) == {
            "step", "stage", "target", "state", "key", "seconds", "reason", "error", "outputs", "metrics",
        }  # fmt: skip
        assert len(step["key"]) == 64
        for output in step["outputs"].values():
            assert set(output) == {"digest", "bytes", "path"}
    assert set(document["plans"][0]) == {
        "target", "compute_capability", "backend", "backend_version", "path", "digest", "bytes", "validated",
    }  # fmt: skip


def test_shared_steps_run_once_and_the_others_once_per_target(default_build):
    steps = [(step["step"], step["target"]) for step in default_build.document["steps"]]
    assert steps[: len(SHARED)] == [(name, None) for name in SHARED]
    assert sorted(steps[len(SHARED) :]) == sorted((s, t) for s in ("build", "validate", "publish") for t in TARGETS)
    assert set(default_build.states().values()) == {"built"}


def test_int8_keeps_the_accuracy_of_the_trained_model(built):
    metrics = built.build().step("validate", "l4")["metrics"]
    assert metrics["accuracy_reference"] >= 0.98
    assert metrics["accuracy"] >= metrics["accuracy_reference"] - 0.003
    assert metrics["engine_executed"] is False
    assert "8.9" in metrics["reason"]


def test_a_second_build_finds_everything_cached(built):
    ran = built.build()
    assert set(ran.states().values()) == {"cached"}


def test_objects_are_read_only_and_named_by_their_content(built):
    objects = [path for path in (built.store / "objects").rglob("*") if path.is_file()]
    assert objects
    for path in objects:
        assert path.parent.name + path.name == digest(path)
        assert path.stat().st_mode & 0o777 == 0o444


def test_a_record_names_the_whole_question(built):
    key = built.build().step("build", "a10")["key"]
    record = json.loads((built.store / f"records/{key}.json").read_text())
    fields = record["fields"]
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    assert hashlib.sha256(canonical).hexdigest() == key
    assert fields["facts"]["compute_capability"] == "8.6"
    assert fields["facts"]["backend_version"].count(".") == 3
    assert fields["facts"]["gpu"] is None  # plans of TensorRT-RTX run on every GPU of the capability
    assert fields["facts"]["profiles"]["default"]["images"]["max"] == [32, 1, 8, 8]
    assert record["log"]["bytes"] > 0


@pytest.mark.parametrize("step", [*SHARED, "build", "validate", "publish"])
def test_a_flipped_byte_in_an_output_is_found_and_the_step_is_built_again(built, step):
    target = None if step in SHARED else "a10"
    before = built.status().step(step, target)
    for output in before["outputs"].values():
        flip_a_byte(output["path"])
    assert built.status().step(step, target)["state"] in ("missing", "waiting")
    ran = built.build()
    assert ran.code == 0, ran.err
    after = ran.step(step, target)
    assert after["state"] == "built"
    for output in after["outputs"].values():
        assert digest(output["path"]) == output["digest"]
    assert all(plan["validated"] for plan in ran.document["plans"])
    assert list((built.store / "damaged").iterdir())


def test_a_damaged_record_is_built_again(built):
    key = built.status().step("surgery")["key"]
    flip_a_byte(built.store / f"records/{key}.json")
    ran = built.build()
    assert ran.step("surgery")["state"] == "built"
    assert "damaged" in ran.step("surgery")["reason"]


@pytest.mark.parametrize("step", [*SHARED, "build", "validate", "publish"])
def test_a_step_that_gives_the_same_bytes_again_leaves_all_after_it_cached(built, step):
    target = None if step in SHARED else "l4"
    before = built.status().step(step, target)
    (built.store / f"records/{before['key']}.json").unlink()
    ran = built.build()
    again = ran.step(step, target)
    assert again["state"] == "built"
    # The builder alone does not repeat itself byte for byte.
    same = again["outputs"] == before["outputs"]
    assert same or step == "build"
    others = {s["state"] for s in ran.document["steps"] if s["step"] != step and target in (None, s["target"])}
    assert others == ({"cached"} if same else {"built"})
    assert {s["state"] for s in ran.document["steps"] if s["target"] not in (None, target)} == {"cached"}


def test_another_question_with_the_same_answer_leaves_all_after_it_cached(built):
    states = built.build("steps.surgery.config.compare_max_bytes=9999999", "model.calibration.max_samples=100000",
                         "steps.validate.config.generated_samples=9", "targets=[l4]").states()  # fmt: skip
    ran = {name for name, state in states.items() if state == "built"}
    assert ran == {"surgery", "calibrate", "ranges", "validate[l4]"}


def test_another_setting_of_the_builder_runs_the_builder_only(built):
    states = built.build("steps.build.config.max_aux_streams=0", "targets=[a10]").states()
    assert next(name for name, state in states.items() if state == "built") == "build[a10]"
    assert all(states[name] == "cached" for name in SHARED)


def test_two_gpus_of_one_capability_share_a_portable_plan(built):
    ran = built.build("targets=[l4,rtx4090]")
    assert set(ran.states().values()) == {"cached"}
    assert len({plan["digest"] for plan in ran.document["plans"]}) == 1


def test_a_model_that_takes_shapes_as_inputs_becomes_one_plan_for_several_gpus(forge):
    shaper(forge.home / "shaper.onnx")
    values = [
        f"model.profiles.default.{name}={{min: {ends['min']}, opt: {ends['opt']}, max: {ends['max']}, values: true}}"
        for name, ends in ranges().items()
    ]
    ran = forge.build("model=onnx", "model.path=shaper.onnx", "flow=fp32", "targets=[portable]", *values)
    assert ran.code == 0, ran.err
    (made,) = ran.document["plans"]
    assert made["compute_capability"] == "8.0,8.6,8.9,12.0,12.1"
    assert read_plan(Path(made["path"])).compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    metrics = ran.step("validate", "portable")["metrics"]
    assert (metrics["inputs"], metrics["max_abs_error"]) == ("generated", 0)
    assert metrics["reason"] == "no GPU of 8.0, 8.6, 8.9, 12.0 or 12.1 here"
    assert list(forge.store.glob("published/shaper/sm_80_86_89_120_121/*/fp32/model.plan"))


def test_a_plan_that_is_larger_than_the_gpus_memory_is_told_and_nothing_is_built_anew(built):
    ran = built("build", "runner=local", "targets.l4.memory=100kB")
    assert ran.code == 0
    (told,) = [line for line in ran.out.splitlines() if "of memory" in line]
    assert told.startswith("l4: ") and told.endswith("are more than the GPU's 100.0 kB of memory)")
    assert "built" not in ran.out


def test_where_the_model_lies_and_what_it_is_called_do_not_matter(built):
    moved = shutil.copy(DIGITS / "digits.onnx", built.home / "moved and renamed.onnx")
    states = built.build(f"model.path='{moved}'").states()
    assert set(states.values()) == {"cached"}


def test_one_changed_weight_is_another_model(built):
    model = onnx.load(DIGITS / "digits.onnx")
    initializer = next(i for i in model.graph.initializer if len(i.dims) == 4)
    weight = numpy_helper.to_array(initializer).copy()
    weight.flat[0] += 0.25
    initializer.CopyFrom(numpy_helper.from_array(weight, initializer.name))
    onnx.save(model, built.home / "changed.onnx")
    states = built.status(f"model.path={built.home}/changed.onnx").states()
    assert states["export"] == "missing"
    assert states["build[l4]"] == "waiting"


def test_other_calibration_images_or_another_batch_size_are_another_calibration(built):
    with np.load(DIGITS / "calibration.npz") as batches:
        np.savez(built.home / "other.npz", images=batches["images"][::-1])
    for override in (f"model.calibration.path={built.home}/other.npz", "model.calibration.batch_size=16"):
        states = built.status(override).states()
        assert states["surgery"] == "cached"
        assert states["calibrate"] == "missing"


def test_a_gate_that_fails_keeps_the_plan_and_publishes_nothing(built):
    ran = built.build("gates.min_cosine=0.9999999", "targets=[l4]")
    assert ran.code == 3
    assert ran.document["ok"] is False
    assert ran.step("publish", "l4")["state"] == "skipped"
    assert "cosine" in ran.step("validate", "l4")["error"]
    assert ran.document["plans"][0]["validated"] is False
    assert "min_cosine" in ran.err or "cosine" in ran.err


def test_a_gate_that_holds_changes_nothing(built):
    ran = built.build("gates.accuracy_drop=0.01", "gates.plan_bytes=10000000")
    assert ran.code == 0
    assert set(ran.states().values()) == {"cached"}


def test_a_published_plan_lies_in_a_directory_with_its_manifest(built):
    ran = built.build("targets=[l4]")
    version = ran.document["plans"][0]["backend_version"]
    directory = built.store / f"published/digits/sm_89/rtx-{version}/int8"
    assert {path.name for path in directory.iterdir()} == {"model.plan", "manifest.json"}
    manifest = json.loads((directory / "manifest.json").read_text())
    assert digest(directory / "model.plan") == ran.document["plans"][0]["digest"]
    assert ran.document["plans"][0]["digest"] in json.dumps(manifest)


def test_a_damaged_published_plan_is_put_right(built):
    published = next((built.store / "published/digits/sm_89").iterdir()) / "int8/model.plan"
    flip_a_byte(published)
    assert built.build().code == 0
    assert digest(published) in {plan["digest"] for plan in built.status().document["plans"]}


def test_a_sweep_builds_every_combination(built):
    ran = built("build", "--json", "-m", "runner=local", "flow=fp32,fp16", "targets=[l4]")
    assert ran.code == 0, ran.err
    assert [document["flow"] for document in ran.document] == ["fp32", "fp16"]


@pytest.mark.parametrize("flow", ["fp32", "fp16", "bf16", "int8_fp16", "int4_weights", "refit", "export"])
def test_every_other_flow_builds_the_default_model(built, flow):
    ran = built.build(f"flow={flow}", "targets=[rtx5090]")
    assert ran.code == 0, ran.err
    assert len(ran.document["plans"]) == (0 if flow == "export" else 1)
    if flow == "refit":
        assert ran.step("refit", "rtx5090")["metrics"]["method"] == "rebuild"
        assert "GPU" in ran.step("refit", "rtx5090")["metrics"]["reason"]


def test_the_users_own_config_directory_adds_models_flows_and_targets(built):
    own = built.home / "own"
    for group in ("model", "flow", "targets"):
        (own / group).mkdir(parents=True)
    (own / "model/mine.yaml").write_text(f"path: {DIGITS}/digits.onnx\ndims: {{batch: [1, 8, 32]}}\n")
    (own / "targets/card.yaml").write_text(
        "# @package targets.card\nname: card\ngpu: Card\ncompute_capability: '8.9'\n"
    )
    (own / "flow/short.yaml").write_text(
        "# @package _global_\nsteps:\n  export:\n    stage: export\n    inputs: {onnx: model.onnx}\n"
        "  build:\n    stage: build\n    inputs: {onnx: surgery.onnx}\n"
        "  surgery:\n    stage: surgery\n    inputs: {onnx: export.onnx}\n"
    )
    for way in (["--config-dir", str(own)], [f"hydra.searchpath=[file://{own}]"]):
        ran = built("build", "--json", *way, "runner=local", "model=mine", "flow=short", "targets=[card]")
        assert ran.code == 0, ran.err
        assert ran.states()["export"] == "cached"
        assert ran.document["plans"][0]["validated"] is False  # the flow has no such step


def test_a_store_path_with_spaces_and_unicode_works(forge):
    ran = forge.build("flow=export", "store.root='a störe of plans'")
    assert ran.code == 0, ran.err
    assert (forge.home / "a störe of plans/records").is_dir()
