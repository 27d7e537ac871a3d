"""Models that are torch modules, from the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
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


TAGGER = """
import numpy
import torch
from torch import nn

class Tagger(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.words = nn.Embedding(10, width)
    def forward(self, ids): return self.words(ids - 100)

def examples(batch, length):
    return {"ids": 100 + numpy.arange(batch * length).reshape(batch, length) % 10}
"""


def test_examples_profiles_and_a_plain_checkpoint_are_enough_for_a_module_that_loads_nothing_itself(forge):
    (forge.home / "net.py").write_text(TAGGER)
    torch.save({"words.weight": torch.arange(40.0).reshape(10, 4)}, forge.home / "net.pt")
    ran = forge.build("flow=export", "model=torch", "model.entry_point=net:Tagger", "model.examples=net:examples",
                      "model.weights=net.pt", "model.inputs={ids: {shape: [batch, length], dtype: int64}}",
                      "model.profiles.default.ids={min: [1, 2], opt: [2, 3], max: [4, 9]}")  # fmt: skip
    assert ran.code == 0, ran.err
    metrics = ran.step("export")["metrics"]
    assert (metrics["opset"], metrics["max_abs_error"]) == (20, {"output": 0.0})
    session = onnxruntime.InferenceSession(str(forge.store / "published/net/export/model.onnx"))
    assert session.get_inputs()[0].shape == ["batch", "length"]
    assert session.run(None, {"ids": np.array([[103]])})[0].tolist() == [[[12, 13, 14, 15]]]
    record = json.loads((forge.store / "records" / f"{ran.step('export')['key']}.json").read_text())
    source = record["fields"]["facts"]["source"]
    assert source["packages"] == {"numpy": np.__version__}
    assert source["dims"] == {"batch": [1, 2, 4], "length": [2, 3, 9]}
