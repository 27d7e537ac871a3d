"""The verb `bench`, and the step of that stage in a flow."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import helper

from conf.compose import compose
from conf.errors import ConfigError
from pipelines.bench import with_step
from pipelines.execute import AGAIN
from tests.pipelines.conftest import Forge
from tests.pipelines.planning import keys, plan
from tests.stages.stage_runs import model, save
from tests.stages.stand_in_libraries import make_machine

BINDINGS = Path(__file__).parents[2] / ".venv-bindings"
SHORT = tuple(
    f"steps.bench.config.{setting}" for setting in ("warmup_ms=0", "duration_ms=0", "iterations=3", "points=[opt,max]")
)
STEP = "{stage: bench, inputs: {onnx: surgery.onnx, plan: build.plan}}"


@pytest.mark.parametrize(
    ("overrides", "inputs"),
    [
        (["flow=int8"], {"onnx": "quantize.onnx", "plan": "build.plan"}),
        (["flow=fp16"], {"onnx": "cast.onnx", "plan": "build.plan"}),
        (["flow=refit"], {"onnx": "surgery.onnx", "plan": "refit.plan"}),
        (["flow=fp16", "~steps.validate", "~steps.publish"], {"onnx": "cast.onnx", "plan": "build.plan"}),
        (["flow=fp16", "steps.bench.config.streams=[3]"], {"onnx": "cast.onnx", "plan": "build.plan"}),
        (["flow=fp16", f"steps.bench={STEP}"], {"onnx": "surgery.onnx", "plan": "build.plan"}),
    ],
    ids=" ".join,
)
def test_a_flow_without_the_step_gets_one_that_times_its_plan(overrides, inputs):
    config = compose(with_step(overrides, ()))
    assert dict(config.steps["bench"].inputs) == inputs
    assert {name for name, step in config.steps.items() if step.stage == "bench"} == {"bench"}
    assert config.steps["bench"].config.streams == ([3] if "streams" in overrides[-1] else [1, 2])


def test_a_step_of_another_name_is_the_one_that_is_run():
    overrides = ["flow=fp16", f"steps.speed={STEP}"]
    assert with_step(overrides, ()) == overrides


def test_a_flow_that_makes_no_plan_has_nothing_to_time():
    with pytest.raises(ConfigError, match="flow export makes no plan that could be timed"):
        with_step(["flow=export"], ())


def test_a_time_is_that_of_a_kind_of_machine(tmp_path, monkeypatch):
    """Another CPU is another question; the plan that is timed stays the same."""
    asked = ["flow=fp32", "targets=[l4]", f"steps.bench={STEP}"]
    here = keys(plan(tmp_path, asked))
    monkeypatch.setattr("stages.machine.cpu", lambda: "another model")
    there = keys(plan(tmp_path, asked))
    assert {name for name in here if here[name] != there[name]} == {"bench[l4]"}


def test_a_plan_is_timed_once_and_again_when_asked_and_a_remote_is_not_asked_for_it(built):
    asked = ("targets=[l4]", *SHORT, f"store.remote=file://{built.home}/remote")
    first = built("bench", "--json", *asked)
    assert first.code == 0, first.err
    (told,) = first.document["benchmarks"]
    assert (told["state"], told["target"], first.document["flow"]) == ("built", "l4", "int8")
    summary = told["report"]["summary"]
    assert summary["engine_executed"] is False and summary["latency_ms"] is None and summary["host_latency_ms"] > 0
    assert [point["point"] for point in told["report"]["points"]] == ["opt", "max"]
    assert Path(told["outputs"]["times"]["path"]).read_text() == "[\n\n]\n"
    records = built.records()

    (kept,) = built("bench", "--json", *asked).document["benchmarks"]
    assert kept["state"] == "cached" and kept["outputs"] == told["outputs"]
    assert list((built.home / "remote").rglob(f"{told['key']}*")), "it was shared"
    again = built("bench", "--json", "--again", *asked)
    (anew,) = again.document["benchmarks"]
    assert anew["state"] == "built" and anew["key"] == told["key"] and anew["outputs"] != told["outputs"]
    assert built.records() == records, "the newer answer took the place of the older"

    shown = built("bench", *asked).out
    assert "l4: the plan was not executed: no GPU of 8.9 here" in shown and "onnxruntime 1." in shown
    assert "--again measures anew" in shown
    assert [line.split()[:4] for line in shown.splitlines() if line.startswith("default.")] == [
        ["default.opt", "8", "run", "host"], ["default.max", "32", "run", "host"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("asked", "what", "then"),
    [
        (["flow=fp16"], "build[l4] is waiting", "build it first: trtforge build targets=[l4] flow=fp16"),
        (["steps.bench.config.points=[mid]"], "points: got 'mid'", "docs/config.md"),
        (["steps.bench.config.points=[small.opt]"], "the model has no profile 'small'", "it has default"),
        (["steps.bench.config.stream=2"], "there is no such option", "streams"),
    ],
)
def test_what_cannot_be_timed_is_one_line_and_what_to_do(asked, what, then, built):
    ran = built("bench", "-q", "targets=[l4]", *asked)
    assert ran.code in (1, 2) and ran.err.count("error: ") == 1
    assert what in ran.err and then in ran.err


def test_a_step_of_a_flow_times_the_plan_with_every_build(built):
    step = "steps.bench={stage: bench, inputs: {onnx: quantize.onnx, plan: build.plan}}"
    ran = built.build("targets=[l4]", step, *SHORT)
    assert ran.code == 0, ran.err
    assert ran.states()["bench[l4]"] == "built"
    assert {state for name, state in ran.states().items() if name != "bench[l4]"} == {"cached"}
    assert built.build("targets=[l4]", step, *SHORT).states()["bench[l4]"] == "cached"
    assert AGAIN not in built("status", "targets=[l4]", step, *SHORT).out


@pytest.mark.skipif(not BINDINGS.is_dir(), reason="the bindings are not here: make bindings")
def test_on_a_machine_with_the_gpu_the_plan_is_executed_and_the_table_says_on_which(tmp_path):
    """Of TensorRT and CUDA the libraries are stand-ins: tests/pipelines/test_with_tensorrt.py says what that shows."""
    (tmp_path / "machine").mkdir()
    node = helper.make_node("Identity", ["x"], ["y"], name="copy0")
    save(model([node], {"x": ["n", 4]}, {"y": ["n", 4]}), tmp_path / "copy.onnx")
    machine = Forge(tmp_path, make_machine(tmp_path / "machine", BINDINGS / "11.4.0.106"))
    asked = ("flow=fp32", "model=onnx", "model.path=copy.onnx", "model.dims.n=[1,2,8]", "backend=tensorrt")
    # The stand-in of an engine looks for what was let go of at each run: 60 ms.
    few = (*SHORT, "steps.bench.config.warmup_iterations=0", "steps.bench.config.iterations=1",
           "steps.bench.config.points=[opt]", "steps.bench.config.streams=[1]")  # fmt: skip
    built = machine.build(*asked, "targets=[local]", f"steps.bench={STEP}", *few, "gates.latency_ms=1000")
    assert built.code == 0, built.err
    metrics = built.step("bench", "local")["metrics"]
    assert metrics["engine_executed"] and metrics["gpu"] == "NVIDIA L4" and 0 < metrics["latency_ms"] < 1000
    shown = machine("bench", *asked, "targets=[local]", *few)
    assert shown.code == 0, shown.err
    assert "local: tensorrt 11.4.0.106 on NVIDIA L4; clocks not read (NVML" in shown.out
    ways = [line.split()[2:-7] for line in shown.out.splitlines() if line.startswith("default.opt")]
    assert [way[0] for way in ways] == ["enqueue", "enqueue", "graph", "graph"]
