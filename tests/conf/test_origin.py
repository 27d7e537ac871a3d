"""Where a value came from is found without parsing a config file more than once."""

from __future__ import annotations

from conf import origin
from conf.origin import Origins

STEPS = [f"steps.{step}.{field}" for step in ("export", "surgery", "build") for field in ("stage", "config.opset")]
FIELDS = [*STEPS, "targets.l4.gpu", "targets.l4.memory", "store.root", "runner", "gates"]


def test_a_config_file_is_parsed_once_however_many_values_ask_for_it():
    origin._read.cache_clear()
    for name in ("one", "another"):
        origins = Origins([f"model.name={name}", "store.budget=1GiB"], [])
        found = {field: origins.of(field) for field in FIELDS}
        assert found["steps.build.stage"] == "conf/flow/int8.yaml"
        assert found["targets.l4.gpu"] == "conf/targets/l4.yaml"
    seen = origin._read.cache_info()
    assert seen.misses <= 10, "flow, model, backend, store, config and a file for each target"
    assert seen.hits > 3 * seen.misses


def test_a_file_that_was_edited_is_read_anew(tmp_path):
    (tmp_path / "flow").mkdir()
    file = tmp_path / "flow/mine.yaml"
    step = "# @package _global_\nsteps:\n  export:\n    stage: export\n    inputs: {onnx: model.onnx}\n"
    told = []
    for text in (step, f"{step}    time_limit_s: 60\n"):
        file.write_text(text)
        told.append(Origins(["flow=mine"], [tmp_path]).of("steps.export.time_limit_s"))
    assert told == ["default", f"{tmp_path}/flow/mine.yaml (override flow=mine)"]
