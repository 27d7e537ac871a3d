"""Random inputs within the profiles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from stages.agreement import compare
from stages.batches import Input, model_inputs
from stages.generated import LARGE, generate, generate_edges, generate_extremes
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


IMAGE = [
    Input("image", "float32", ("n", 3, "h", "w")),
    Input("ids", "int64", ("n", "t")),
    Input("free", "bool", (None,)),
]
IMAGE_PROFILE = {
    "default": {
        "image": {"min": [1, 3, 8, 8], "opt": [4, 3, 16, 16], "max": [8, 3, 32, 32]},
        "ids": {"min": [1, 5], "opt": [4, 5], "max": [8, 5]},
        "free": {"min": [1], "opt": [2], "max": [3]},
    }
}


def test_at_an_edge_one_dim_is_at_its_end_in_every_input_that_has_it_and_all_others_at_opt() -> None:
    found = list(generate_edges(IMAGE, profiles_of(IMAGE_PROFILE), seed=0))
    assert {edge: (batch["image"].shape, batch["ids"].shape) for edge, batch in found} == {
        "profile default: n=1": ((1, 3, 16, 16), (1, 5)),
        "profile default: n=8": ((8, 3, 16, 16), (8, 5)),
        "profile default: h=8": ((4, 3, 8, 16), (4, 5)),
        "profile default: h=32": ((4, 3, 32, 16), (4, 5)),
        "profile default: w=8": ((4, 3, 16, 8), (4, 5)),
        "profile default: w=32": ((4, 3, 16, 32), (4, 5)),
    }
    assert {batch["free"].shape for _, batch in found} == {(2,)}  # what depends on a dim without a name nobody knows


def test_where_one_dim_varies_min_and_max_are_all_edges(tmp_path: Path) -> None:
    inputs = model_inputs(onnx.load(classifier(tmp_path / "model.onnx")))
    assert list(generate_edges(inputs, profiles_of(PROFILE), seed=0)) == []


def test_a_shape_tensor_holds_its_opt_values_at_an_edge(tmp_path: Path) -> None:
    inputs = open_onnx([shaper(tmp_path / "model.onnx")]).inputs
    for _, batch in generate_edges(inputs, profiles_of({"default": ranges()}), seed=0):
        assert batch["sizes"].tolist()[-1] == 16


def test_extremes_are_zeros_and_large_floats_and_leave_other_types_as_they_are() -> None:
    found = dict(generate_extremes(IMAGE, profiles_of(IMAGE_PROFILE), seed=0))
    assert not found["zeros"]["image"].any() and found["zeros"]["image"].shape == (4, 3, 16, 16)
    assert LARGE < np.abs(found["large"]["image"]).max() < 10 * LARGE
    for name in ("ids", "free"):
        np.testing.assert_array_equal(found["zeros"][name], found["large"][name])
        assert set(np.unique(found["zeros"][name])) <= {0, 1}
    assert list(generate_extremes(IMAGE[1:], profiles_of(IMAGE_PROFILE), seed=0)) == []
