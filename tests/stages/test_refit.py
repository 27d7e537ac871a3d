"""Putting weights into a plan, as far as it goes without a GPU: test_contract.py has TensorRT's side of the rest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from stages import build, network, onnx_file, refit, runtimes, split
from stages.build_config import BuildConfig
from stages.gpus import gpus
from stages.refit import STAGE, RefitConfig
from stages.stage import Job, StageError
from tests.stages import refit_contract
from tests.stages.stage_runs import classifier, facts, model, parts, run_stage, save
from tests.stages.stand_in_libraries import make_libraries

pytestmark = pytest.mark.xdist_group("refit")  # they share a plan, and a process


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A plan of the structure of a model, and structure and weights of the same model trained on."""
    directory = tmp_path_factory.mktemp("refit")
    old, new = (
        parts(classifier(directory / f"{noise}.onnx", batch=1, noise=noise), directory / f"{noise}")
        for noise in (0.0, 0.5)
    )
    assert old["structure"].read_bytes() == new["structure"].read_bytes()
    config = BuildConfig(refit="any", strip_plan=True)
    answer, _ = run_stage("build", directory / "built", {"onnx": old["structure"]}, config)
    assert answer["metrics"]["refittable"] is False and "no GPU of 8.9 here" in answer["metrics"]["refit_reason"]
    return {"plan": directory / "built/model.plan", **new}


def test_without_a_gpu_the_plan_is_built_again_from_structure_and_weights(
    built: dict[str, Path], tmp_path: Path
) -> None:
    given = {"build": {"refit": "any", "strip_plan": True}}
    answer, _ = run_stage("refit", tmp_path / "refitted", built, given)
    metrics = answer["metrics"]
    assert metrics["method"] == "rebuild" and metrics["reason"] == "no GPU of 8.9 here"
    assert metrics["refittable"] is False and metrics["refit_reason"] is None and metrics["made_up_weights"] == 0
    assert {path.name for path in (tmp_path / "refitted").iterdir()} == {"model.plan", "layers.json"}

    onnx_file.write(split.joined([built["structure"]], built["weights"]), tmp_path / "whole.onnx")
    run_stage("build", tmp_path / "ordinary", {"onnx": tmp_path / "whole.onnx"})
    rebuilt = (tmp_path / "refitted/model.plan").read_bytes()
    assert rebuilt == (tmp_path / "ordinary/model.plan").read_bytes()
    assert rebuilt != built["plan"].read_bytes()


def test_a_rebuild_takes_its_own_build_config(built: dict[str, Path], tmp_path: Path) -> None:
    for name, tf32 in (("with", True), ("without", False)):
        answer, _ = run_stage("refit", tmp_path / name, built, {"build": {"tf32": tf32}})
        assert answer["metrics"]["method"] == "rebuild"
    assert (tmp_path / "with/model.plan").read_bytes() != (tmp_path / "without/model.plan").read_bytes()


def refused(given: dict[str, Path], out: Path, config: RefitConfig | None = None, **others: Any) -> StageError:
    """What the stage says before TensorRT is asked anything; it leaves nothing behind."""
    out.mkdir()
    inputs = {name: [path] for name, path in given.items()}
    job = Job(config or RefitConfig(), inputs, facts(**others), out)
    with pytest.raises(StageError) as caught:
        STAGE.run(job)
    assert not [*out.iterdir()]
    return caught.value


def test_without_a_gpu_and_without_fallback_it_fails_and_says_where_it_can_run(
    built: dict[str, Path], tmp_path: Path
) -> None:
    error = refused(built, tmp_path / "out", RefitConfig(fallback="fail"))
    assert error.what == "the plan cannot be refitted here: no GPU of 8.9 here"
    assert "fallback: rebuild" in error.next_step


def test_a_plan_for_another_target_is_refused_before_anything_is_built(built: dict[str, Path], tmp_path: Path) -> None:
    error = refused(built, tmp_path / "out", compute_capability="8.6")
    assert "plan was built for sm_89, the target is sm_86" in error.what


