"""Every knob set on TensorRT-RTX's real objects: what it does to a plan is what the table says."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from stages.knobs import KNOBS, Effect, Knob, given
from stages.settings import device_of
from tests.stages.knob_values import OTHER, configured
from tests.stages.stage_runs import model

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.xdist_group("settings")  # they share one process

BUILD = """
import hashlib, json, sys
from pathlib import Path
import tensorrt_rtx as trt
from stages import knobs, settings
from stages.builder_log import make_logger
from stages.stage import StageError

content = Path(sys.argv[1]).read_bytes()
logger = make_logger(trt)

def build(values):
    del logger.errors[:]
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    network.name = "model"
    parser = trt.OnnxParser(network, logger)
    assert parser.parse(content)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    try:
        settings.apply(settings.Objects(trt, network, config, logger.errors, "tensorrt_rtx"), values)
    except StageError as error:
        return "refused: " + error.what
    except AttributeError:
        return "absent"
    plan = builder.build_serialized_network(network, config)
    return hashlib.sha256(plan).hexdigest() if plan is not None else "failed: " + logger.errors[0]

print(json.dumps([build(values) for values in json.loads(sys.argv[2])]))
"""

FURTHER: dict[str, dict[str, Any]] = {
    "no such tensor": {"io_formats": {"z": ["linear"]}},
    "no such layer": {"layer_device_types": {"pool*": "gpu", "deconv*": "gpu"}},
    "no such weights": {"refit": "named", "refittable_weights": ["nowhere"]},
    "too large": {"memory_pools.tactic_shared_memory": 2**40},
}
"""What the network has not, and the backend does not take."""


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The digest of a plan without a setting (under ""), and with each, or what was said instead: one process, 3 s."""
    path = tmp_path_factory.mktemp("settings") / "model.onnx"
    path.write_bytes(branches().SerializeToString())
    asked: dict[str, dict[str, Any]] = {"": {}, **{knob.path: values(knob.path) for knob in KNOBS}, **FURTHER}
    ran = subprocess.run(
        [sys.executable, "-c", BUILD, str(path), json.dumps([*asked.values()])],
        capture_output=True, text=True, cwd=ROOT, timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-2000:]
    return dict(zip(asked, json.loads(ran.stdout.splitlines()[-1]), strict=True))


def branches() -> onnx.ModelProto:
    """Two convolutions side by side, of float32 `x` (1, 8, 32, 32), and a matrix product: `y` (1, 10)."""
    random = np.random.default_rng(5)
    weights = {
        "w": random.standard_normal((16, 8, 3, 3)).astype(np.float32),
        "v": random.standard_normal((16, 8, 3, 3)).astype(np.float32),
        "g": random.standard_normal((32, 10)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv0", pads=[1] * 4),
        helper.make_node("Conv", ["x", "v"], ["b"], name="conv1", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["c"], name="relu0"),
        helper.make_node("Sigmoid", ["b"], ["d"], name="sigmoid0"),
        helper.make_node("Concat", ["c", "d"], ["e"], name="concat0", axis=1),
        helper.make_node("GlobalAveragePool", ["e"], ["f"], name="pool0"),
        helper.make_node("Flatten", ["f"], ["h"], name="flatten0"),
        helper.make_node("Gemm", ["h", "g"], ["y"], name="gemm0"),
    ]
    return model(nodes, {"x": [1, 8, 32, 32]}, {"y": [1, 10]}, weights)


def values(path: str) -> dict[str, Any]:
    """What to set so that the knob is set; nothing else that a config sets by default."""
    return {name: value for name, value in given(configured(path)).items() if name in OTHER[path]}


def on_rtx(*effects: Effect) -> Any:
    found = [knob for knob in KNOBS if knob.rtx.effect in effects]
    return pytest.mark.parametrize("knob", found, ids=lambda knob: knob.path)


@on_rtx(Effect.TAKEN)
def test_what_the_table_calls_taken_changes_the_plan(knob: Knob, plans: dict[str, str]) -> None:
    got = plans[knob.path]
    if knob.path in ("refit", "refittable_weights", "strip_plan"):
        # The flag is taken; what it asks for needs a GPU in the machine.
        assert "failed" in got or got != plans[""]
    elif knob.rtx.needs:
        assert "libnvinfer_lean" in got and len(plans[knob.rtx.needs]) == 64
    else:
        assert len(got) == 64 and got != plans[""]


@on_rtx(Effect.WITHOUT)
def test_what_the_table_calls_without_effect_leaves_the_plan_as_it_is(knob: Knob, plans: dict[str, str]) -> None:
    assert plans[knob.path] == plans[""]


@on_rtx(Effect.IGNORED)
def test_what_the_table_calls_ignored_reads_back_as_before(knob: Knob, plans: dict[str, str]) -> None:
    assert f"did not take {knob.path}=" in plans[knob.path]


@on_rtx(Effect.LACKING)
def test_what_the_table_calls_lacking_cannot_be_had(knob: Knob, plans: dict[str, str]) -> None:
    got = plans[knob.path]
    without_a_word = ("default_device_type", "layer_device_types")  # DLA is accepted, and the plan is the GPU's
    assert got.startswith(("absent", "refused: ", "failed: ")) or (knob.path in without_a_word and got == plans[""])


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("no such tensor", "io_formats: the network has no input or output 'z'"),
        ("no such layer", "layer_device_types: no layer's name fits 'deconv*'"),
        ("no such weights", "refittable_weights: the network has no weights 'nowhere'"),
        ("too large", "did not take memory_pools.tactic_shared_memory=1099511627776, it has 1073741824"),
    ],
)
def test_what_the_network_has_not_or_the_backend_does_not_take_is_an_error(
    case: str, words: str, plans: dict[str, str]
) -> None:
    assert plans[case].startswith("refused: ") and words in plans[case]


def test_of_several_patterns_the_longest_says_where_a_layer_runs_whatever_their_order() -> None:
    patterns = {"conv1*": "gpu", "*": "gpu", "conv*": "dla"}
    for order in (patterns, dict(reversed(patterns.items()))):
        assert [device_of(layer, order) for layer in ("conv0", "conv17", "relu")] == ["dla", "gpu", "gpu"]
    assert device_of("relu", {"conv*": "dla"}) is None
