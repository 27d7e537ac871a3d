import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from stages import network, onnx_check, plan
from stages.backends import BACKENDS
from stages.build_config import BuildConfig, MemoryPools
from stages.builder_log import config_error
from tests.stages.shape_tensors import ranges, shaper
from tests.stages.stage_runs import PROFILE, VERSION, classifier, conv, facts, model, one_node, run_stage, save

CAPABILITIES = BACKENDS["tensorrt_rtx"].buildable or ()


def build(onnx_path: Path, out: Path, config: BuildConfig | None = None, **given: Any) -> dict[str, Any]:
    return run_stage("build", out, {"onnx": onnx_path}, config, facts(**given))[0]


@pytest.mark.parametrize("capability", [*CAPABILITIES, "8.0,8.6,8.9,12.0,12.1"])
def test_a_model_becomes_a_plan_whose_header_names_the_target(capability: str, tmp_path: Path) -> None:
    answer = build(conv(tmp_path / "model.onnx"), tmp_path, compute_capability=capability)
    header = plan.read(tmp_path / "model.plan")
    wanted = capability.split(",")
    assert (header.version, list(header.compute_capabilities)) == (VERSION, wanted)
    metrics = answer["metrics"]
    assert metrics["plan_bytes"] == (tmp_path / "model.plan").stat().st_size
    assert metrics["compute_capabilities"] == wanted and metrics["layers"] >= 1
    assert metrics["backend_version"] == VERSION and metrics["refittable"] is False


def test_a_real_plan_cut_or_altered_in_its_header_is_refused(tmp_path: Path) -> None:
    build(conv(tmp_path / "model.onnx"), tmp_path)
    content = (tmp_path / "model.plan").read_bytes()
    for damaged in (content[:-1], content + b"\0", b"X" + content[1:], content[:16] + struct.pack("<Q", 7)):
        with pytest.raises(plan.StageError):
            plan.parse(damaged, len(damaged))


def test_an_unsupported_operator_is_named_with_its_node(tmp_path: Path) -> None:
    answer = build(one_node(tmp_path / "model.onnx", "Unique", "find_unique"), tmp_path)
    assert "operator Unique (node 'find_unique'): unsupported node" in answer["what"]


@pytest.mark.parametrize(("domain", "named"), [("", "Frobnicate"), ("acme", "acme::Frobnicate")])
def test_an_unknown_operator_reaches_the_parser_and_is_named_with_its_node(
    domain: str, named: str, tmp_path: Path
) -> None:
    answer = build(one_node(tmp_path / "model.onnx", "Frobnicate", "frob3", domain), tmp_path)
    assert f"operator {named} (node 'frob3')" in answer["what"] and "\n" not in answer["what"]


def test_an_invalid_model_is_refused_by_onnxs_checker_with_its_reason(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["nowhere"], ["y"], name="relu0")]
    answer = build(save(model(nodes, {"x": [1]}, {"y": [1]}), tmp_path / "model.onnx"), tmp_path)
    assert "breaks ONNX's rules" in answer["what"] and "nowhere" in answer["what"]


def test_a_node_without_outputs_is_refused_and_does_not_crash_the_parser(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Probe", ["x"], [], name="probe0", domain="acme")]
    proto = model(nodes, {"x": [1]}, {"y": [1]})
    proto.opset_import.add(domain="acme", version=1)
    answer = build(save(proto, tmp_path / "model.onnx"), tmp_path)
    assert answer["what"] == "node 'probe0' (Probe) has no outputs"


def test_a_file_that_is_no_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"\x08\xff\xff junk")
    assert "what" in build(tmp_path / "model.onnx", tmp_path)


