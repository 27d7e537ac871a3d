"""Every call to TensorRT, held against the real bindings of several versions without its libraries.

`make bindings` fetches the bindings; libraries that stand in for TensorRT's and CUDA's are made here in a second.
Nothing is built: what is shown is that names, arguments, enum members and types are those of the version, and that what
a build or a refit needs lives until it returns, and no longer. A call in `stages` that no test here reaches fails
`test_every_call_is_reached`, by its file and line.
"""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from stages import backends, knobs
from stages.build_config import BuildConfig
from stages.knobs import KNOBS, Kind
from tests.stages import refit_contract

ROOT = Path(__file__).parents[2]
BINDINGS = ROOT / ".venv-bindings"
VERSIONS = ("10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106")
ONLY_RTX = ("num_compute_capabilities", "set_compute_capability", "get_compute_capability")
API = json.loads((ROOT / "docs/tensorrt_api.json").read_text())

pytestmark = [
    pytest.mark.skipif(not BINDINGS.is_dir(), reason="the bindings are not here: make bindings"),
    pytest.mark.parametrize(
        "version", [pytest.param(version, marks=pytest.mark.xdist_group(f"contract {version}")) for version in VERSIONS]
    ),
]


def test_the_bindings_are_those_of_the_version(version: str, answers: Any) -> None:
    assert answers(version)["version"] == version


def test_every_call_is_reached(version: str, answers: Any) -> None:
    """And is a call of that version, or of TensorRT-RTX alone, which test_tensorrt_calls.py builds with for real."""
    calls = answers(version)["calls"]
    assert not calls["unreached"]
    assert not calls["overlooked"], "objects of TensorRT are Any in stages: give these that type"
    ours = {field.name for field in fields(BuildConfig)}
    assert {*calls["lacking"]} - ours == {*ONLY_RTX}
    assert len(calls["made"]) > 120


def test_the_kept_api_is_what_the_bindings_have(version: str, answers: Any) -> None:
    told = f"tensorrt {version}"
    kept = {name for name, having in API["names"].items() if having == "all" or told in having}
    assert set(answers(version)["names"]) == kept


def test_every_knob_of_the_version_is_set_and_read_back(version: str, answers: Any) -> None:
    ran = answers(version)["knobs"]
    assert {*ran} == {knob.path for knob in KNOBS if knob.tensorrt.has(version)}
    failed = {path: answer["error"] for path, answer in ran.items() if "error" in answer}
    assert not failed


def test_a_knob_is_set_by_the_call_that_the_table_names(version: str, answers: Any) -> None:
    setters = {
        Kind.FLAG: "IBuilderConfig.set_flag",
        Kind.REFIT: "IBuilderConfig.set_flag",
        Kind.POOL: "IBuilderConfig.set_memory_pool_limit",
        Kind.SOURCE: "IBuilderConfig.set_tactic_sources",
        Kind.PREVIEW: "IBuilderConfig.set_preview_feature",
    }
    for path, answer in answers(version)["knobs"].items():
        knob = knobs.find(path)
        setter = "IBuilderConfig.clear_flag" if path == "tf32" else setters.get(knob.kind, knob.api[0])
        assert setter in answer["calls"], path


def test_a_knob_that_the_version_lacks_is_not_in_its_bindings(version: str, answers: Any) -> None:
    for knob in KNOBS:
        if not knob.tensorrt.has(version):
            assert not {*knob.api} <= {*answers(version)["names"]}, knob.path


def test_a_build_makes_its_calls_in_the_order_that_tensorrt_wants(version: str, answers: Any) -> None:
    calls = answers(version)["knobs"]["max_aux_streams"]["calls"]
    order = ["Builder", "Builder.create_network", "OnnxParser", "Builder.create_builder_config",
             "OnnxParser.load_model_proto", "OnnxParser.parse_model_proto", "IOptimizationProfile.set_shape",
             "IBuilderConfig.add_optimization_profile", "IBuilderConfig.max_aux_streams",
             "IBuilderConfig.progress_monitor", "Builder.build_serialized_network"]  # fmt: skip
    assert [calls.index(call) for call in order] == sorted(calls.index(call) for call in order)


def test_a_network_is_strongly_typed(version: str, answers: Any) -> None:
    assert answers(version)["network_flags"] == ["STRONGLY_TYPED"]


