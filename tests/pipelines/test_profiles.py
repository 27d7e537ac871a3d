"""Profiles: what a model's config promises about shapes, held against the model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conf.compose import compose
from conf.errors import ConfigError
from conf.schema import Model, Profile
from pipelines.profiles import dims, named, resolve, spell

IMAGE = {"name": "x", "dtype": "float32", "shape": ["batch", 3, "side", "side"]}
MASK = {"name": "mask", "dtype": "bool", "shape": ["batch"]}
FIXED = {"name": "scale", "dtype": "float32", "shape": [1, 4]}
ANONYMOUS = {"name": "x", "dtype": "float32", "shape": [None, 3]}


def test_named_dims_give_full_shapes_for_every_dynamic_input_and_none_for_fixed_ones():
    model = Model(dims={"batch": [1, 8, 32], "side": 224})
    assert resolve(model, [IMAGE, MASK, FIXED]) == {
        "default": {
            "mask": {"min": [1], "opt": [8], "max": [32]},
            "x": {"min": [1, 3, 224, 224], "opt": [8, 3, 224, 224], "max": [32, 3, 224, 224]},
        }
    }


def test_a_model_without_dynamic_inputs_needs_no_profile():
    assert resolve(Model(), [FIXED]) == {}


def test_several_profiles_are_kept_by_name_and_dims_fill_what_they_leave_out():
    own = Profile([1, 3, 32, 32], [2, 3, 32, 32], [4, 3, 32, 32])
    model = Model(profiles={"small": {"x": own}, "large": {}}, dims={"batch": [1, 2, 4], "side": [32, 64, 128]})
    found = resolve(model, [IMAGE, MASK])
    assert found["small"]["x"]["max"] == [4, 3, 32, 32]
    assert found["small"]["mask"]["max"] == [4]
    assert found["large"]["x"]["max"] == [4, 3, 128, 128]


@given(st.tuples(*[st.integers(-1, 9)] * 3))
def test_sizes_are_taken_exactly_when_they_are_positive_and_in_order(sizes):
    low, opt, high = sizes
    if 1 <= low <= opt <= high:
        assert resolve(Model(dims={"batch": list(sizes)}), [MASK])["default"]["mask"]["opt"] == [opt]
    else:
        with pytest.raises(ConfigError, match="not in order"):
            resolve(Model(dims={"batch": list(sizes)}), [MASK])


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (Model(), [IMAGE], ["x (batch, 3, side, side)"]),
        (Model(dims={"batch": [1, 2, 4]}), [IMAGE], ["x (batch, 3, side, side)"]),
        (Model(), [ANONYMOUS], ["x (?, 3)"]),
        (Model(dims={"bach": 1}), [MASK], ["bach"]),
        (Model(dims={"batch": [1, 2]}), [MASK], ["batch", "[1, 2]"]),
        (Model(dims={"batch": "many"}), [MASK], ["batch"]),
        (Model(profiles={"default": {"y": Profile([1], [1], [1])}}), [MASK], ["y", "no input"]),
        (Model(profiles={"default": {"mask": Profile([1, 1], [1], [1])}}), [MASK], ["2 dims"]),
        (Model(profiles={"default": {"scale": Profile([1, 4], [1, 4], [2, 4])}}), [FIXED], ["fixes it at 1"]),
    ],
)
def test_what_does_not_fit_the_model_is_refused(model, inputs, words):
    with pytest.raises(ConfigError) as refused:
        resolve(model, inputs)
    assert refused.value.next_step
    for word in words:
        assert word in refused.value.what


SIZES = {"name": "sizes", "dtype": "int64", "shape": [4]}
ROWS = {"name": "rows", "dtype": "int32", "shape": []}


def test_a_shape_tensor_gets_the_values_that_it_holds_in_every_profile():
    small = {"sizes": Profile([1, 3, 8, 8], [1, 3, 16, 16], [1, 3, 32, 32], True), "rows": Profile([1], [2], [3], True)}
    large = {"sizes": Profile([1, 3, 64, 64], [1, 3, 64, 64], [1, 3, 64, 64], True), "rows": small["rows"]}
    found = resolve(Model(profiles={"small": small, "large": large}, dims={"batch": [1, 2, 4]}), [SIZES, ROWS, MASK])
    assert found["small"]["sizes"] == {
        "min": [1, 3, 8, 8], "opt": [1, 3, 16, 16], "max": [1, 3, 32, 32], "values": True,
    }  # fmt: skip
    assert found["large"]["rows"] == {"min": [1], "opt": [2], "max": [3], "values": True}
    assert found["large"]["mask"] == {"min": [1], "opt": [2], "max": [4]}


@given(st.tuples(*[st.integers(-3, 9)] * 3))
def test_values_are_taken_exactly_when_they_are_in_order_and_may_be_negative(ends):
    low, opt, high = ends
    model = Model(profiles={"default": {"rows": Profile([low], [opt], [high], True)}})
    if low <= opt <= high:
        assert resolve(model, [ROWS])["default"]["rows"]["min"] == [low]
    else:
        with pytest.raises(ConfigError, match="not in order"):
            resolve(model, [ROWS])


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        ({**SIZES, "dtype": "float32"}, "'sizes' is float32 (4), and a shape tensor is int32 or int64, of rank 0 or 1"),
        ({**SIZES, "shape": [2, 2]}, "'sizes' is int64 (2, 2), and a shape tensor is"),
        ({**SIZES, "shape": ["n"]}, "'sizes' is int64 (n), and a shape tensor is"),
        ({**SIZES, "shape": [3]}, "default.sizes.min: [1, 3, 8, 8] has 4 values, the input holds 3: int64 (3)"),
    ],
)
def test_values_of_what_can_be_no_shape_tensor_are_refused(tensor, words):
    model = Model(profiles={"default": {"sizes": Profile(*[[1, 3, 8, 8]] * 3, True)}})
    with pytest.raises(ConfigError) as refused:
        resolve(model, [tensor])
    assert words in refused.value.what and refused.value.next_step


def test_a_profile_without_the_values_that_another_gives_is_refused_by_name():
    model = Model(profiles={"small": {"rows": Profile([1], [2], [3], True)}, "large": {}})
    with pytest.raises(ConfigError, match=r"model.profiles.large: no values of 'rows'") as refused:
        resolve(model, [ROWS])
    assert "model.profiles.large.rows={min:" in refused.value.next_step


def test_an_input_of_unknown_rank_is_refused_by_name():
    with pytest.raises(ConfigError, match="how many dims these inputs have: x"):
        resolve(Model(), [{"name": "x", "dtype": "float32", "shape": None}, FIXED])


def test_the_suggestion_names_every_dynamic_input():
    with pytest.raises(ConfigError) as refused:
        resolve(Model(), [IMAGE, MASK])
    assert "model.dims.batch=[1,8,32] model.dims.side=[1,8,32]" in refused.value.next_step
    assert "model.profiles.default.mask={min:[1],opt:[8],max:[32]}" in refused.value.next_step


def test_shapes_are_spelled_for_people():
    assert spell(["batch", 3, None]) == "(batch, 3, ?)"


@pytest.mark.parametrize("name", ["x", "input.1", "input:0", "x[0]", "a b", "serving_default/x:0", "x=1,y"])
def test_the_suggested_override_can_be_typed_whatever_the_input_is_called(name):
    tensor = {"name": name, "dtype": "float32", "shape": [None, 3]}
    with pytest.raises(ConfigError) as refused:
        resolve(Model(), [tensor])
    override = refused.value.next_step.removeprefix("give their shapes: ").strip("'")
    config = compose(["model=onnx", "model.path=net.onnx", override])
    assert resolve(config.model, [tensor])["default"][name]["opt"] == [8, 3]


X = {"name": "x", "shape": ["batch", 3, None]}
Y = {"name": "y", "shape": ["batch", "length"]}


def ranges(inputs, **profiles):
    chosen = {
        name: {i: Profile(*([size[which] if isinstance(size, tuple) else size for size in shape] for which in range(3)))
               for i, shape in shapes.items()}
        for name, shapes in profiles.items()
    }  # fmt: skip
    declared = named(inputs)
    return dims(declared, resolve(Model(profiles=chosen), declared))


def test_dims_vary_as_far_as_all_profiles_together_say():
    found = ranges(
        [X, Y],
        default={"x": [(1, 4, 8), 3, 7], "y": [(1, 4, 8), (1, 5, 9)]},
        large={"x": [(2, 16, 32), 3, (6, 7, 8)], "y": [(2, 16, 32), 9]},
    )
    assert found == {"batch": [1, 4, 32], "x_2": [6, 7, 8], "length": [1, 5, 9]}


def test_the_short_form_gives_the_same_dims():
    assert dims([Y], resolve(Model(dims={"batch": [1, 8, 32], "length": 7}), [Y])) == {
        "batch": [1, 8, 32],
        "length": [7, 7, 7],
    }


def test_one_dim_with_two_ranges_in_one_profile_is_refused():
    with pytest.raises(ConfigError, match=r"default: dim 'batch' is \[1, 4, 8\] in one input, \[1, 4, 9\] in another"):
        ranges([X, Y], default={"x": [(1, 4, 8), 3, 7], "y": [(1, 4, 9), 5]})
