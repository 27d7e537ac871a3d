"""What the contract tests count as a call to TensorRT; and the calls that TensorRT-RTX alone has, made for real."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.stages.stage_runs import conv
from tests.stages.tensorrt_calls import STAGES, calls, sources

ROOT = Path(__file__).parents[2]
NAMES = {
    "create_network",
    "num_layers",
    "get_layer",
    "name",
    "Builder",
    "set_flag",
    "clear_flag",
    "BuilderFlag",
    "TF32",
}
API = json.loads((ROOT / "docs/tensorrt_api.json").read_text())["names"]


def found(source: str) -> list[str]:
    return [f"{site.lines[0]} {site.name}" for site in calls(NAMES, {"new.py": source}).made]


@pytest.mark.parametrize(
    "source",
    [
        "def f(builder: Any):\n    builder.create_network()",
        "def f(builders: Sequence[Any]):\n    [each.create_network() for each in builders]",
        "def f(trt):\n    made, other = trt.Builder(), 1\n    made.create_network()",
        "class A:\n    def __init__(self, trt):\n        self.made = trt.Builder()\n"
        "    def f(self):\n        self.made.create_network()",
        "class A:\n    builder: Any\ndef f(a: A):\n    a.builder.create_network()",
        "def make() -> Any: ...\ndef f():\n    with make() as made:\n        made.create_network()",
        "def f(here: bool, builder: Any):\n    (builder if here else None).create_network()",
    ],
)
def test_a_call_is_found_wherever_its_object_comes_from(source: str) -> None:
    assert f"{source.count(chr(10)) + 1} create_network" in found(source)


@pytest.mark.parametrize("line", ["import backends\nbackends.load()", "from stages.backends import load\nload()"])
def test_what_is_made_by_a_function_of_another_module_is_an_object_of_tensorrt_too(line: str) -> None:
    given = {"backends.py": "def load() -> Any: ...", "new.py": f"{line}.create_network()"}
    assert [str(site) for site in calls(NAMES, given).made] == ["stages/new.py:2: create_network"]


def test_names_of_other_objects_are_no_calls_and_the_longer_ones_are_told() -> None:
    source = "def f(builder: Any, path: Path, own: Own):\n    builder.create_network(path.name)\n    own.num_layers"
    assert found(source) == ["2 create_network"]
    assert [str(site) for site in calls(NAMES, {"new.py": source}).overlooked] == ["stages/new.py:3: num_layers"]


def test_a_call_that_does_not_happen_is_named_by_its_line() -> None:
    source = (
        "def f(config: Any, on: bool):\n    (config.set_flag if on else config.clear_flag)(1)\n    config.num_layers"
    )
    made, file = calls(NAMES, {"new.py": source}), str(STAGES / "new.py")
    ran, asked = {(file, 2), (file, 3)}, {(file, 2, "set_flag"), (file, 3, "num_layers")}
    assert [str(site) for site in made.unreached(ran, asked)] == ["stages/new.py:2: clear_flag"]


def test_a_call_beside_a_name_that_the_version_lacks_is_not_to_happen() -> None:
    made = calls(NAMES, {"new.py": "def f(config: Any, trt):\n    config.set_flag(trt.NewFlag.NEW)"})
    assert [site.name for site in made.lacking] == ["NEW", "NewFlag"]
    assert made.unreached(set(), set()) == []


def test_what_only_rtx_has_is_called_for_real(tmp_path: Path) -> None:
    only = {
        name.rpartition(".")[2]
        for name, having in API.items()
        if having != "all" and not any("tensorrt " in one for one in having)
    }
    made = calls(only, sources()).made
    assert {site.name for site in made} >= {"num_compute_capabilities", "set_compute_capability"}
    conv(tmp_path / "model.onnx")
    child = subprocess.run(
        [sys.executable, "-c", TRACED, tmp_path], capture_output=True, text=True, cwd=ROOT, timeout=300, check=True
    )
    ran = {(file, line) for file, line in json.loads(child.stdout.splitlines()[-1])}
    assert [str(site) for site in made if not {(str(STAGES / site.file), line) for line in site.range} & ran] == []


TRACED = """
import json, sys
from pathlib import Path
from stages.build import build
from stages.build_config import BuildConfig
from stages.stage import Job
from tests.stages.stage_runs import facts
from tests.stages.tensorrt_calls import traced
out = Path(sys.argv[1])
with traced() as ran:
    build(Job(BuildConfig(), {"onnx": [out / "model.onnx"]}, facts(), out))
print(json.dumps(sorted(ran)))
"""
