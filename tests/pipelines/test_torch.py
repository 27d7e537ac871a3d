"""Models that are torch modules, from the command line."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

ROOT = Path(__file__).parents[2]
WEIGHTS = ROOT / "conf/data/digits/digits.safetensors"
FROM_TORCH = ("model.source=torch",)


@pytest.fixture
def checkout(forge):
    """A working directory that holds the example's torch module, as a checkout does."""
    shutil.copytree(ROOT / "examples", forge.home / "examples")
    return forge


def test_the_default_model_is_exported_from_its_torch_module(checkout):
    ran = checkout.build("flow=export", *FROM_TORCH)
    assert ran.code == 0, ran.err
    metrics = ran.step("export")["metrics"]
    assert metrics["torch"].startswith("2.")
    assert set(checkout.build("flow=export", *FROM_TORCH).states().values()) == {"cached"}


def test_a_torch_module_goes_all_the_way_to_a_validated_int8_plan(checkout):
    references = "steps.validate.config.references=[torch,onnx]"
    ran = checkout.build(*FROM_TORCH, "targets=[l4]", "gates.accuracy_drop=0.01", references)
    assert ran.code == 0, ran.err
    assert ran.document["plans"][0]["validated"] is True
    metrics = ran.step("validate", "l4")["metrics"]
    assert metrics["accuracy_reference"] >= 0.98
    beside = metrics["references"]["onnx"]["candidate"]
    assert metrics["reference"] == "torch" and 0 < abs(metrics["max_abs_error"] - beside["max_abs_error"]) < 1e-4


def test_another_line_in_the_module_or_another_checkpoint_is_another_export(checkout):
    export = ("flow=export", *FROM_TORCH)
    assert checkout.build(*export).code == 0
    module = checkout.home / "examples/digits/network.py"
    module.write_text(module.read_text() + "\n# another line\n")
    assert checkout.status(*export).states()["export"] == "missing"
    ran = checkout.build(*export)
    assert ran.states() == {"export": "built", "surgery": "cached"}  # the same bytes come out
    weights = shutil.copy(WEIGHTS, checkout.home / "w.safetensors")
    assert set(checkout.status(*export, f"model.weights={weights}").states().values()) == {"cached"}


@pytest.fixture(scope="module")
def retrained(tmp_path_factory):
    """The directory of a digits network that was trained for one more epoch."""
    pytest.importorskip("sklearn")
    out = tmp_path_factory.mktemp("retrained")
    run = ["-W", "ignore", "-m", "examples.digits.train", "--init", WEIGHTS, "--epochs", "1", "--rate", "5e-4", "--out"]
    ran = subprocess.run([sys.executable, *run, out], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    return out


@pytest.mark.parametrize("source", ["onnx", "torch"])
def test_one_more_epoch_is_a_refit_and_no_build(checkout, retrained, source):
    run = ("runner=local", "flow=refit", "targets=[l4]", *(FROM_TORCH if source == "torch" else ()))
    before = checkout("build", "--json", *run)
    assert before.code == 0, before.err
    ran = checkout("refit", "--json", "--weights", str(retrained / "digits.safetensors"), *run)
    assert ran.code == 0, ran.err
    steps = ("export", "surgery", "split", "refit[l4]", "validate[l4]", "publish[l4]")
    assert ran.states() == {**dict.fromkeys(steps, "built"), "build[l4]": "cached"}
    judged = ran.step("validate", "l4")["metrics"]
    assert judged["accuracy"] == judged["accuracy_reference"] >= 0.98
    (old,), (new,) = before.document["plans"], ran.document["plans"]
    assert new["validated"] is True
    assert new["digest"] != old["digest"]
    (published,) = checkout.store.glob("published/digits/sm_89/*/refit/model.plan")
    assert hashlib.sha256(published.read_bytes()).hexdigest() == new["digest"]
    if source == "onnx":  # what the training exported itself is the same model
        again = checkout("refit", "--json", "--weights", str(retrained / "digits.onnx"), *run)
        assert {name for name, state in again.states().items() if state != "cached"} == {"export"}
    assert checkout("rollback", "digits").code == 0
    assert hashlib.sha256(published.read_bytes()).hexdigest() == old["digest"]


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
