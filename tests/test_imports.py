"""The walls: every module imports where the heavy packages are absent, and Prefect is for `RUNS_PREFECT` alone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from pkgutil import walk_packages

import pytest

import artifacts
import conf
import pipelines
import stages

ROOT = Path(__file__).parents[1]
HOUSE = (artifacts, conf, pipelines, stages)
MODULES = sorted(module.name for package in HOUSE for module in walk_packages(package.__path__, f"{package.__name__}."))
HEAVY = (
    *("onnx", "onnxruntime", "torch", "polygraphy", "tensorrt", "tensorrt_rtx", "onnxscript", "cuda"),
    *("PIL", "datasets", "pyarrow", "matplotlib", "jinja2"),
)
RUNS_PREFECT = tuple(
    f"pipelines.{name}" for name in ("deployed", "deploying", "flows", "limits", "resuming", "sending")
)

IMPORT = """
import importlib, sys
absent, modules = (argument.split() for argument in sys.argv[1:])

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in absent:
            raise ModuleNotFoundError(f"{name} is absent here", name=name)

sys.meta_path.insert(0, Refuse())
for module in modules:
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        print(f"{module}: {error}")
"""


def complaints(modules: list[str], absent: tuple[str, ...]) -> str:
    """What importing `modules`, one after the other in a fresh process without the packages `absent`, fails with."""
    command = [sys.executable, "-c", IMPORT, " ".join(absent), " ".join(modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_list_of_modules_is_the_whole_house() -> None:
    files = {path for package in HOUSE for path in Path(package.__path__[0]).rglob("*.py")}
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in files if path.stem != "__init__"}
    assert set(MODULES) >= names
    assert set(MODULES) >= set(RUNS_PREFECT)


def test_every_module_imports_without_the_heavy_packages_and_without_prefect() -> None:
    assert complaints([name for name in MODULES if name not in RUNS_PREFECT], (*HEAVY, "prefect")) == ""


def test_the_flows_import_without_the_heavy_packages() -> None:
    assert complaints([*RUNS_PREFECT], HEAVY) == ""


@pytest.mark.parametrize("package", ["artifacts", "stages"])
def test_stages_and_the_store_need_neither_hydra_nor_each_other(package: str) -> None:
    others = tuple({"artifacts", "stages", "conf", "pipelines"} - {package})
    own = [name for name in MODULES if name.startswith(f"{package}.")]
    assert complaints(own, (*HEAVY, *others, "hydra", "omegaconf", "prefect", "numpy")) == ""


def test_an_absent_package_is_noticed() -> None:
    told = [f"{name}: prefect is absent here" for name in RUNS_PREFECT]
    assert complaints([*RUNS_PREFECT], ("prefect",)).splitlines() == told
