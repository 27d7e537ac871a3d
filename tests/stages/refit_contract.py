"""What the stage `refit` asks of TensorRT, held against the bindings of one version of either backend.

The engine that the stand-ins have computes `x * w + b` of `x` (n, 512), float32; `b` lies in the model's structure file
once it is joined, `w` beside it. Run as a program it says what becomes of TensorRT-RTX's bindings, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from onnx import helper

from stages import backends, refit, split
from stages.refit import RefitConfig
from stages.stage import Job
from tests.stages import contract_runs
from tests.stages.contract_runs import behaving, environment, run
from tests.stages.stage_runs import facts, model, save
from tests.stages.stand_ins import WEIGHTS, Api, plan_of

ORDER = (
    "IPluginRegistry.load_library",
    "Runtime",
    "Runtime.deserialize_cuda_engine",
    "Refitter",
    "OnnxParserRefitter",
    "OnnxParserRefitter.load_model_proto",
    "OnnxParserRefitter.load_initializer",
    "OnnxParserRefitter.refit_model_proto",
    "Refitter.get_all_weights",
    "Refitter.get_named_weights",
    "Refitter.get_missing_weights",
    "Refitter.refit_cuda_engine_async",
    "ICudaEngine.create_serialization_config",
    "ISerializationConfig.clear_flag",
    "ICudaEngine.serialize_with_config",
    "ICudaEngine.create_execution_context",
    "IExecutionContext.execute_async_v3",
)
"""In which a refit makes its calls."""

FAR = "the refitted plan computes something else than the model: output 'y' differs by "

FAILS = {
    "deserialize": "the plan cannot be loaded: TensorRT gives no reason",
    "library": "libmine.so cannot be loaded: TensorRT gives no reason",
    "refittable": "the plan takes no other weights: it was built without refit",
    "parser": "the weights do not fit the plan: operator Conv (node 'conv0'): unsupported node",
    "missing": "the model lacks weights that the plan has: b, w",
    "forgotten": "the model lacks weights that the plan has: b",
    "many": "the model lacks weights that the plan has: w0, w1, w2, w3, w4 and 2 more",
    "refit": "the weights cannot be put into the plan: TensorRT gives no reason",
    "stream": "the weights cannot be put into the plan: cuStreamSynchronize: CUDA_ERROR_ILLEGAL_ADDRESS",
    "serialize": "the refitted plan cannot be written: TensorRT gives no reason",
    "stale": FAR,
    "bias": FAR,
    "known": "it is known that a refittable plan can lose the bias of a matrix product (Gemm)",
    "nan": "the refitted plan computes something else than the model: output 'y' of the refitted plan has 512 values",
    "infinite": "the refitted plan cannot be compared with the model: output 'y' of the reference has 512 values that",
}
"""What is said of each case that is to fail."""

PROFILE = {"default": {"x": {"min": [1, 512], "opt": [2, 512], "max": [8, 512]}}}
BIAS = np.array([0.75], np.float32)


def answers(bindings: Any, out: Path) -> dict[str, Any]:
    """What a refit says and does, and what it says where TensorRT, or the model, is not as it should be.

    Args:
        bindings: The module that has them.
        out: What `make` has written to.
    """

    failing = RefitConfig(fallback="fail")
    full = {"b": BIAS.tobytes(), "w": bytes(4 * WEIGHTS["w"])}

    def case(
        name: str, config: RefitConfig = failing, model: str = "scale", plan: Path | None = None, **behaviour: Any
    ) -> dict[str, Any]:
        with behaving(**behaviour):
            return refitted(bindings, out, name, config, out / model, plan or made(bindings, out / "old.plan", {}))

    found = {
        "": case(""),
        "named": case("named", plan=made(bindings, out / "named.plan", full), Refitter_marked=("w",)),
        "uncompared": case("uncompared", RefitConfig(tolerance=None)),
        "near": case("near", RefitConfig(tolerance=0.9), Engine_drops_bias=True),
        "deserialize": case("deserialize", Runtime_loads=False),
        "library": case("library", Registry_loads=False),
        "refittable": case("refittable", Engine_refittable=False),
        "parser": case("parser", Parser_refuses=True),
        "missing": case("missing", Refitter_missing=("w", "b")),
        "forgotten": case("forgotten", Parser_forgets=("b",)),
        "many": case("many", Refitter_missing=tuple(f"w{number}" for number in range(7))),
        "refit": case("refit", Refitter_fails=True),
        "serialize": case("serialize", Engine_serializes=False),
        "stale": case("stale", Refitter_stale=True),
        "bias": case("bias", Engine_drops_bias=True),
        "nan": case("nan", Engine_spoils=float("nan")),
        "infinite": case("infinite", model="infinite"),
        "again": case("again", plan=out / "runs/model.plan"),
    }
    with environment(STAND_IN_STREAM_FAILS="1"):
        found["stream"] = case("stream")
    bad = tuple(replace(each, backend=_backend(bindings), since="1", below="99") for each in backends.KNOWN_BAD)
    with mock.patch.object(backends, "KNOWN_BAD", bad):
        found["known"] = case("known", Engine_drops_bias=True)
    return found


def require_order(answer: Mapping[str, Any]) -> None:
    """Holds the calls of a refit to their order, and to one call of each that changes something."""
    calls = answer["calls"]
    assert "error" not in answer, answer["error"]
    assert [calls.index(call) for call in ORDER] == sorted(calls.index(call) for call in ORDER)
    assert [calls.count(call) for call in ORDER[3:6]] == [1, 1, 1]
    assert calls.count("ICudaEngine.serialize_with_config") == 1


def require_compared(found: Mapping[str, Any], again: bool) -> None:
    """Holds what came out to what the model computes.

    Args:
        found: By case.
        again: Whether a refitted plan can be refitted once more.
    """
    weights = {name: found[name]["weights"] for name in ("", "named")}
    assert weights == {"": 2, "named": 1}
    for name in ("", "named"):
        assert (found[name]["method"], found[name]["left"]) == ("refit", ["layers.json", "model.plan"])
        assert found[name]["compared"] == {
            "worst_output": "y",
            "difference": 0.0,
            "allowed": 0.02,
            "samples": 1 + 2 + 8,
        }
        assert {*found[name]["seconds"]} == {"load", "refit", "write", "compare"}
    assert found["uncompared"]["compared"] is None
    assert "IExecutionContext.execute_async_v3" not in found["uncompared"]["calls"]
    assert 0.02 < found["near"]["compared"]["difference"] < 0.9
    assert found[""]["refittable_again"] == again == ("ISerializationConfig.set_flag" in found[""]["calls"])
    said = found["again"].get("error", "")
    assert found["again"]["compared"]["difference"] == 0.0 if again else FAILS["refittable"] in said


def require_refused(found: Mapping[str, Any], case: str) -> None:
    """Holds a case that is to fail to what is said of it, and to having left nothing."""
    answer = found[case]
    assert FAILS[case] in answer["error"] and answer["next"]
    assert answer["left"] == []
    if case == "known":
        assert "refit: identical or none" in answer["next"]
    if case == "infinite":
        assert answer["next"].endswith("to take a refitted plan without comparing it: tolerance: null")


def require_let_go(found: Mapping[str, Any]) -> None:
    """Holds all cases to holding nothing of TensorRT's once they are over.

    Where a plan was executed there is one thing that lives as long as the process: Polygraphy's own logger.
    """
    executed = {name for name, answer in found.items() if "Runtime.engine_host_code_allowed" in answer["calls"]}
    assert {name: answer["held"] for name, answer in found.items()} == {name: int(name in executed) for name in found}


def make(out: Path) -> None:
    """Writes structure and weights of two models, and a library of plugins."""
    out.mkdir(exist_ok=True)
    (out / "libmine.so").touch()
    random = np.random.default_rng(0)
    nodes = [helper.make_node("Mul", ["x", "w"], ["s"]), helper.make_node("Add", ["s", "b"], ["y"])]
    for name, bias in (("scale", BIAS), ("infinite", np.array([np.inf]))):
        weights = {"w": random.standard_normal(WEIGHTS["w"]), "b": bias}
        typed = {key: value.astype(np.float32) for key, value in weights.items()}
        (out / name).mkdir(parents=True)
        onnx = save(model(nodes, {"x": ["n", 512]}, {"y": ["n", 512]}, typed), out / name / "model.onnx")
        split.split(Job(split.SplitConfig(), {"onnx": [onnx]}, {}, out / name))


def made(bindings: Any, path: Path, weights: dict[str, bytes]) -> Path:
    """A refittable plan with these weights, or without any."""
    path.write_bytes(plan_of(bindings, weights, refittable=True))
    return path


def refitted(bindings: Any, out: Path, name: str, config: RefitConfig, given: Path, plan: Path) -> dict[str, Any]:
    """What the stage says, what was called, and what it left in its directory."""
    asked = job(bindings, out, name, config, given, plan)
    answer = run(Api(bindings), lambda: refit.refit(asked))
    return {**answer, "left": sorted(path.name for path in asked.out.iterdir() if path.is_file())}


def job(bindings: Any, out: Path, name: str, config: RefitConfig, given: Path, plan: Path) -> Job[RefitConfig]:
    """A refit of `plan` with the model in the directory `given`."""
    ran = out / "runs" / name
    ran.mkdir(parents=True, exist_ok=True)
    inputs = {"plan": [plan], "plugins": [out / "libmine.so"]}
    inputs |= {output: [given / file] for output, file in split.STAGE.outputs.items()}
    known = {"backend": _backend(bindings), "backend_version": bindings.__version__, "gpu": None}
    return Job(config, inputs, facts(profiles=PROFILE, gpu_here=True, **known), ran)


def _backend(bindings: Any) -> str:
    return str(bindings.__name__).removesuffix("_bindings")


def main(out: Path) -> None:
    import tensorrt_rtx

    sys.modules["tensorrt_rtx"] = contract_runs.Current()  # type: ignore[assignment]
    os.environ.pop("LD_LIBRARY_PATH", None)  # the loader has read it; Polygraphy would look nowhere else
    make(out)
    print(json.dumps(answers(tensorrt_rtx, out)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
