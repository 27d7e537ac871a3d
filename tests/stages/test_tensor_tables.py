"""Tensors held against one another by name, type and shape."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stages.tensor_tables import MOST_LISTED, Difference, Spec, compare, counted, listed

SPECS = st.builds(
    Spec,
    st.sampled_from(["float32", "float16", "int64"]),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
)
TABLES = st.dictionaries(st.sampled_from("abcdef"), SPECS)
A, B = Spec("float32", (2, 3)), Spec("float16", (2, 3))


@given(TABLES, TABLES)
def test_what_is_not_told_is_the_same_on_both_sides(want, got):
    told = {each.name: each for each in compare(want, got)}
    for name in want.keys() | got.keys():
        assert (name in told) == (want.get(name) != got.get(name))
    for each in told.values():
        assert (each.want, each.got) == (want.get(each.name), got.get(each.name))


@given(TABLES, TABLES, st.sets(st.sampled_from("abcdef")), st.sets(st.sampled_from("abcdef")))
def test_what_may_be_lacking_or_added_is_told_only_where_it_differs(want, got, may_lack, may_add):
    told = compare(want, got, may_lack=may_lack, may_add=may_add)
    left_out = [each for each in compare(want, got) if each not in told]
    for each in left_out:
        assert each.name in (may_lack if each.kind == "missing" else may_add)
        assert each.kind != "different"
    for each in told:
        assert each.kind == "different" or each.name not in (may_lack if each.kind == "missing" else may_add)


def test_missing_comes_first_then_extra_then_different_and_each_by_name():
    told = compare({"d": A, "z": A, "m": A}, {"d": B, "x": A, "b": A})
    assert [(each.kind, each.name) for each in told] == [
        ("missing", "m"), ("missing", "z"), ("extra", "b"), ("extra", "x"), ("different", "d"),
    ]  # fmt: skip
    assert counted(told) == "2 missing, 2 extra, 1 different"
    assert listed(told) == (
        "missing: m float32 [2, 3], z float32 [2, 3]; extra: b float32 [2, 3], x float32 [2, 3]; "
        "different: d float16 [2, 3] instead of float32 [2, 3]"
    )


def test_of_many_the_first_are_told_and_the_others_counted():
    told = compare({f"w{number:03}": A for number in range(MOST_LISTED + 7)}, {})
    text = listed(told)
    assert text.endswith("; and 7 more")
    assert f"w{MOST_LISTED - 1:03}" in text
    assert f"w{MOST_LISTED:03}" not in text
    assert counted(told) == f"{MOST_LISTED + 7} missing"
    assert not listed(told[:MOST_LISTED]).endswith("more")


def test_a_difference_as_json_has_both_sides():
    assert Difference("w", A, None).document() == {
        "name": "w", "kind": "missing", "want": {"dtype": "float32", "shape": [2, 3]}, "got": None,
    }  # fmt: skip
    assert Difference("w", None, B).document()["kind"] == "extra"
    assert Difference("w", A, B).document()["got"] == {"dtype": "float16", "shape": [2, 3]}