def test_weights_of_another_model_are_refused_before_anything_is_built(built: dict[str, Path], tmp_path: Path) -> None:
    node = helper.make_node("MatMul", ["x", "other"], ["y"])
    weights = {"other": np.ones((4, 4), np.float32)}
    onnx = save(model([node], {"x": [1, 4]}, {"y": [1, 4]}, weights), tmp_path / "other.onnx")
    error = refused({**built, "weights": parts(onnx, tmp_path / "other")["weights"]}, tmp_path / "out")
    assert error.what == "structure and weights are of two models: g, other, w"


@pytest.mark.skipif(bool(gpus().of("8.9")), reason="this machine has a GPU of 8.9")
def test_a_claim_of_a_gpu_that_is_not_here_is_refused(built: dict[str, Path], tmp_path: Path) -> None:
    assert "no GPU of 8.9 here" in refused(built, tmp_path / "out", gpu_here=True).what


@pytest.mark.parametrize(
    ("mode", "version", "refused"),
    [
        ("any", "11.3.0.99", True),
        ("named", "11.3.0.99", True),
        ("identical", "11.3.0.99", False),
        ("none", "11.3.0.99", False),
        ("any", "11.2.1.2", False),
        ("any", "11.4.0.106", False),
    ],
)
def test_a_version_that_is_known_to_get_it_wrong_is_refused_with_the_way_round_it(
    mode: str, version: str, refused: bool
) -> None:
    config = RefitConfig(build=BuildConfig(refit=mode, refittable_weights=["w"] if mode == "named" else []))
    given = facts(backend="tensorrt", backend_version=version)
    if not refused:
        STAGE.refuse(config, given)
        return
    with pytest.raises(StageError) as caught:
        STAGE.refuse(config, given)
    assert caught.value.what == (
        f"build.refit={mode}: tensorrt {version}: "
        "a refittable plan can lose the bias of a matrix product (Gemm), even before a refit"
    )
    assert caught.value.next_step == "take tensorrt 11.4 or 11.2 for this target, or refit: identical or none"


@pytest.mark.parametrize(
    ("config", "same"),
    [(BuildConfig(refit="identical"), True), (BuildConfig(refit="any"), True), (BuildConfig(), False)],
)
def test_a_plan_for_weights_is_built_of_the_graph_that_they_come_back_in(
    config: BuildConfig, same: bool, tmp_path: Path
) -> None:
    """TensorRT's refitter finds a Constant by the name of its output, and batch normalisations by their order."""
    constant = numpy_helper.from_array(np.ones(4, np.float32), "c")
    made = nodes(("Constant", [], "mine", {"value": constant}), ("Mul", ["x", "w"], "s", {}))
    made += nodes(("Add", ["s", "mine"], "y", {}))
    onnx = save(model(made, {"x": [4]}, {"y": [4]}, {"w": np.ones(4, np.float32)}), tmp_path / "model.onnx")
    found = parts(onnx, tmp_path / "parts")
    whole, made_up = build._model(Job(config, {"onnx": [onnx]}, facts(), tmp_path))
    joined = network.checked(split.joined([found["structure"]], found["weights"]))
    assert made_up == 0 and (whole.content == joined.content) == same


def compared(onnx: ModelProto, engine: ModelProto, monkeypatch: pytest.MonkeyPatch, **config: Any) -> Any:
    """What the comparison says where the refitted plan computes what `engine` does."""

    @contextmanager
    def open_plan(*arguments: Any) -> Iterator[runtimes.Runtime]:
        yield runtimes.open_model(engine)

    monkeypatch.setattr(runtimes, "open_plan", open_plan)
    return refit._compared(Job(RefitConfig(**config), {}, facts(), Path()), onnx, Path())


def nodes(*made: tuple[str, list[str], str, dict[str, Any]]) -> list[NodeProto]:
    return [helper.make_node(operator, inputs, [output], **given) for operator, inputs, output, given in made]


