"""Run by test_contract.py in a process of its own, with the bindings of one version: says what was called, as JSON."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import tensorrt_bindings

from docs.tensorrt_api import BESIDE, CLASS, ENUMS
from stages import backends, build, operators, refit
from stages.build_config import BuildConfig
from stages.gpus import Gpu, Gpus
from stages.knobs import KNOBS
from stages.refit import RefitConfig
from stages.stage import Job
from tests.stages.knob_values import configured
from tests.stages.stage_runs import classifier, facts
from tests.stages.stand_ins import Api, Parser, header

VERSION = tensorrt_bindings.__version__
L4 = Gpus((Gpu("NVIDIA L4", "GPU-0", "8.9", 24 << 30),))
PROFILE = {"default": {"x": {"min": [1, 4], "opt": [2, 4], "max": [8, 4]}}}
FACTS = facts(backend="tensorrt", backend_version=VERSION, gpu="NVIDIA L4", profiles=PROFILE, gpu_here=True)


def names() -> list[str]:
    """What docs/tensorrt_api.json would hold of this version."""
    found = [f"{CLASS}.{name}" for name in dir(tensorrt_bindings.IBuilderConfig) if not name.startswith("_")]
    for name in BESIDE:
        kind, _, member = name.partition(".")
        found += [name] if hasattr(getattr(tensorrt_bindings, kind), member) else []
    for enum in ENUMS:
        found += [f"{enum}.{member}" for member in getattr(tensorrt_bindings, enum).__members__]
    return found


@contextlib.contextmanager
def machine(api: Api) -> Iterator[None]:
    """A machine with an L4 and this TensorRT, as far as `build` and `refit` ask."""
    with (
        mock.patch.object(backends, "load", lambda backend: api),
        mock.patch.object(build, "gpus", lambda: L4),
        mock.patch.object(build, "use", lambda *_: None),
        mock.patch.object(refit, "use", lambda *_: None),
    ):
        yield


def run(api: Api, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    with machine(api):
        try:
            return {**work(), "calls": api.calls}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}", "calls": api.calls}


def job(config: Any, out: Path, **inputs: list[Path]) -> Job[Any]:
    return Job(config, {"onnx": [out / "model.onnx"], **inputs}, FACTS, out)


def built(path: str, out: Path) -> dict[str, Any]:
    config = configured(path)
    api = Api(tensorrt_bindings)
    return run(api, lambda: build.build(job(config, out, plugins=[out / "libmine.so"])))


def refitted(out: Path) -> dict[str, Any]:
    (out / "old.plan").write_bytes(header(VERSION))
    api = Api(tensorrt_bindings)
    return run(api, lambda: refit.refit(job(RefitConfig(), out, plan=[out / "old.plan"])))


def refused_by_parser(out: Path) -> dict[str, Any]:
    """What `build` says of a model that the parser refuses, and what `operators` writes of it."""
    api = Api(tensorrt_bindings)
    with mock.patch.object(Parser, "refuses", True):
        failed = run(api, lambda: build.build(job(BuildConfig(), out)))
        listed = run(api, lambda: operators.operators(job(operators.OperatorsConfig(), out)))
    assert "error" not in listed, listed["error"]
    refused = json.loads((out / "operators.json").read_text())["refused"]
    return {"build": failed.get("error"), "operators": refused, "calls": api.calls}


def network_flags(out: Path) -> list[str]:
    """Names of the flags that networks are made with."""
    made: list[int] = []
    api = Api(tensorrt_bindings)
    method = api.method

    def watched(of: Any, name: str) -> Any:
        found = method(of, name)
        return (lambda flags: made.append(flags) or found(flags)) if name == "create_network" else found

    api.method = watched  # type: ignore[method-assign]
    answer = run(api, lambda: build.build(job(BuildConfig(), out)))
    assert "error" not in answer, answer
    members = tensorrt_bindings.NetworkDefinitionCreationFlag.__members__.items()
    return [name for name, flag in members if made[0] & 1 << int(flag)]


def refused() -> list[str]:
    """What the stand-ins say to calls that no version takes."""
    api = Api(tensorrt_bindings)
    logger = tensorrt_bindings.Logger()
    builder = api.Builder(logger)
    config = builder.create_builder_config()
    wrong: list[Callable[[], Any]] = [
        lambda: config.no_such_setting,
        lambda: setattr(config, "no_such_setting", 1),
        lambda: setattr(config, "max_aux_streams", "many"),
        lambda: config.set_flag(tensorrt_bindings.TacticSource.JIT_CONVOLUTIONS),
        lambda: config.set_memory_pool_limit(tensorrt_bindings.MemoryPoolType.WORKSPACE),
        lambda: builder.create_network(1, 2),
    ]
    said = []
    for each in wrong:
        try:
            said.append(f"taken: {each()}")
        except (AttributeError, AssertionError) as error:
            said.append(repr(error))
    return said


def main(out: Path) -> None:
    classifier(out / "model.onnx")
    (out / "libmine.so").touch()
    having = [knob.path for knob in KNOBS if knob.tensorrt.has(VERSION)]
    answer = {
        "version": VERSION,
        "names": names(),
        "knobs": {path: built(path, out) for path in having},
        "refit": refitted(out),
        "refused_by_parser": refused_by_parser(out),
        "network_flags": network_flags(out),
        "refused": refused(),
    }
    print(json.dumps(answer))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
