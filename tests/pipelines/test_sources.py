"""The files that a model's config names."""

from __future__ import annotations

import sysconfig
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest

from conf.errors import ConfigError
from conf.schema import Model, Source
from pipelines import sources
from pipelines.sources import collect, modules, packages


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `net` in the working directory: `net.model` uses `net.blocks` and `net.sub.parts`, not `net.other`."""
    monkeypatch.chdir(tmp_path)
    files = {
        "net/__init__.py": "",
        "net/model.py": "import os\nfrom net.blocks import Block\ndef load():\n    from .sub import parts\n",
        "net/blocks.py": "import numpy\n",
        "net/sub/__init__.py": "",
        "net/sub/parts.py": "from ..blocks import Block\n",
        "net/other.py": "",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_an_entry_point_is_its_module_and_what_it_imports_from_its_own_package(package):
    names = {path.relative_to(package).as_posix() for path in modules("net.model:load")}
    assert names == {"net/__init__.py", "net/model.py", "net/blocks.py", "net/sub/__init__.py", "net/sub/parts.py"}


def test_the_users_own_modules_beside_the_entry_point_count_too(package):
    (package / "single.py").write_text("import json, numpy, layers\nfrom helpers import x\n")
    (package / "layers.py").write_text("import deeper\n")
    for name in ("helpers.py", "deeper.py", "unused.py"):
        (package / name).write_text("x = 1\n")
    names = {path.name for path in modules("single:load")}
    assert names == {"single.py", "layers.py", "helpers.py", "deeper.py"}


def test_a_module_that_is_not_there_or_does_not_parse_is_named(package):
    with pytest.raises(ConfigError, match=r"net\.nowhere"):
        modules("net.nowhere:load")
    (package / "net/blocks.py").write_text("def broken(:\n")
    with pytest.raises(ConfigError, match=r"blocks\.py:1"):
        modules("net.model:load")


def test_a_module_that_is_installed_without_a_version_counts_like_the_users_own(package, monkeypatch):
    site = Path(sysconfig.get_path("purelib"))
    monkeypatch.setattr(sources, "_foreign_roots", lambda: (site, package / "site"))
    monkeypatch.syspath_prepend(str(package / "site"))
    (package / "site").mkdir()
    (package / "site/dropped_in.py").write_text("import compiled_by_hand\n")
    compiled = package / "site" / f"compiled_by_hand{EXTENSION_SUFFIXES[0]}"
    compiled.write_bytes(b"\x7fELF")
    (package / "single.py").write_text("import dropped_in\n")
    assert modules("single:load") == [compiled, package / "site/dropped_in.py", package / "single.py"]
    assert packages("single:load") == {}


def test_packages_of_others_count_by_the_version_of_their_distribution(package):
    (package / "net/blocks.py").write_text("import os, numpy.linalg, yaml, nowhere.at.all\nfrom . import other\n")
    assert packages("net.model:load") == {
        "numpy": metadata.version("numpy"),
        "PyYAML": metadata.version("PyYAML"),
        "nowhere": None,
    }


def test_the_module_of_the_examples_counts_as_that_of_the_entry_point_does(package):
    (package / "data.py").write_text("import yaml\n")
    assert package / "data.py" in modules("net.model:load", "data:examples")
    assert "PyYAML" in packages("net.model:load", "data:examples")
    model = Model(source=Source.torch, entry_point="net.model:load", examples="data:examples")
    assert package / "data.py" in collect(model, None)["source"]
    model.examples = "data"
    with pytest.raises(ConfigError, match=r"model\.examples is 'data'"):
        collect(model, None)


def test_a_torch_model_is_source_and_weights(package):
    (package / "w.safetensors").write_bytes(b"w")
    files = collect(Model(source=Source.torch, entry_point="net.blocks:load", weights="w.safetensors"), None)
    assert {name: [path.name for path in paths] for name, paths in files.items()} == {
        "source": ["__init__.py", "blocks.py"],
        "weights": ["w.safetensors"],
    }


@pytest.mark.parametrize("entry_point", [None, "net.blocks", ":load", "net.blocks:"])
def test_an_entry_point_is_module_and_callable(package, entry_point):
    with pytest.raises(ConfigError, match="entry_point"):
        collect(Model(source=Source.torch, entry_point=entry_point), None)


def test_an_onnx_model_is_its_file_then_its_external_data(tmp_path):
    for name in ("net.onnx", "b.bin", "a.bin"):
        (tmp_path / name).write_bytes(b"")
    signature = {"external_data": ["a.bin", "b.bin"]}
    files = collect(Model(path=str(tmp_path / "net.onnx")), signature)
    assert [path.name for path in files["onnx"]] == ["net.onnx", "a.bin", "b.bin"]
    assert set(files) == {"onnx"}
    (tmp_path / "b.bin").unlink()
    with pytest.raises(ConfigError, match=r"b\.bin"):
        collect(Model(path=str(tmp_path / "net.onnx")), signature)


def test_an_onnx_model_may_have_a_checkpoint(tmp_path):
    for name in ("net.onnx", "w.safetensors"):
        (tmp_path / name).write_bytes(b"")
    model = Model(path=str(tmp_path / "net.onnx"), weights=str(tmp_path / "w.safetensors"))
    assert collect(model, {"external_data": []})["weights"] == [tmp_path / "w.safetensors"]
    model.weights = str(tmp_path / "gone.safetensors")
    with pytest.raises(ConfigError, match=r"model\.weights=.*gone\.safetensors: no such file"):
        collect(model, {"external_data": []})


def test_ranges_of_the_users_own_are_a_file_of_the_model(tmp_path):
    for name in ("net.onnx", "own.json"):
        (tmp_path / name).write_bytes(b"")
    model = Model(path=str(tmp_path / "net.onnx"), ranges=str(tmp_path / "own.json"))
    assert collect(model, {"external_data": []})["ranges"] == [tmp_path / "own.json"]
    model.ranges = str(tmp_path / "gone.json")
    with pytest.raises(ConfigError, match=r"model\.ranges=.*gone\.json: no such file"):
        collect(model, {"external_data": []})


def test_a_script_is_itself_and_what_it_imports_from_beside_it(package):
    (package / "scripts").mkdir()
    (package / "scripts/load.py").write_text("import numpy, beside\nfrom net.blocks import Block\n")
    (package / "scripts/beside.py").write_text("import yaml\n")
    script = package / "scripts/load.py"
    names = [path.relative_to(package).as_posix() for path in sources.script(script, "model.calibration.callable")]
    assert names == ["scripts/load.py", "scripts/beside.py", "net/__init__.py", "net/blocks.py"]
    assert sorted(sources.script_packages(script, "model.calibration.callable")) == ["PyYAML", "numpy"]
    script.write_text("def broken(:\n")
    with pytest.raises(ConfigError, match=r"load\.py:1") as caught:
        sources.script(script, "model.calibration.callable")
    assert "model.calibration.callable" in caught.value.next_step
