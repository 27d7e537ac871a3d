"""Placement: one scale for tensors that only pooling, shape operators and Concat lie between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from stages.placement.contract import Placement
from stages.quantization import place
from stages.quantize import insert, prepare
from tests.stages.placement.placed import graph
from tests.stages.rewriting import plan_graph_of, saved

MOVES = {
    "MaxPool": "p = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(r)",
    "Transpose": "p = Transpose<perm=[0, 1, 3, 2]>(r)",
    "Reshape": "p = Reshape(r, same)",
    "Slice": "p = Slice(r, one, nine, two)",
    "Resize to the nearest": 'p = Resize<mode="nearest">(r, , two_fold)',
    "Pad with zeros": "p = Pad(r, around)",
    "Pad with its edge": 'p = Pad<mode="edge">(r, around)',
    "several": "u = Transpose<perm=[0, 1, 3, 2]>(r)\n p = MaxPool<kernel_shape=[2, 2]>(u)",
}
COMPUTES = {
    "AveragePool": "p = AveragePool<kernel_shape=[2, 2]>(r)",
    "Resize between values": 'p = Resize<mode="linear">(r, , two_fold)',
    "Pad with ones": "p = Pad(r, around, ones)",
    "Relu": "p = Relu(r)",
}
VALUES = {
    "same": np.array([4, 32, 16, 16]),
    "one": np.array([1]),
    "nine": np.array([9]),
    "two": np.array([2]),
    "two_fold": np.array([1.0, 1, 2, 2]),
    "around": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "ones": np.float32(1),
}


def two_readers(between: str) -> onnx.ModelProto:
    body = f"c = Conv(x, w)\n r = Tanh(c)\n {between}\n a = Conv(p, w)\n b = Conv(r, w)\n y = Identity(b)"
    return graph(body, w=(32, 32, 1, 1), **VALUES)


@pytest.mark.parametrize("move", MOVES)
def test_a_tensor_and_what_is_moved_from_it_share_a_scale(move: str) -> None:
    assert [set(group) for group in place(two_readers(MOVES[move])).shared] == [{"r", "p"}]


@pytest.mark.parametrize("how", COMPUTES)
def test_what_is_computed_has_a_scale_of_its_own(how: str) -> None:
    assert place(two_readers(COMPUTES[how])).shared == ()


def concat() -> onnx.ModelProto:
    body = """c = Conv(x, w)
        r = Relu(c)
        d = Conv(r, w)
        s = Relu(d)
        p = Concat<axis=1>(r, s)
        z = Conv(p, v)
        a = Conv(s, w)
        y = Concat<axis=1>(a, z)"""
    return graph(body, y="4, 64, 16, 16", w=(32, 32, 1, 1), v=(32, 64, 1, 1))


def test_the_inputs_of_a_concat_and_its_output_share_the_largest_range() -> None:
    placement = place(concat())
    assert [set(group) for group in placement.shared] == [{"r", "s", "p"}]
    given = {"x": 9.0, "r": 1.0, "s": 2.0, "p": 1.5}
    assert placement.unified(given) == {"x": 9.0, "r": 2.0, "s": 2.0, "p": 2.0}


def test_parts_of_a_tensor_that_is_in_float_keep_their_scales() -> None:
    body = "a, b = Split<axis=1, num_outputs=2>(x)\n c = Conv(a, w)\n d = Conv(b, w)\n y = Concat<axis=1>(c, d)"
    placement = place(graph(body, w=(16, 16, 1, 1)))
    assert (placement.activations, placement.shared) == (["a", "b"], ())


def test_skipping_a_reader_leaves_the_others_their_own_scales() -> None:
    assert place(concat(), {"a", "d"}).shared == ()


def with_ranges(model: onnx.ModelProto, ranges: dict[str, float], shared: bool) -> onnx.ModelProto:
    prepare(model)
    found = place(model)
    insert(model, Placement(found.reads, found.weighted, found.quantized, found.shared if shared else ()), ranges)
    return model


def pool() -> onnx.ModelProto:
    body = "c = Conv(x, w)\n r = Relu(c)\n p = MaxPool<kernel_shape=[3, 3], pads=[1, 1, 1, 1]>(r)"
    end = "a = Conv(p, w)\n z = Conv(r, w)\n y = Concat<axis=1>(a, z)"
    return graph(f"{body}\n {end}", y="4, 64, 16, 16", w=(32, 32, 1, 1))


@pytest.mark.parametrize(
    ("model", "ranges", "operation", "apart", "together"),
    [
        (pool(), {"x": 3.0, "r": 3.0, "p": 2.5}, "Relu", ("int8", "int8"), ("int8",)),
        (concat(), {"x": 3.0, "r": 3.0, "s": 4.0, "p": 5.0}, "Relu", ("int8", "float"), ("int8",)),
    ],
    ids=["MaxPool", "Concat"],
)
def test_with_one_scale_a_tensor_is_written_once_and_moved_in_int8(
    tmp_path: Path, model: Any, ranges: dict[str, float], operation: str, apart: tuple[str], together: tuple[str]
) -> None:
    for shared, expected in ((False, apart), (True, together)):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        path = saved(with_ranges(copy, ranges, shared), tmp_path / f"{shared}.onnx")
        first = next(each for each in plan_graph_of(path, "SM89") if operation in each.name)
        assert first.writes == expected


def scale_of(model: onnx.ModelProto, name: str) -> float:
    return float(next(numpy_helper.to_array(t) for t in model.graph.initializer if t.name == f"{name}_scale"))


def test_every_pair_of_a_group_has_the_same_scale() -> None:
    model = with_ranges(concat(), {"x": 9.0, "r": 1.0, "s": 2.0, "p": 1.5}, shared=True)
    scales = {name: scale_of(model, name) for name in ("r", "s", "p")}
    assert scales == dict.fromkeys("rsp", pytest.approx(2 / 127))
