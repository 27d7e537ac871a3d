"""Whether two models compute the same, and who is to blame where surgery changed it."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np
import onnx
import pytest

from stages.agreement import DisagreementError, NotComparedError, compare, distance
from stages.profiles import profiles_of
from stages.stage import Job, Metrics, StageError
from stages.surgery import STAGE, SurgeryConfig
from tests.stages.rewriting import outputs, parsed, saved

NET = """<ir_version: 10, opset_import: ["": 20]> g (float[n, 4] x) => (float[n, 4] y) {
    a = Relu(x)
    y = Mul(a, k) }"""


def net(scale: float = 2.0) -> onnx.ModelProto:
    return parsed(NET, k=[scale])


def operated(
    model: onnx.ModelProto, tmp_path: Path, facts: Any = None, **config: Any
) -> tuple[onnx.ModelProto, Metrics]:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    inputs = {"onnx": [saved(model, tmp_path / "in.onnx")]}
    metrics = STAGE.run(Job(SurgeryConfig(**config), inputs, facts or {}, out))
    return onnx.load(str(out / "model.onnx")), metrics


def test_both_run_at_min_opt_and_max_of_every_profile() -> None:
    ranges = {"x": {"min": [1, 4], "opt": [2, 4], "max": [8, 4]}}
    other = {"x": {"min": [16, 4], "opt": [16, 4], "max": [16, 4]}}
    found = profiles_of({"default": ranges, "other": other})
    assert compare(net(), net(2.0001), found, 1e-3, {}).runs == 4


def test_a_difference_is_told_with_the_output_the_shapes_and_how_much() -> None:
    with pytest.raises(DisagreementError, match=r"x \(1, 4\) the output 'y' differs by .* of its largest value"):
        compare(net(), net(2.1), [], 1e-3, {})


def test_a_difference_that_shows_only_at_the_largest_shape_is_found() -> None:
    text = """<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (float[m] y) {{
        size = Size(x)
        edge = Constant<value_int = {edge}>()
        small = Less(size, edge)
        y = If (small) < then_branch = t () => (float[m] p) {{ p = Relu(x) }},
            else_branch = e () => (float[m] q) {{ q = Neg(x) }} > }}"""
    found = profiles_of({"default": {"x": {"min": [1], "opt": [2], "max": [64]}}})
    with pytest.raises(DisagreementError, match=r"x \(64,\)"):
        compare(parsed(text.format(edge=65)), parsed(text.format(edge=64)), found, 1e-3, {})


@pytest.mark.parametrize(
    ("one", "other", "agrees"),
    [
        (np.float32([1, np.nan, np.inf]), np.float32([1, np.nan, np.inf]), True),
        (np.float32([1, np.nan]), np.float32([1, 2]), False),
        (np.float32([1, np.inf]), np.float32([1, -np.inf]), False),
        (np.float32([100, 0.01]), np.float32([100, 0.02]), True),
        (np.float32([1e-7]), np.float32([2e-7]), True),
        (np.float16([1]), np.float16([1.003]), True),
        (np.int64([1, 2]), np.int64([1, 3]), False),
        (np.array(["a", "b"], object), np.array(["a", "b"], object), True),
        (np.array(["a"], object), np.array(["b"], object), False),
        (np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32), True),
        (np.zeros((0, 3), np.float32), np.zeros((0, 4), np.float32), False),
        ([np.float32([1]), np.float32([2])], [np.float32([1]), np.float32([2])], True),
        ([np.float32([1])], [np.float32([1]), np.float32([2])], False),
        (None, None, True),
        (None, np.float32([1]), False),
    ],
)
def test_what_counts_as_the_same(one: Any, other: Any, agrees: bool) -> None:
    assert isinstance(distance(one, other, 1e-3), float) is agrees


def test_names_and_types_of_inputs_and_outputs_may_have_changed() -> None:
    after = parsed(
        """<ir_version: 10, opset_import: ["": 20]> g (float16[n, 4] q) => (float[n, 4] z) {
        h = Cast<to = 1>(q)
        a = Relu(h)
        z = Mul(a, k) }""",
        k=[2.0],
    )
    assert compare(net(), after, [], 1e-3, {"x": "q", "y": "z"}).runs == 3


def test_random_numbers_and_plugins_are_not_compared() -> None:
    random = parsed("""<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y) {
        y = RandomNormalLike(x) }""")
    with pytest.raises(NotComparedError, match="RandomNormalLike gives other numbers"):
        compare(random, random, [], 1e-3, {})
    plugin = parsed("""<ir_version: 10, opset_import: ["": 20, "acme": 1]> g (float[2] x) => (float[2] y) {
        y = acme.Mine(x) }""")
    with pytest.raises(NotComparedError, match="cannot load"):
        compare(plugin, plugin, [], 1e-3, {})


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_passes.py").write_text(
        dedent("""
        import numpy as np

        def label(graph, prefix="mine"):
            for node in graph.nodes:
                node.name = f"{prefix}_{node.op}"

        def scale(graph, by):
            constant = graph.tensors()["k"]
            constant.values = constant.values * np.float32(by)

        def fail(graph):
            raise ValueError("no such layer")

        def nothing(graph):
            return 3
        """)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "my_passes", raising=False)


def test_the_users_own_pass_gets_its_arguments(own: None, tmp_path: Path) -> None:
    after, metrics = operated(net(), tmp_path, passes=["adopt", {"pass": "my_passes.label", "prefix": "p"}])
    assert [node.name for node in after.graph.node] == ["p_Relu", "p_Mul"]
    assert metrics["comparisons"][0]["compared"] is True  # type: ignore[index,call-overload]


def test_a_pass_that_changes_results_fails_and_is_named_among_many(own: None, tmp_path: Path) -> None:
    guilty = {"pass": "my_passes.scale", "by": 1.5}
    with pytest.raises(StageError, match=r"pass my_passes\.scale changed what the model computes"):
        operated(net(), tmp_path, passes=["adopt", "my_passes.label", guilty, "drop_dead", "infer_shapes"])


def test_a_pass_that_changes_results_on_purpose_says_so_and_what_follows_is_still_compared(
    own: None, tmp_path: Path
) -> None:
    meant = {"pass": "my_passes.scale", "by": 1.5, "changes_results": True}
    _, metrics = operated(net(), tmp_path, passes=["adopt", meant, "drop_dead"])
    assert [each["passes"] for each in metrics["comparisons"]] == [["adopt"], ["drop_dead"]]  # type: ignore
    with pytest.raises(StageError, match=r"pass my_passes\.scale changed"):
        operated(net(), tmp_path, passes=["adopt", meant, {"pass": "my_passes.scale", "by": 2.0}])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my_passes.fail", "raised ValueError: no such layer"),
        ("my_passes.nothing", "returned int"),
        ("my_passes.absent", "cannot be imported"),
        ("my_passes.scale", "raised TypeError"),
    ],
)
def test_a_pass_of_the_user_that_fails_is_told_by_its_name(own: None, tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(StageError, match=words) as caught:
        operated(net(), tmp_path, passes=[name])
    assert name in caught.value.what


def test_every_pass_says_how_many_nodes_and_bytes_it_left(tmp_path: Path) -> None:
    model = parsed(
        NET.replace("a =", "d = Neg(x)\n i = Identity(x)\n a =").replace("Relu(x)", "Relu(i)"), k=[2.0], u=[1.0]
    )
    _, metrics = operated(model, tmp_path)
    reports = metrics["passes"]
    assert [each["pass"] for each in reports] == [entry["pass"] for entry in SurgeryConfig().passes]  # type: ignore
    for one, other in pairwise(reports):  # type: ignore[arg-type]
        assert (one["nodes_after"], one["bytes_after"]) == (other["nodes_before"], other["bytes_before"])  # type: ignore
    assert (metrics["nodes_before"], metrics["nodes_after"]) == (4, 2)


def test_what_is_not_compared_says_why(tmp_path: Path) -> None:
    assert operated(net(), tmp_path, tolerance=None)[1]["comparisons"][0]["reason"] == "tolerance is null"  # type: ignore
    reason = operated(net(), tmp_path, compare_max_bytes=3)[1]["comparisons"][0]["reason"]  # type: ignore
    assert reason == "it has 4 bytes of weights, above 3"


UNTOUCHED = {
    "sequence": """<ir_version: 10, opset_import: ["": 20]> g (float[n] x) => (seq(float[m]) y) {
        y = SequenceConstruct(x, x) }""",
    "loop": """<ir_version: 10, opset_import: ["": 20]> g (float[2] x) => (float[2] y, float[t, 2] s) {
        five = Constant<value_int = 5>()
        go = Constant<value_int = 1>()
        c = Cast<to = 9>(go)
        y, s = Loop(five, c, x) < body = b (int64 i, bool k, float[2] v) => (bool k2, float[2] w, float[2] o) {
            k2 = Identity(k)
            w = Add(v, x)
            o = Identity(w) } > }""",
    "scan": """<ir_version: 10, opset_import: ["": 20]> g (float[2] x, float[n, 2] xs) => (float[2] y, float[n, 2] s) {
        y, s = Scan (x, xs) < num_scan_inputs = 1, body = b (float[2] v, float[2] e) => (float[2] w, float[2] o) {
            w = Add(v, e)
            o = Identity(w) } > }""",
    "nothing of anything": """<ir_version: 10, opset_import: ["": 20]> g (float[0, 3] x) => (float[0, 3] y) {
        e = ConstantOfShape(shape)
        y = Add(x, e) }""",
}


@pytest.mark.parametrize("kind", UNTOUCHED)
def test_subgraphs_sequences_and_empty_tensors_go_through(tmp_path: Path, kind: str) -> None:
    weights = {"shape": np.array([0, 3], np.int64)} if "shape" in UNTOUCHED[kind] else {}
    model = parsed(UNTOUCHED[kind], **weights)
    after, metrics = operated(model, tmp_path)
    assert metrics["comparisons"][0]["compared"] is True, metrics["comparisons"]  # type: ignore[index,call-overload]
    shapes = {v.name: [d.dim_value or 2 for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    shapes = {name: [0, 3] if kind.startswith("nothing") else shape for name, shape in shapes.items()}
    feed = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    for one, other in zip(outputs(model, feed), outputs(after, feed), strict=True):
        np.testing.assert_equal(one, other)


def test_strings_go_through(tmp_path: Path) -> None:
    model = parsed("""<ir_version: 10, opset_import: ["": 20]> g (string[2] x) => (string[2] y) {
        i = Identity(x)
        y = StringConcat(i, i) }""")
    after, metrics = operated(model, tmp_path)
    assert "nothing can be generated" in metrics["comparisons"][0]["reason"]  # type: ignore[index,call-overload,operator]
    assert outputs(after, {"x": np.array(["a", "b"], object)})[0].tolist() == ["aa", "bb"]


def test_passes_before_and_after_those_of_the_flow(tmp_path: Path) -> None:
    first, then = {"pass": "set_dims", "dims": {"n": 2}}, {"pass": "mark_outputs", "tensors": ["a"]}
    after, metrics = operated(net(), tmp_path, first=[first], then=[then])
    assert [value.name for value in after.graph.output] == ["y", "a"]
    assert after.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
    assert metrics["comparisons"][0]["runs"] == 1  # type: ignore[index,call-overload]


TWO_RATES = """<ir_version: 8, opset_import: ["": 16]> g (float[n] x, int64 sr) => (float[m] y) {
    high = Constant<value_int = 16000>()
    is_high = Equal(sr, high)
    y = If (is_high) <
        then_branch = t () => (float[i] p) { p = MatMul(x, w16) },
        else_branch = e () => (float[j] q) {
            low = Constant<value_int = 8000>()
            is_low = Less(sr, low)
            q = If (is_low) <
                then_branch = tt () => (float[k] r) { r = MatMul(x, w8) },
                else_branch = ee () => (float[l] s) { s = MatMul(x, w8) } > } > }"""


def two_rates() -> onnx.ModelProto:
    return parsed(TWO_RATES, w16=np.ones((16, 3), np.float32), w8=np.ones((8, 3), np.float32))


def test_dims_with_which_the_model_as_it_came_cannot_be_run_either_are_not_compared(tmp_path: Path) -> None:
    """A voice-activity model: the rate that is drawn takes the branch for 8 kHz, which cannot have 16 samples."""
    _, metrics = operated(two_rates(), tmp_path, first=[{"pass": "set_dims", "dims": {"n": 16}}])
    comparison: Any = metrics["comparisons"][0]  # type: ignore[index,call-overload]
    assert comparison["compared"] is False
    assert "it cannot be run" in comparison["reason"]


def test_dims_that_make_a_model_that_ran_one_that_cannot_be_loaded_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StageError, match=r"pass set_dims changed .* afterwards ONNX Runtime cannot load it"):
        operated(two_rates(), tmp_path, first=[{"pass": "set_dims", "dims": {"n": 8}}])


def test_a_model_that_only_afterwards_cannot_be_loaded_is_a_disagreement() -> None:
    broken = two_rates()
    broken.graph.node[0].op_type = "NoSuchOperator"
    found = profiles_of({"default": {"x": {"min": [8], "opt": [8], "max": [8]}}})
    with pytest.raises(DisagreementError, match="afterwards ONNX Runtime cannot load it"):
        compare(two_rates(), broken, found, 1e-3, {})