def test_a_shape_tensor_gets_the_range_of_its_values(version: str, answers: Any) -> None:
    answer = answers(version)["shape_tensor"]
    assert "error" not in answer and "IOptimizationProfile.set_shape_input" in answer["calls"]
    assert "IOptimizationProfile.set_shape" not in answer["calls"]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("no plan", "no tactic computes a part of this model: Could not find any implementation for node n."),
        ("profile", "TensorRT refuses profile 'default'"),
        ("flag", "did not take strict_nans=True, it has False"),
        ("device", "did not take layer_device_types={'*': 'gpu', 'conv*': 'dla'}, it has {'conv0': 'gpu'}"),
        ("format", "did not take io_formats={'x': ['chw32']}, it has {'x': ['linear']}"),
        ("tensor", "io_formats: the network has no input or output 'z'"),
        ("layer", "layer_device_types: no layer's name fits 'gemm*'"),
        ("pattern", "refittable_weights: the model has no weight 'lora*'; it has, among others: g, w"),
        ("weights", "refittable_weights: the network has no weights 'g'"),
        ("nothing", "the model gives a network of 0 layers and 1 outputs"),
        ("stopped", "no one listens"),
    ],
)
def test_what_tensorrt_does_not_do_is_an_error_of_the_build(version: str, case: str, said: str, answers: Any) -> None:
    assert said in answers(version)["builds"][case]["error"]


@pytest.mark.parametrize(
    ("mode", "flags", "marked"),
    [
        ("any", ["REFIT", "STRIP_PLAN"], []),
        ("identical", ["REFIT_IDENTICAL", "STRIP_PLAN"], []),
        ("named", ["REFIT_INDIVIDUAL", "STRIP_PLAN"], ["g", "w"]),
        # TensorRT makes it REFIT_IDENTICAL.
        ("stripped", ["STRIP_PLAN"], []),
    ],
)
def test_each_way_to_take_weights_later_is_one_flag_of_the_builder(
    version: str, mode: str, flags: list[str], marked: list[str], answers: Any
) -> None:
    assert answers(version)["refittable"][mode] == [None, [*flags, "TF32"], marked]


def test_a_build_takes_what_earlier_ones_timed_and_writes_that_and_its_own(version: str, answers: Any) -> None:
    told = answers(version)["timings"]
    assert (told["none"]["learnt"], told["none"]["timing_cache"]["merged"]) == ("conv", [])
    assert told["two"]["learnt"] == "conv gemm pool"
    assert told["two"]["timing_cache"] == {"merged": ["0.cache", "1.cache"], "refused": [], "bytes": 14}
    calls = told["two"]["calls"]
    order = ["IBuilderConfig.create_timing_cache", "IBuilderConfig.set_timing_cache", "ITimingCache.combine",
             "Builder.build_serialized_network", "IBuilderConfig.get_timing_cache",
             "ITimingCache.serialize"]  # fmt: skip
    assert [calls.index(call) for call in order] == sorted(calls.index(call) for call in order)
    assert not [name for name, each in told.items() if each["held"]]


def test_a_build_without_a_memory_attaches_no_timing_cache(version: str, answers: Any) -> None:
    answer = answers(version)["knobs"]["max_aux_streams"]
    assert answer["timing_cache"] is None
    assert not [call for call in answer["calls"] if "timing_cache" in call.lower()]


def test_timings_that_tensorrt_refuses_are_done_without_and_stay_for_others(version: str, answers: Any) -> None:
    told = answers(version)["timings"]
    assert told["foreign"]["timing_cache"]["merged"] == ["1.cache"]
    assert told["foreign"]["timing_cache"]["refused"] == ["0.cache", "2.cache", "3.cache"]
    assert told["foreign"]["learnt"] == "conv gemm"
    assert told["all foreign"]["learnt"] == "conv"


def test_a_build_that_fails_writes_no_timings(version: str, answers: Any) -> None:
    failed = answers(version)["timings"]["failed"]
    assert failed["error"] and failed["learnt"] is None


