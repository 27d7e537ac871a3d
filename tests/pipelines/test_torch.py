"""Models that are torch modules, from the command line."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(forge):
    """A working directory that holds the example's torch module, as a checkout does."""
    shutil.copytree(ROOT / "examples", forge.home / "examples")
    return forge


def test_the_default_model_is_exported_from_its_torch_module(checkout):
    ran = checkout.build("flow=export", "model.source=torch")
    assert ran.code == 0, ran.err
    metrics = ran.step("export")["metrics"]
    assert metrics["torch"].startswith("2.")
    assert set(checkout.build("flow=export", "model.source=torch").states().values()) == {"cached"}


def test_a_torch_module_goes_all_the_way_to_a_validated_int8_plan(checkout):
    ran = checkout.build("model.source=torch", "targets=[l4]", "gates.accuracy_drop=0.01")
    assert ran.code == 0, ran.err
    assert ran.document["plans"][0]["validated"] is True
    assert ran.step("validate", "l4")["metrics"]["accuracy_reference"] >= 0.98


def test_another_line_in_the_module_or_another_checkpoint_is_another_export(checkout):
    export = ("flow=export", "model.source=torch")
    assert checkout.build(*export).code == 0
    module = checkout.home / "examples/digits/network.py"
    module.write_text(module.read_text() + "\n# another line\n")
    assert checkout.status(*export).states()["export"] == "missing"
    ran = checkout.build(*export)
    assert ran.states() == {"export": "built", "surgery": "cached"}  # the same bytes come out
    weights = shutil.copy(ROOT / "conf/data/digits/digits.safetensors", checkout.home / "w.safetensors")
    assert set(checkout.status(*export, f"model.weights={weights}").states().values()) == {"cached"}


def test_a_module_that_fails_is_one_line(checkout):
    (checkout.home / "broken.py").write_text("def load():\n    raise RuntimeError('no such checkpoint')\n")
    ran = checkout("build", "runner=local", "model=torch", "model.entry_point=broken:load", "flow=export",
                   "model.inputs={x: {shape: [1, 3]}}")  # fmt: skip
    assert ran.code == 1
    assert ran.err.count("error: ") == 1
    assert "no such checkpoint" in ran.err
