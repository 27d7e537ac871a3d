"""Placement: residual Adds read their shortcut quantized, and nothing else."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stages.quantization import place
from tests.stages.placement.placed import built, graph, reads
from tests.stages.rewriting import residual_block, rng

CONV = "Conv<pads=[1, 1, 1, 1]>"
KERNELS = {f"w{i}": (32, 32, 3, 3) for i in range(4)}

BRANCH_ENDS = {
    "Relu": "m = Relu(c)",
    "SiLU": "g = Sigmoid(c)\n m = Mul(c, g)",
    "hard-swish written out": "t = Add(c, three)\n g = Clip(t, zero, six)\n h = Mul(c, g)\n m = Div(h, six)",
    "GELU written out": "e = Div(c, six)\n f = Erf(e)\n g = Add(f, three)\n m = Mul(c, g)",
}
CONSTANTS = {"zero": np.float32(0), "three": np.float32(3), "six": np.float32(6)}


def test_exactly_one_input_of_a_residual_add_is_read_quantized() -> None:
    assert reads(residual_block(rng()), "Add") == [("shortcut", 1)]


def test_of_a_projection_the_shorter_branch_is_the_shortcut() -> None:
    assert reads(residual_block(rng(), projection=True), "Add") == [("shortcut", 1)]


def test_an_add_stays_in_float_where_its_convolution_does() -> None:
    assert place(residual_block(rng()), {"second"}).activations == ["x", "stem", "flat"]


def test_a_bias_that_is_added_later_does_not_hide_the_residual() -> None:
    model = graph("c = Conv(x, w)\n d = Add(b, c)\n y = Add(x, d)", w=(32, 32, 1, 1), b=(32, 1, 1))
    assert reads(model, "Add") == [("x", 0)]


@pytest.mark.parametrize("end", BRANCH_ENDS)
def test_the_branch_may_end_in_an_activation(end: str) -> None:
    model = graph(f"c = {CONV}(x, w0)\n {BRANCH_ENDS[end]}\n y = Add(x, m)", **KERNELS, **CONSTANTS)
    assert reads(model, "Add") == [("x", 0)]


def test_the_shortcut_of_a_silu_block_leaves_its_maker_in_int8_only(tmp_path: Path) -> None:
    body = f"""r = {CONV}(x, w0)
        s = Relu(r)
        c = {CONV}(s, w1)
        {BRANCH_ENDS["SiLU"]}
        y = Add(s, m)"""
    operations = built(graph(body, **KERNELS), tmp_path)
    before = next(each for each in operations if "Relu" in each.name)
    assert before.writes == ("int8",)
    # With the shortcut in float, the kernel would write the tensor twice.
    (tmp_path / "float").mkdir()
    before = next(
        each for each in built(graph(body, **KERNELS), tmp_path / "float", skip_ops=["Add"]) if "Relu" in each.name
    )
    assert before.writes == ("int8", "float")


def squeezed(end: str = "y = Add(c, m)") -> str:
    return f"""c = {CONV}(x, w0)
        p = GlobalAveragePool(c)
        q = Conv(p, v)
        s = HardSigmoid(q)
        m = Mul(c, s)
        {end}"""


def test_a_residual_squeeze_and_excitation_reads_its_shortcut_quantized_everywhere() -> None:
    model = graph(squeezed(), **KERNELS, v=(32, 32, 1, 1))
    assert reads(model, "Add") == [("c", 0)]
    assert reads(model, "Mul") == [("c", 0)]
    assert reads(model, "GlobalAveragePool") == [("c", 0)]


def test_a_squeeze_and_excitation_without_a_residual_stays_in_float() -> None:
    model = graph(squeezed("y = Relu(m)"), **KERNELS, v=(32, 32, 1, 1))
    assert place(model).activations == ["x", "p"]


def test_a_gated_shortcut_costs_no_kernel(tmp_path: Path) -> None:
    """With the Add alone reading codes TensorRT-RTX runs one kernel more (81 for 76 in an OCR detector)."""
    body = squeezed(f"a = Add(c, m)\n y = {CONV}(a, w1)")
    kernels = {}
    for name, skipped in {"all": [], "none": ["Add"]}.items():
        (tmp_path / name).mkdir()
        kernels[name] = len(built(graph(body, **KERNELS, v=(32, 32, 1, 1)), tmp_path / name, skip_ops=skipped))
    assert kernels["all"] <= kernels["none"]


@pytest.mark.parametrize(
    "body",
    [
        "c = Conv(x, w)\n r = Sigmoid(x)\n s = Conv(r, w)\n t = Relu(s)\n u = Relu(c)\n y = Add(t, u)",
        "c = MatMul(x, v)\n y = Add(x, c)",
        "c = Conv(x, w)\n p = MaxPool<kernel_shape=[1, 1]>(c)\n y = Add(x, p)",
    ],
    ids=["two branches", "a matrix product", "a pool between"],
)
def test_other_adds_stay_in_float(body: str) -> None:
    assert reads(graph(body, w=(32, 32, 1, 1), v=(16, 16)), "Add") == []


def resnet(blocks: int) -> str:
    """Bottlenecks as in ResNet-50: each fourth begins with a projection."""
    lines = ["t0 = Relu(x)"]
    for i in range(blocks):
        shortcut = f"s{i} = Conv(t{i}, s)" if i % 4 == 0 else f"s{i} = Identity(t{i})"
        lines += [
            f"a{i} = Conv(t{i}, k)\n b{i} = Relu(a{i})\n c{i} = Conv<pads=[1,1,1,1]>(b{i}, w)\n d{i} = Relu(c{i})",
            f"e{i} = Conv(d{i}, k)\n {shortcut}\n f{i} = Add(e{i}, s{i})\n t{i + 1} = Relu(f{i})",
        ]
    return "\n".join([*lines, f"y = Identity(t{blocks})"])


def test_every_residual_of_a_resnet_is_found_and_read_in_int8(tmp_path: Path) -> None:
    model = graph(resnet(16), k=(32, 32, 1, 1), s=(32, 32, 1, 1), w=(32, 32, 3, 3))
    assert [position for _, position in reads(model, "Add")] == [1] * 16
    operations = built(model, tmp_path)
    convolutions = [each for each in operations if each.kind == "corrltn"]
    assert len(convolutions) == 16 * 3 + 4
    assert {each.reads[:2] for each in convolutions} == {("int8", "int8")}
    # Each Add is in the kernel behind its convolution. 12 read the codes of a block's input; of the 4 projections the
    # codes are made in that kernel ("…RounCastCast…Add…"), from two convolutions' sums.
    adds = [each for each in operations if each.kind == "function" and "Add" in each.name]
    assert sum("int8" in each.reads for each in adds) == 12
    assert sum("int8" not in each.reads and "Roun" in each.name.partition("Add")[0] for each in adds) == 4