def test_fp32_matrix_products_on_turing_are_refused_with_target_and_a_way_out(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx", batch=1)
    answer = build(path, tmp_path, compute_capability="7.5")
    assert "sm_75" in answer["what"] and "gemm0" in answer["what"] and "fp16" in answer["next"]


def test_a_type_that_the_target_lacks_is_refused_with_where_it_exists(tmp_path: Path) -> None:
    path = conv(tmp_path / "model.onnx", ml_dtypes.bfloat16)
    answer = build(path, tmp_path, compute_capability="7.5")
    assert answer["what"] == "sm_75 cannot compute in bf16, which this model does"
    assert answer["next"] == "bf16 needs 8.0 or higher"


def test_fp8_before_ada_is_refused_with_where_it_exists(tmp_path: Path) -> None:
    kernel = np.random.default_rng(1).standard_normal((4, 4, 3, 3)).astype(ml_dtypes.float8_e4m3fn)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale"], ["kernel"], name="dequantize0"),
        helper.make_node("Conv", ["x", "kernel"], ["y"], name="conv0", pads=[1, 1, 1, 1]),
    ]
    weights = {"w": kernel, "scale": np.float32(0.5)}
    path = save(model(nodes, {"x": [1, 4, 8, 8]}, {"y": [1, 4, 8, 8]}, weights), tmp_path / "model.onnx")
    answer = build(path, tmp_path, compute_capability="8.6")
    assert answer["what"] == "sm_86 cannot compute in fp8, which this model does"
    assert answer["next"] == "fp8 needs 8.9 or higher"
    assert "metrics" in build(path, tmp_path, compute_capability="8.9")


def test_a_capability_that_rtx_does_not_build_for_is_refused_with_those_it_does(tmp_path: Path) -> None:
    answer = build(conv(tmp_path / "model.onnx"), tmp_path, compute_capability="9.0")
    assert "not for 9.0" in answer["what"] and "12.1" in answer["what"]


def test_another_version_than_the_target_takes_is_refused(tmp_path: Path) -> None:
    answer = build(conv(tmp_path / "model.onnx"), tmp_path, backend_version="1.6.0.5")
    assert answer["what"] == f"the target takes tensorrt_rtx 1.6.0.5, installed is {VERSION}"


def test_a_dynamic_model_builds_with_its_profile(tmp_path: Path) -> None:
    answer = build(classifier(tmp_path / "model.onnx"), tmp_path, profiles=PROFILE)
    assert answer["metrics"]["plan_bytes"] > 0


def test_two_profiles_make_one_plan(tmp_path: Path) -> None:
    large = {"x": {which: [16, 4, 8, 8] for which in ("min", "opt", "max")}}
    answer = build(classifier(tmp_path / "model.onnx"), tmp_path, profiles={**PROFILE, "large": large})
    assert answer["metrics"]["plan_bytes"] > 0


@pytest.mark.parametrize(
    ("profiles", "words"),
    [
        ({}, "input 'x' has the dynamic shape (?, 4, 8, 8), and no profile is given"),
        ({"default": {}}, "profile 'default' has no range for it"),
        ({"default": {"z": PROFILE["default"]["x"], **PROFILE["default"]}}, "a range for 'z', which is no input"),
        ({"default": {"x": {w: [2, 3, 8, 8] for w in ("min", "opt", "max")}}}, "and the model has [-1, 4, 8, 8]"),
        ({"default": {"x": {"min": [4, 4, 8, 8], "opt": [2, 4, 8, 8], "max": [8, 4, 8, 8]}}}, "not min <= opt <= max"),
        ({"default": {"x": {"min": [4, 4, 8, 8], "max": [8, 4, 8, 8]}}}, "opt is missing"),
    ],
)
def test_a_profile_that_does_not_fit_is_refused_by_name(profiles: Any, words: str, tmp_path: Path) -> None:
    answer = build(classifier(tmp_path / "model.onnx"), tmp_path, profiles=profiles)
    assert words in answer["what"]


def test_shape_tensors_without_values_are_named_all_at_once_with_what_to_type(tmp_path: Path) -> None:
    profiles = {"small": {name: ends for name, ends in ranges().items() if name in ("sizes", "flat")}}
    answer = build(shaper(tmp_path / "model.onnx"), tmp_path, profiles=profiles)
    assert answer["what"].startswith("the model takes shapes from 'k' (1 number), 'rows' (1 number), and no profile")
    assert "'model.profiles.small.k={min:[1],opt:[1],max:[1],values:true}'" in answer["next"]