def test_pinned_tactics_come_back_or_the_build_fails(version: str, answers: Any) -> None:
    told = answers(version)["timings"]
    assert told["first pinned"]["learnt"] == told["pinned"]["learnt"] == "conv"
    assert "a tactic is not in the timing cache" in told["missed"]["error"]
    assert "error_on_miss: false" in told["missed"]["next"]
    assert "TensorRT refuses the timing cache" in told["pinned elsewhere"]["error"]
    assert told["missed"]["learnt"] is None
    assert told["lenient"]["learnt"] == "conv gemm"
    assert "there is no timing cache of this version, GPU and driver yet" in told["strict"]["error"]


def test_a_refit_is_what_the_version_takes(version: str, answers: Any) -> None:
    refit_contract.require_order(answers(version)["refits"][""])
    refit_contract.require_compared(answers(version)["refits"], again=backends.has_refit_flag("tensorrt", version))


@pytest.mark.parametrize("case", refit_contract.FAILS)
def test_what_tensorrt_does_not_do_is_an_error_of_the_refit_and_leaves_no_plan(
    version: str, case: str, answers: Any
) -> None:
    refit_contract.require_refused(answers(version)["refits"], case)


def test_nothing_of_tensorrt_is_held_once_a_stage_returns_or_fails(version: str, answers: Any) -> None:
    """That it lives until then, the stand-ins themselves hold at each call that needs it."""
    answer = answers(version)
    ended = [*answer["knobs"].values(), *answer["builds"].values()]
    assert [each["held"] for each in ended] == [0] * len(ended)
    refit_contract.require_let_go(answer["refits"])


def test_polygraphy_executes_a_plan_with_the_version(version: str, answers: Any) -> None:
    """What comes back is what the stand-in was given, through Polygraphy's own buffers and its calls to TensorRT."""
    answer = answers(version)["validate"]
    assert answer.get("error") is None and answer["engine_executed"]
    assert answer["engine"]["max_abs_error"] == 0.0 and answer["samples"] >= 8
    assert {"IExecutionContext.set_optimization_profile_async", "IExecutionContext.execute_async_v3"} <= {
        *answer["calls"]
    }
    assert answer["calls"].index("IPluginRegistry.load_library") < answer["calls"].index("Runtime")


def test_a_plan_that_the_gpu_has_no_memory_for_says_so(version: str, answers: Any) -> None:
    answer = answers(version)["no_memory"]
    assert answer["error"] == "the plan cannot be executed: out of device memory"
    assert "model.holdout.batch_size" in answer["next"]


def test_where_tensorrt_gives_no_builder_or_runtime_every_stage_says_so(version: str, answers: Any) -> None:
    """As without a driver, or with one that is too old: the bindings raise a TypeError of their own."""
    said = answers(version)["not_started"]
    assert {*said} == {"build", "operators", "refit"}
    assert all(text.startswith("TensorRT cannot start on this machine: ") for text in said.values())


def test_what_tensorrt_calls_takes_the_arguments_that_it_gives(version: str, answers: Any) -> None:
    callbacks = answers(version)["callbacks"]
    monitored = {f"IProgressMonitor.{name}" for name in ("phase_start", "step_complete", "phase_finish")}
    assert {*callbacks} == {"ILogger.log", "IProfiler.report_layer_time", *monitored}
    assert all(taken == given for taken, given in callbacks.values())


@pytest.mark.parametrize(
    ("case", "node", "listed"),
    [
        ("refused_by_parser", "conv0", "conv0"),
        # The parser gives the number of a node without a name; `operators` finds the node by it.
        ("unnamed", "number 1", "conv0"),
        ("unnumbered", "number -1", ""),
    ],
)
def test_what_the_parser_refuses_is_asked_of_the_error_of_the_version(
    version: str, case: str, node: str, listed: str, answers: Any
) -> None:
    answer = answers(version)[case]
    assert answer["build"]["error"].endswith(f"operator Conv (node '{node}'): unsupported node")
    assert answer["refused"] == [{"operator": "Conv", "node": listed, "reason": "unsupported node"}]
    assert "ParserError.code" in answer["build"]["calls"]
    assert answer["build"]["held"] == answer["operators"]["held"] == 0


def test_what_a_stand_in_refuses_is_what_the_bindings_lack(version: str, answers: Any) -> None:
    """Were the stand-ins to take anything, all of the above would hold for no reason."""
    refused = answers(version)["refused"]
    assert [re.sub(r"[:(].*", "", text) for text in refused] == ["AttributeError"] * 2 + ["AssertionError"] * 4
