"""Random inputs within the profiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from stages.agreement import compare
from stages.batches import model_inputs
from stages.generated import generate
from stages.profiles import profiles_of
from stages.runtimes import open_onnx
from tests.stages.shape_tensors import ranges, shaper
from tests.stages.stage_runs import PROFILE, classifier


def test_every_profile_is_met_at_its_min_opt_and_max(tmp_path: Path) -> None:
    inputs = model_inputs(onnx.load(classifier(tmp_path / "model.onnx")))
    drawn = list(generate(inputs, profiles_of(PROFILE), 4, seed=0))
    assert [batch["x"].shape[0] for batch, _ in drawn] == [1, 4, 8, 1]
    assert [done for _, done in drawn] == [0.25, 0.5, 0.75, 1.0]


def test_a_shape_tensor_holds_the_values_that_belong_to_the_shapes(tmp_path: Path) -> None:
    path = shaper(tmp_path / "model.onnx")
    runtime = open_onnx([path])
    drawn = [batch for batch, _ in generate(runtime.inputs, profiles_of({"default": ranges()}), 0, seed=0)]
    assert [batch["sizes"].tolist()[-1] for batch in drawn] == [8, 16, 32]
    assert {(batch["rows"].shape, batch["rows"].dtype.name) for batch in drawn} == {((), "int64")}
    assert [runtime.run(batch)["y"].shape for batch in drawn] == [(1, 1), (2, 2), (3, 4)]


def test_models_with_shape_tensors_are_compared_at_their_values(tmp_path: Path) -> None:
    proto = onnx.load(shaper(tmp_path / "model.onnx"))
    agreement = compare(proto, proto, profiles_of({"default": ranges()}), 1e-6, {})
    assert (agreement.runs, agreement.skipped) == (3, [])


def test_one_seed_gives_one_batch(tmp_path: Path) -> None:
    inputs = model_inputs(onnx.load(classifier(tmp_path / "model.onnx")))
    one, other = (next(generate(inputs, profiles_of(PROFILE), 1, seed=7))[0]["x"] for _ in range(2))
    np.testing.assert_array_equal(one, other)
