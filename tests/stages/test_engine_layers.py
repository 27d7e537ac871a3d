"""How the inspector's words are read, and the profiler's times given to layers; the calls: test_layers_contract.py."""

from __future__ import annotations

import json

import pytest

from stages.engine_layers import told_layers, with_times
from stages.layer_report import Layer, ProfileLayers
from stages.stage import StageError


def told(**fields: object) -> Layer:
    (found,) = told_layers(json.dumps({"Layers": [{"Name": "n", "LayerType": "CaskConvolution", **fields}]}))
    return found


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("Half", "half"),
        ("Float", "float"),
        ("BFloat16", "bf16"),
        ("FP8", "fp8_e4m3"),
        ("Int8", "int8"),
        ("Row major linear FP32", "float"),
        ("Row major linear FP16 format", "half"),
        ("Thirty-two wide channel vectorized row major Int8 format.", "int8"),
        ("Channel major BF16 format where channel % 8 == 0", "bf16"),
        ("Row major linear UInt8", "uint8"),
        ("Row major linear Int64 format", "int64"),
        ("Row major linear BOOL", "bool"),
        ("N/A due to dynamic shapes", "?"),
    ],
)
def test_a_type_is_read_out_of_the_words_of_any_version(words: str, kind: str) -> None:
    assert told(Inputs=[{"Name": "x", "Format/Datatype": words}]).reads == (kind,)


@pytest.mark.parametrize(
    ("reads", "weights", "precision"),
    [
        (["Int8"], "Int8", "INT8"),
        (["Half"], "Half", "FP16"),
        (["Half"], "Int8", "FP16"),
        (["Int8", "Half"], "Int8", "FP16"),
        (["FP8"], "FP8", "FP8"),
        (["Int8", "Int8"], None, "INT8"),
    ],
)
def test_a_product_computes_in_codes_only_where_both_factors_are(
    reads: list[str], weights: str | None, precision: str
) -> None:
    inputs = [{"Name": str(number), "Format/Datatype": each} for number, each in enumerate(reads)]
    held = {"Weights": {"Type": weights, "Count": 9}} if weights else {}
    assert told(Inputs=inputs, Outputs=[], **held).precision == precision


def test_weights_have_the_bytes_of_their_type() -> None:
    sizes = {kind: told(Weights={"Type": kind, "Count": 10}).weight_bytes for kind in ("Float", "Half", "Int8", "Int4")}
    assert sizes == {"Float": 40, "Half": 20, "Int8": 10, "Int4": 5}


def test_nodes_are_those_of_the_metadata_with_brackets_in_their_names_and_all() -> None:
    assert told(Metadata="[ONNX Layer: a[0]]\x1f[ONNX Layer: b]").nodes == ("a[0]", "b")
    assert told(Metadata="").nodes == ()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"Layers": [3]}', '{"Layers": [{"Inputs": []}]}', '{"Layers": 1}'])
def test_what_is_no_list_of_layers_is_refused(text: str) -> None:
    with pytest.raises(StageError, match="says something else than layers"):
        told_layers(text)


def test_layers_of_one_name_share_the_time_that_the_profiler_tells_of_it() -> None:
    made = [Layer(name, "k", False, "FP16", (), (), (), 0, ()) for name in ("a", "b", "a", "c")]
    read, missed = with_times(ProfileLayers("default", None, made, {}), {"a": 3.0, "b": 1.0, "z": 9.0})
    assert missed is None
    assert [layer.ms for layer in read.layers] == [1.5, 1.0, 1.5, None]
