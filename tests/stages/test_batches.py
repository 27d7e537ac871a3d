"""What a model takes as a batch, and batches cut out of pieces."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stages import batches
from stages.batches import Input, model_inputs
from tests.stages.rewriting import parsed


def test_inputs_of_a_model_are_those_a_caller_feeds() -> None:
    model = parsed(
        """<ir_version: 3, opset_import: ["": 8]> g (float[n, 3, 4] x, int64[2] k, float[1] w) => (float[n] y) {
        y = Relu(x) }""",
        w=[1.0],
    )
    assert model_inputs(model) == [Input("x", "float32", ("n", 3, 4)), Input("k", "int64", (2,))]


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 2)), max_size=8), st.integers(1, 6))
def test_pieces_regroup_to_the_same_samples_and_split_only_where_shapes_differ(sizes, batch_size) -> None:
    pieces = [{"x": np.full((count, width), index)} for index, (count, width) in enumerate(sizes)]
    made = list(batches.regroup(iter(pieces), batch_size))
    assert [row.tolist() for each in made for row in each["x"]] == [row.tolist() for p in pieces for row in p["x"]]
    for one, other in pairwise(made):
        assert len(one["x"]) == batch_size or one["x"].shape[1:] != other["x"].shape[1:]
    assert all(1 <= batches.size(each) <= batch_size for each in made)


def test_a_model_of_a_fixed_batch_says_so() -> None:
    assert batches.fixed_batch([Input("k", "int64", ()), Input("x", "float32", (4, 3))]) == 4
    assert batches.fixed_batch([Input("x", "float32", ("n", 3))]) is None