def test_the_bias_that_an_engine_lost_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a classifier it is the weight that its outputs depend on least."""
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((64, 10)), "b": random.standard_normal(10)}
    typed = {name: value.astype(np.float32) for name, value in weights.items()}
    given = ({"x": [8, 64]}, {"y": [8, 10]})
    whole = model(nodes(("Gemm", ["x", "w", "b"], "y", {})), *given, typed)
    lost = model(nodes(("Gemm", ["x", "w"], "y", {})), *given, typed)
    assert compared(whole, whole, monkeypatch)["difference"] == 0.0
    with pytest.raises(StageError, match=r"output 'y' differs by 0.1.* of its size, allowed is 0.02"):
        compared(whole, lost, monkeypatch)


def test_what_rounding_moves_is_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sine of a large number: float16 gets it wrong, and says nothing of the weights."""
    given = ({"x": [64]}, {"y": [64]}, {"w": np.array([60.0], np.float32)})
    exact = nodes(("Mul", ["x", "w"], "s", {}), ("Sin", ["s"], "y", {}))
    half = nodes(("Cast", ["x"], "h", {"to": 10}), ("Cast", ["h"], "f", {"to": 1}), ("Mul", ["f", "w"], "s", {}))
    told = compared(model(exact, *given), model([*half, exact[1]], *given), monkeypatch, tolerance=0.001)
    assert 0.001 < told["difference"] < told["allowed"] < 1
    assert told["allowed"] < 0.5
    other = nodes(("Mul", ["x", "w"], "s", {}), ("Cos", ["s"], "y", {}))
    for weight in (60.0, 6e6):  # the second model is noise to float32 already
        given[2]["w"][:] = weight
        with pytest.raises(StageError, match="computes something else"):
            compared(model(exact, *given), model(other, *given), monkeypatch)


def test_a_class_that_jumps_counts_only_where_there_are_no_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    def ranking(weight: float, floats: bool) -> ModelProto:
        made = nodes(("Mul", ["x", "w"], "y", {}), ("ArgMax", ["y"], "k", {"axis": 1, "keepdims": 0}))
        proto = model(made, {"x": [4, 3]}, {"y": [4, 3]} if floats else {}, {"w": np.array([weight], np.float32)})
        proto.graph.output.append(helper.make_tensor_value_info("k", TensorProto.INT64, [4]))
        return proto

    assert compared(ranking(1e-9, True), ranking(-1e-9, True), monkeypatch)["worst_output"] == "y"
    with pytest.raises(StageError, match="output 'k' differs"):
        compared(ranking(1e-9, False), ranking(-1e-9, False), monkeypatch)


@pytest.fixture(scope="module")
def of_rtx(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/stages/refit_contract.py says of TensorRT-RTX's own bindings: one process, 3 s."""
    directory = tmp_path_factory.mktemp("contract")
    make_libraries(directory, "1")
    ran = subprocess.run(
        [sys.executable, "-m", "tests.stages.refit_contract", directory],
        env={**os.environ, "LD_LIBRARY_PATH": str(directory)},
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    return dict(json.loads(ran.stdout.splitlines()[-1]))


def test_a_refit_is_what_tensorrt_rtx_takes(of_rtx: dict[str, Any]) -> None:
    """The bindings are real, and held to as those of TensorRT are in test_contract.py; what answers stands in."""
    refit_contract.require_order(of_rtx[""])
    refit_contract.require_compared(of_rtx, again=True)
    refit_contract.require_let_go(of_rtx)


@pytest.mark.parametrize("case", refit_contract.FAILS)
def test_what_tensorrt_rtx_does_not_do_is_an_error_and_leaves_no_plan(case: str, of_rtx: dict[str, Any]) -> None:
    refit_contract.require_refused(of_rtx, case)


@pytest.mark.skipif(bool(gpus().found), reason="this machine has a GPU")
def test_without_a_driver_tensorrt_rtx_itself_says_why_it_does_not_load_the_plan(built: dict[str, Path]) -> None:
    """As far as the real library goes without a GPU: it reads the container, and stops where it needs a stream."""
    child = subprocess.run(
        [sys.executable, "-c", LOADED, built["plan"]],
        capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=300, check=True,
    )  # fmt: skip
    assert child.stdout.startswith("the plan cannot be loaded: "), child.stdout
    assert "cudaError 35" in child.stdout


LOADED = """
import sys
from pathlib import Path
from stages.refit import _Engine
from stages.stage import StageError
try:
    _Engine("tensorrt_rtx", Path(sys.argv[1]))
except StageError as error:
    print(error.what)
"""