def test_values_of_an_input_that_gives_no_shape_are_refused(tmp_path: Path) -> None:
    path = save(
        model([helper.make_node("Add", ["x", "x"], ["y"])], {"x": [2]}, {"y": [2]}, dtype=TensorProto.INT32),
        tmp_path / "model.onnx",
    )
    profiles = {"default": {"x": {"min": [1, 1], "opt": [1, 1], "max": [2, 2], "values": True}}}
    answer = build(path, tmp_path, profiles=profiles)
    assert answer["what"] == "the profiles give values of input 'x', and the network takes no shape from it"


def test_unnamed_dimensions_are_independent(tmp_path: Path) -> None:
    """TensorRT-RTX takes two dimensions called `?` for equal, and refuses min [1, 2] with max [4, 8]."""
    node = helper.make_node("Relu", ["x"], ["y"])
    path = save(model([node], {"x": ["?", 3, "?"]}, {"y": ["?", 3, "?"]}), tmp_path / "model.onnx")
    profiles = {"default": {"x": {"min": [1, 3, 2], "opt": [2, 3, 4], "max": [4, 3, 9]}}}
    assert "metrics" in build(path, tmp_path, profiles=profiles)


def test_unnamed_dimensions_get_names_that_nothing_else_has() -> None:
    node = helper.make_node("Add", ["x", "x_0"], ["y"])
    proto = model([node], {"x": [None, "x_0", "?", 4], "x_0": [None, "n", 1, 4]}, {"y": [None] * 4})
    proto.graph.input[1].type.tensor_type.shape.dim[2].dim_value = -1
    network.name_dimensions(proto)
    dims = [[d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim] for v in proto.graph.input]
    assert dims == [["x_0_", "x_0", "x_2", 4], ["x_0_0", "n", "x_0_2", 4]]


def test_the_checker_leaves_the_model_as_it_was() -> None:
    proto = model([helper.make_node("Frobnicate", ["x"], ["y"])], {"x": [1]}, {"y": [1]})
    proto.graph.output[0].type.tensor_type.ClearField("shape")
    before = proto.SerializeToString()
    onnx_check.check_structure(proto)
    assert proto.SerializeToString() == before


