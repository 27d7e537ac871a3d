"""Composing a config: what is right becomes dataclasses, what is wrong one line and the next step."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from conf.compose import compose, sweep
from conf.errors import SEE, ConfigError
from conf.schema import Profile, Runner, TensorSpec


def refused(*overrides: str, dirs: list[Path] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        compose(overrides, dirs or [])
    for line in (caught.value.what, caught.value.next_step):
        assert line
        assert "\n" not in line
    assert not GlobalHydra.instance().is_initialized()
    return caught.value


def test_with_nothing_said_the_digits_are_built_in_int8_for_three_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRTFORGE_STORE", raising=False)
    config = compose()
    assert (config.model.name, config.flow, list(config.targets)) == ("digits", "int8", ["a10", "l4", "rtx5090"])
    assert (config.backend.name, config.store.root) == ("tensorrt_rtx", ".trtforge")
    assert config.runner is Runner.prefect


def test_the_store_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRTFORGE_STORE", "/big disk/store")
    assert compose().store.root == "/big disk/store"
    assert compose(["store.root=here"]).store.root == "here"


def test_overrides_add_to_what_a_user_names_without_a_plus() -> None:
    config = compose(
        [
            "model.dims.width=[1,2,3]",
            "model.profiles.small.images={min: [1,1,8,8], opt: [1,1,8,8], max: [2,1,8,8]}",
            "model.profiles.large.images.min=[1]",
            "model.profiles.large.images.opt=[8]",
            "model.profiles.large.images.max=[9]",
            "model.inputs.mask={shape: [batch, 4], dtype: bool}",
            "model.inputs={scale: {shape: [1]}}",
            "model.dims={height: 7}",
            "steps.build.config.optimization_level=5",
            "steps.look={stage: signature, inputs: {onnx: export.onnx}}",
        ]
    )
    assert config.model.dims == {"batch": [1, 8, 32], "width": [1, 2, 3], "height": 7}
    assert config.model.profiles["small"]["images"] == Profile([1, 1, 8, 8], [1, 1, 8, 8], [2, 1, 8, 8])
    assert config.model.profiles["large"]["images"] == Profile([1], [8], [9])
    assert list(config.model.inputs) == ["images", "mask", "scale"]
    assert config.model.inputs["mask"] == TensorSpec(["batch", 4], "bool")
    assert config.steps["build"].config.optimization_level == 5
    assert list(config.steps)[-1] == "look"


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("+foo=1", "Key 'foo' not in 'Config'"),
        ("+model.foo=1", "model.foo: Key 'foo' not in 'Model'"),
        ("flw=int8", "Could not override 'flw': Key 'flw' not in 'Config'"),
        ("model.dims=3", "Error merging override model.dims=3: Cannot assign int to Dict[str, Any]"),
        ("model.name=${nope}", "model.name: Interpolation key 'nope' not found"),
    ],
)
def test_an_error_says_each_thing_once(override: str, what: str) -> None:
    assert refused(override).what == what


def test_a_step_can_be_left_out() -> None:
    assert list(compose(["flow=fp32", "~steps.publish"]).steps) == ["export", "surgery", "build", "validate"]


@pytest.mark.parametrize(
    ("override", "what", "next_step"),
    [
        ("flow=int9", "flow=int9: there is no flow 'int9'", "did you mean int8?"),
        ("model=digit", "there is no model 'digit'", "did you mean digits?"),
        ("targets=[l4,l5]", "there is no targets 'l5'", "allowed: a10, a100, "),
        ("backend=tensort", "there is no backend 'tensort'", "did you mean tensorrt or tensorrt_rtx?"),
        ("store=s3", "there is no store 's3'", "allowed: local"),
        ("modle.name=x", "'modle'", "did you mean model?"),
        ("model.nme=x", "'nme'", "did you mean name?"),
        ("gates.min_cosin=0.9", "'min_cosin'", "did you mean min_cosine"),
        ("+foo=1", "'foo'", "allowed: backend, flow, gates, "),
        ("++foo.bar=1", "'foo'", "allowed: backend, "),
        ("+model.foo=1", "'foo'", "allowed: calibration, "),
        ("steps.biuld.config.tf32=true", "steps.biuld: the flow has no such step", "did you mean build?"),
        ("steps.build.stage=bild", "steps.build.stage: there is no stage 'bild'", "did you mean build?"),
        ("steps.build.stgae=x", "steps.build.stgae: there is no such option", "did you mean stage?"),
        ("steps.build.config.tf23=true", "steps.build.config.tf23: there is no such option", "did you mean tf32?"),
        ("+steps.build.config.foo=1", "steps.build.config.foo: there is no", "optimization_level"),
        ("model.inputs.x={shpe: [1]}", "model.inputs.x.shpe: there is no", "did you mean shape?"),
        ("model.profiles.p.x={mn: [1]}", "model.profiles.p.x.mn: there is no", "did you mean min?"),
        ("model.profiles.p.x.min=[1]", "not given: model.profiles.p.x.max, model.profiles.p.x.opt", "say what: "),
        ("~store", "not given: store.root", "say what: store.root=…"),
        ("model=null", "model=null: model takes names", "name one: model=digits"),
        ("targets=[3090]", "targets=[3090]: targets takes names", "name one: targets=a10"),
        ("steps.publish=null", "steps.publish: None is no mapping", "~steps.publish"),
        ("steps.publish=3", "steps.publish: 3 is no mapping", "~steps.publish"),
        ("model.profiles.p=3", "model.profiles.p: 3 is no mapping", "{x: {min, opt, max}}"),
        ("model.path=a=b", "mismatched input '='", "quote values"),
        ("build", "Error parsing override 'build'", "key=value"),
        ("hydra.searchpath=[file:///nowhere]", "/nowhere: no such config directory", "--config-dir DIR"),
        ("hydra.searchpath=[/nowhere]", "/nowhere: no such config directory", "--config-dir DIR"),
    ],
)
def test_a_wrong_name_gets_the_close_ones_or_all(override: str, what: str, next_step: str) -> None:
    error = refused(override)
    assert what in error.what
    assert next_step in error.next_step


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("steps.build.config.optimization_level=high", "steps.build.config.optimization_level: Value 'high'"),
        ("steps.build.time_limit_s=soon", "steps.build.time_limit_s: Value 'soon'"),
        ("steps.build.inputs=3", "steps.build.inputs: "),
        ("steps.build.config=3", "steps.build.config: "),
        ("model.calibration.batch_size=many", "model.calibration.batch_size"),
        ("model.plugins=x.so", "model.plugins"),
        ("model.source=onx", "expected one of [onnx, torch]"),
        ("runner=locl", "expected one of [prefect, local]"),
        ("store.root=null", "store.root"),
        ("model.name=${nope}", "model.name: Interpolation key 'nope' not found"),
        ("model.path=${package:nope}/x", "no package of that name"),
        ("~steps.nothing", "'steps.nothing' does not exist"),
        ("flow=fp16,int8", "flow=fp16,int8"),
        ("hydra.searchpath=3", "hydra.searchpath must be a list"),
        ("hydra=3", ""),
    ],
)
def test_a_wrong_value_is_named_with_its_key(override: str, what: str) -> None:
    assert what in refused(override).what


def test_a_next_step_is_there_even_where_nothing_better_is_known() -> None:
    assert refused("runner=locl").next_step == SEE


def test_an_error_leaves_nothing_behind_for_the_next() -> None:
    before = compose(["flow=fp16"])
    refused("flow=int9")
    refused("model.nme=x")
    assert compose(["flow=fp16"]) == before


def test_any_thread_may_compose_after_another() -> None:
    found = []
    for flow in ("fp16", "int9", "bf16"):

        def work(flow: str = flow) -> None:
            try:
                found.append(compose([f"flow={flow}"]).flow)
            except ConfigError as error:
                found.append(error.next_step)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    assert found == ["fp16", "did you mean int8?", "bf16"]


@pytest.mark.parametrize(
    ("overrides", "runs"),
    [
        ([], [[]]),
        (["flow=fp16", "~steps.publish"], [["flow=fp16", "~steps.publish"]]),
        (
            ["flow=fp16,int8", "targets=[l4],[a10,t4]"],
            [
                [flow, targets]
                for flow in ("flow=fp16", "flow=int8")
                for targets in ("targets=[l4]", "targets=[a10,t4]")
            ],
        ),
        (["model.name='a,b'"], [["model.name='a,b'"]]),
        (["+model.dims.n=1,2"], [["+model.dims.n=1"], ["+model.dims.n=2"]]),
        (["model.dims.n=range(1,4)"], [[f"model.dims.n={n}"] for n in (1, 2, 3)]),
    ],
)
def test_a_sweep_is_every_combination(overrides: list[str], runs: list[list[str]]) -> None:
    assert sweep(overrides) == runs


def test_a_glob_is_every_file_of_the_group_that_matches() -> None:
    assert sweep(["flow=glob(fp*)"]) == [["flow=fp16"], ["flow=fp32"], ["flow=fp8"]]
    assert sweep(["flow=glob([fp*,bf*],exclude=fp32)"]) == [["flow=bf16"], ["flow=fp16"], ["flow=fp8"]]


def test_a_glob_means_the_users_own_models_where_there_are_any(tmp_path: Path) -> None:
    assert ["model=onnx"] in sweep(["model=glob(*)"], [tmp_path])
    (tmp_path / "model").mkdir()
    for name in ("net_b", "net_a"):
        (tmp_path / f"model/{name}.yaml").write_text("path: x.onnx\n")
    assert sweep(["model=glob(*)"], [tmp_path]) == [["model=net_a"], ["model=net_b"]]
    assert sweep(["model=glob(*)", f"hydra.searchpath=['file://{tmp_path}']"])[0][0] == "model=net_a"


def test_what_a_sweep_gives_composes() -> None:
    runs = [compose(run) for run in sweep(["flow=fp16,bf16", "steps.build.config.tf32=true,false"])]
    assert [(run.flow, run.steps["build"].config.tf32) for run in runs] == [
        ("fp16", True),
        ("fp16", False),
        ("bf16", True),
        ("bf16", False),
    ]


@pytest.mark.parametrize("override", ["flow", "flow=a=b", "model.name=glob(*)", "flow=glob(nothing*)"])
def test_what_cannot_be_swept_over_is_refused(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sweep([override])
    assert caught.value.next_step


def test_a_config_inside_a_stages_config_is_overridden_too() -> None:
    config = compose(["flow=refit", "steps.refit.config.build.tf32=false"])
    assert config.steps["refit"].config.build.tf32 is False
    assert "read-only" not in refused("flow=refit", "steps.refit.config.build.tf32=maybe").what
