"""Writes docs/tensorrt_api.json: which version of TensorRT has which name of what a build is set with.

`python docs/tensorrt_api.py DIR`, where DIR holds a `<backend>-<version>.json` for each version: the enums, classes and
signatures of its Python bindings. The project keeps only what docs/knobs.md and the tests need; that it is true is held
against the bindings themselves by tests/stages/test_contract.py, for the versions that `make bindings` fetches.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

PAGE = Path(__file__).with_name("tensorrt_api.json")
OLDEST = (10, 13)
CLASS = "IBuilderConfig"
BESIDE = ("ICudaEngine.weight_streaming_budget_v2", "INetworkDefinition.mark_weights_refittable",
          "ITensor.allowed_formats", "ITensor.dtype", "Runtime.temporary_directory",
          "Runtime.tempfile_control_flags")  # fmt: skip
"""What is no part of a builder config, and belongs to a build's settings all the same."""
ENUMS = ("BuilderFlag", "MemoryPoolType", "TacticSource", "PreviewFeature", "ProfilingVerbosity", "DeviceType",
         "TilingOptimizationLevel", "HardwareCompatibilityLevel", "RuntimePlatform", "EngineCapability",
         "TensorFormat")  # fmt: skip


def names(api: dict[str, Any]) -> set[str]:
    """The names of one version that are of interest: `IBuilderConfig.max_aux_streams`, `BuilderFlag.TF32`."""
    found = {f"{CLASS}.{name}" for name in members(api, CLASS) if not name.startswith("__")}
    found |= {name for name in BESIDE if name.partition(".")[2] in members(api, name.partition(".")[0])}
    return found | {f"{enum}.{member}" for enum in ENUMS for member in api["enums"].get(enum, ())}


def members(api: dict[str, Any], name: str) -> set[str]:
    """The methods and properties of a class."""
    described = api["classes"][name]
    return {*described["methods"], *described["writable"], *described["readonly"]}


def collected(directory: Path) -> dict[str, Any]:
    """`{"versions": […], "names": {name: the versions that have it, or "all"}}`."""
    found: dict[str, set[str]] = {}
    for path in directory.glob("*.json"):
        backend, _, version = path.stem.rpartition("-")
        if backend == "tensorrt_rtx" or tuple(map(int, version.split(".")[:2])) >= OLDEST:
            found[f"{backend} {version}"] = names(json.loads(path.read_text()))
    versions = sorted(found, key=_age)
    every = sorted(set().union(*found.values()))
    having = {name: [version for version in versions if name in found[version]] for name in every}
    return {"versions": versions, "names": {name: "all" if v == versions else v for name, v in having.items()}}


def _age(name: str) -> tuple[bool, list[int]]:
    backend, _, version = name.partition(" ")
    return backend == "tensorrt_rtx", [int(part) for part in version.split(".")]


if __name__ == "__main__":
    PAGE.write_text(json.dumps(collected(Path(sys.argv[1])), indent=1) + "\n")