def test_settings_without_effect_are_said_once_and_the_plan_is_the_one_without_them(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx", batch=1)
    taken = BuildConfig(memory_pools=MemoryPools(workspace="256MiB"), profiling_verbosity="detailed")
    both = replace(taken, optimization_level=0, sparse_weights=True, hardware_compatibility_level="ampere_plus")
    plain, plain_log = run_stage("build", tmp_path / "plain", {"onnx": path}, taken)
    more, more_log = run_stage("build", tmp_path / "more", {"onnx": path}, both)
    assert (tmp_path / "plain" / "model.plan").read_bytes() == (tmp_path / "more" / "model.plan").read_bytes()
    names = ["optimization_level", "sparse_weights", "hardware_compatibility_level"]
    assert (plain["metrics"]["without_effect"], more["metrics"]["without_effect"]) == ([], names)
    assert more_log.count(f"tensorrt_rtx takes these settings without effect: {', '.join(names)}") == 1
    assert "without effect" not in plain_log


def test_a_setting_that_the_backend_lacks_is_refused(tmp_path: Path) -> None:
    answer = build(conv(tmp_path / "model.onnx"), tmp_path, BuildConfig(runtime_platform="windows_amd64"))
    assert "tensorrt_rtx 1.7.1.116 has no such setting" in answer["what"]


def test_formats_of_inputs_are_set_by_name(tmp_path: Path) -> None:
    path = conv(tmp_path / "model.onnx", np.float16)
    for name, config in (("as it is", BuildConfig()), ("hwc8", BuildConfig(io_formats={"x": ["hwc8"]}))):
        assert "metrics" in build(path, tmp_path / name, config)
    assert (tmp_path / "as it is" / "model.plan").read_bytes() != (tmp_path / "hwc8" / "model.plan").read_bytes()


def test_a_setting_that_the_backend_changes_is_an_error() -> None:
    assert config_error("optimization_level", 9, 5, "tensorrt_rtx", []).what.endswith(
        "did not take optimization_level=9, it has 5"
    )


def test_a_workspace_that_holds_no_layer_is_said(tmp_path: Path) -> None:
    answer = build(
        classifier(tmp_path / "model.onnx", batch=1), tmp_path, BuildConfig(memory_pools=MemoryPools(workspace="1B"))
    )
    assert "workspace is too small" in answer["what"]


@pytest.mark.parametrize(
    "config",
    [BuildConfig(refit="identical"), BuildConfig(refit="named", refittable_weights=["w"], strip_plan=True)],
)
def test_without_a_gpu_an_ordinary_plan_is_made_and_the_metrics_say_so(config: BuildConfig, tmp_path: Path) -> None:
    answer = build(conv(tmp_path / "model.onnx"), tmp_path, config)
    assert answer["metrics"]["refittable"] is False
    assert "no GPU of 8.9 here" in answer["metrics"]["refit_reason"]


def test_the_log_on_stderr_has_every_message_with_its_severity(tmp_path: Path) -> None:
    _, log = run_stage("build", tmp_path, {"onnx": conv(tmp_path / "model.onnx")})
    assert "[INFO] " in log and "[VERBOSE] " in log


def test_a_tensorrt_target_without_tensorrt_says_what_to_install(tmp_path: Path) -> None:
    answer = build(conv(tmp_path / "model.onnx"), tmp_path, backend="tensorrt", backend_version="10.13.3.9")
    assert "tensorrt is not installed" in answer["what"] or "no GPU" in answer["what"]


def test_tf32_off_gives_another_plan(tmp_path: Path) -> None:
    path = classifier(tmp_path / "model.onnx", batch=1)
    for name, on in (("on", True), ("off", False)):
        build(path, tmp_path / name, BuildConfig(tf32=on))
    assert (tmp_path / "on" / "model.plan").read_bytes() != (tmp_path / "off" / "model.plan").read_bytes()


def test_one_question_has_one_plan(tmp_path: Path) -> None:
    path = conv(tmp_path / "model.onnx")
    for name in ("one", "two"):
        build(path, tmp_path / name)
    assert (tmp_path / "one" / "model.plan").read_bytes() == (tmp_path / "two" / "model.plan").read_bytes()


def test_weights_survive_until_the_build_returns(tmp_path: Path) -> None:
    """TensorRT does not copy weights: with the bytes gone, the plan would hold something else."""
    answer = build(conv(tmp_path / "model.onnx"), tmp_path)
    kernel = onnx.numpy_helper.to_array(onnx.load(tmp_path / "model.onnx").graph.initializer[0])
    content = (tmp_path / "model.plan").read_bytes()
    found = np.frombuffer(content[-(len(content) // 4) * 4 :], np.float32)
    assert answer["metrics"]["plan_bytes"] == len(content) and kernel.dtype == np.float32
    values = set(found.tolist())
    assert sum(value in values for value in kernel.ravel().tolist()) > 100


def test_a_model_with_the_output_of_an_input_type_is_not_empty(tmp_path: Path) -> None:
    proto = model([helper.make_node("Identity", ["x"], ["y"])], {"x": [2]}, {"y": [2]}, dtype=TensorProto.FLOAT)
    assert "metrics" in build(save(proto, tmp_path / "model.onnx"), tmp_path)


def test_weights_in_an_external_file_are_those_of_the_plan(tmp_path: Path) -> None:
    plans = []
    for seed in (1, 2):
        weight = np.random.default_rng(seed).standard_normal((64, 32)).astype(np.float32)
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        proto = model([node], {"x": [4, 64]}, {"y": [4, 32]}, {"w": weight})
        inline = save(proto, tmp_path / f"inline{seed}.onnx")
        onnx.save(proto, str(tmp_path / f"{seed}.onnx"), save_as_external_data=True, location=f"{seed}.bin")
        for path in (inline, tmp_path / f"{seed}.onnx"):
            answer, _ = run_stage("build", tmp_path / f"out-{path.stem}", {"onnx": path})
            assert "metrics" in answer, answer
            plans.append((tmp_path / f"out-{path.stem}" / "model.plan").read_bytes())
            assert weight.tobytes() in plans[-1]
    assert [len(plan) for plan in plans] == [len(plans[0])] * 4
