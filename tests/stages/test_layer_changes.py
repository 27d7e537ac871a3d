"""What the layers of two plans differ in."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from stages.layer_changes import Fusion, Product, changes
from stages.layer_report import Layer, ProfileLayers


def layer(nodes: str, precision: str = "FP16", operators: str = "", product: bool = True, name: str = "") -> Layer:
    """`layer("conv1 relu1")`"""
    words, kinds = nodes.split(), operators.split()
    told = name or (words[0] if words else "copy")
    return Layer(told, "corrltn", product, precision, ("half",), (), ("half",), 0, tuple(words), tuple(kinds))


def plan(*layers: Layer) -> ProfileLayers:
    return ProfileLayers("default", None, layers, {})


def test_layers_with_the_same_nodes_are_the_same_in_whatever_order() -> None:
    found = changes(plan(layer("a b"), layer("c")), plan(layer("c"), layer("b a", name="a")))
    assert (found.same, found.retyped, found.products, found.fusions) == (2, 0, [], [])


def test_a_layer_in_another_type_is_retyped_and_its_product_is_named() -> None:
    found = changes(plan(layer("conv relu", "FP16", "Conv Relu")), plan(layer("conv relu", "INT8", "Conv Relu")))
    assert (found.same, found.retyped, found.fusions) == (0, 1, [])
    assert found.products == [Product("conv", "FP16", "INT8")]


def test_what_was_one_layer_and_is_two_is_one_group() -> None:
    found = changes(plan(layer("conv relu"), layer("pool")), plan(layer("conv"), layer("relu"), layer("pool")))
    assert found.same == 1
    assert found.fusions == [Fusion(["conv", "relu"], ["conv"], ["conv", "relu"])]


def test_conversions_are_no_difference() -> None:
    found = changes(
        plan(layer("conv", "FP16", "Conv")),
        plan(layer("x_q conv x_dq", "FP16", "QuantizeLinear Conv DequantizeLinear")),
    )
    assert (found.same, found.fusions) == (1, [])


def test_a_layer_without_nodes_is_known_by_its_name() -> None:
    found = changes(plan(layer("", name="copy")), plan(layer("", name="move")))
    assert found.fusions == [Fusion([], ["copy"], []), Fusion([], [], ["move"])]


layers_ = st.lists(
    st.builds(
        lambda nodes, precision, name: layer(" ".join(nodes), precision, name=name),
        st.lists(st.sampled_from("abcdef"), max_size=3, unique=True),
        st.sampled_from(["FP16", "INT8"]),
        st.sampled_from(["k1", "k2"]),
    ),
    max_size=6,
)


@given(layers_)
def test_a_plan_has_nothing_otherwise_than_itself(layers: Sequence[Layer]) -> None:
    found = changes(plan(*layers), plan(*layers))
    assert (found.same, found.retyped, found.products, found.fusions) == (len(layers), 0, [], [])


@given(layers_, layers_)
def test_each_layer_of_both_is_counted_once(a: Sequence[Layer], b: Sequence[Layer]) -> None:
    found = changes(plan(*a), plan(*b))
    common = found.same + found.retyped
    assert common + sum(len(each.a) for each in found.fusions) == len(a)
    assert common + sum(len(each.b) for each in found.fusions) == len(b)
