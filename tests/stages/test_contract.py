"""Every call to TensorRT, held against the real bindings of several versions without its libraries.

`make bindings` fetches the bindings; stand-in libraries with the symbols that they need are made here in a second.
Nothing is built: what is shown is that names, arguments, enum members and types are those of the version, and that what
a build needs lives until it returns.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from stages import backends, knobs
from stages.knobs import KNOBS, Kind

ROOT = Path(__file__).parents[2]
BINDINGS = ROOT / ".venv-bindings"
VERSIONS = ("10.13.3.9", "10.16.1.11", "11.0.0.114", "11.4.0.106")
API = json.loads((ROOT / "docs/tensorrt_api.json").read_text())

SYMBOLS = {
    "nvinfer": ("createInferBuilder_INTERNAL", "createInferRuntime_INTERNAL", "createInferRefitter_INTERNAL",
                "getPluginRegistry", "getBuilderPluginRegistry"),
    "nvonnxparser": ("createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getNvOnnxParserVersion"),
    "nvinfer_plugin": ("initLibNvInferPlugins",),
}  # fmt: skip
"""What `tensorrt.so` of the bindings needs of each library, from 10.3 to 11.4."""

pytestmark = [
    pytest.mark.skipif(not BINDINGS.is_dir(), reason="the bindings are not here: make bindings"),
    pytest.mark.parametrize(
        "version", [pytest.param(version, marks=pytest.mark.xdist_group(f"contract {version}")) for version in VERSIONS]
    ),
]


def make_libraries(directory: Path, major: str) -> None:
    for name, symbols in SYMBOLS.items():
        library = f"lib{name}.so.{major}"
        source = directory / f"{name}.c"
        source.write_text("\n".join(f"void *{symbol}(void) {{ return 0; }}" for symbol in symbols))
        command = ["gcc", "-shared", "-fPIC", f"-Wl,-soname,{library}", "-o", directory / library, source]
        subprocess.run(command, check=True)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What tests/stages/contract_child.py says of a version: one process each, 1 s."""

    @cache
    def ask(version: str) -> dict[str, Any]:
        directory = tmp_path_factory.mktemp("contract")
        make_libraries(directory, version.partition(".")[0])
        paths = os.pathsep.join([str(BINDINGS / version), str(ROOT)])
        ran = subprocess.run(
            [sys.executable, "-m", "tests.stages.contract_child", directory],
            env={**os.environ, "LD_LIBRARY_PATH": str(directory), "PYTHONPATH": paths},
            capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr[-3000:]
        return dict(json.loads(ran.stdout.splitlines()[-1]))

    return ask


def test_the_bindings_are_those_of_the_version(version: str, answers: Any) -> None:
    assert answers(version)["version"] == version


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


def test_a_refit_is_what_the_version_takes(version: str, answers: Any) -> None:
    answer = answers(version)["refit"]
    assert answer.get("error") is None and answer["method"] == "refit"
    keeps = "ISerializationConfig.set_flag" in answer["calls"]
    assert keeps == backends.has_refit_flag("tensorrt", version)


def test_what_the_parser_refuses_is_asked_of_the_error_of_the_version(version: str, answers: Any) -> None:
    answer = answers(version)["refused_by_parser"]
    assert answer["build"].endswith("operator Conv (node 'conv0'): unsupported node")
    assert answer["operators"] == [{"operator": "Conv", "node": "conv0", "reason": "unsupported node"}]
    assert "ParserError.code" in answer["calls"]


def test_what_a_stand_in_refuses_is_what_the_bindings_lack(version: str, answers: Any) -> None:
    """Were the stand-ins to take anything, all of the above would hold for no reason."""
    refused = answers(version)["refused"]
    assert [re.sub(r"[:(].*", "", text) for text in refused] == ["AttributeError"] * 2 + ["AssertionError"] * 4
