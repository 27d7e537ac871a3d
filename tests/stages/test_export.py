"""The stage `export`: any model becomes one checked ONNX file, and a torch module's export is held against it."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from stages import onnx_file
from stages.export import STAGE, ExportConfig
from stages.stage import Job, Metrics, StageError

ROOT = Path(__file__).parents[2]
DIGITS = ROOT / "conf" / "data" / "digits" / "digits.onnx"
INF, NAN = float("inf"), float("nan")


def export(out: Path, onnx_path: Path, **config: Any) -> Metrics:
    out.mkdir(exist_ok=True)
    return STAGE.run(Job(ExportConfig(**config), {"onnx": [onnx_path]}, {"source": {"kind": "onnx"}}, out))


def model_of(
    nodes: Sequence[onnx.NodeProto],
    initializers: Sequence[TensorProto] = (),
    opsets: Mapping[str, int] = {"": 20},
) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph(nodes, "graph", [x], [y], initializer=initializers)
    imports = [helper.make_opsetid(domain, version) for domain, version in opsets.items()]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def relu(source: str = "x", result: str = "y", **attributes: Any) -> onnx.NodeProto:
    return helper.make_node("Relu", [source], [result], name="relu", **attributes)


def export_model(model: onnx.ModelProto, directory: Path, **config: Any) -> tuple[Metrics, onnx.ModelProto]:
    onnx.save(model, str(directory / "net.onnx"))
    metrics = export(directory / "out", directory / "net.onnx", **config)
    return metrics, onnx.load(str(directory / "out" / "model.onnx"))


def refused(model: onnx.ModelProto, directory: Path, **config: Any) -> StageError:
    with pytest.raises(StageError) as caught:
        export_model(model, directory, **config)
    assert not (directory / "out" / "model.onnx").exists()
    assert "\n" not in caught.value.what
    assert caught.value.next_step
    return caught.value


# --- from an ONNX file ------------------------------------------------------------------------------------------------


def test_a_good_file_comes_out_as_it_went_in(tmp_path: Path) -> None:
    metrics = export(tmp_path / "out", DIGITS)
    assert (tmp_path / "out" / "model.onnx").read_bytes() == DIGITS.read_bytes()
    assert metrics == {
        "opset": 20,
        "nodes": 55,
        "initializer_bytes": metrics["initializer_bytes"],
        "ir_version": 10,
        "unregistered_operators": [],
    }
    assert 200_000 < int(str(metrics["initializer_bytes"])) < DIGITS.stat().st_size


def test_external_data_moves_into_the_one_file(tmp_path: Path) -> None:
    model = onnx.load(str(DIGITS))
    onnx.save(model, str(tmp_path / "net.onnx"), save_as_external_data=True, location="net.data", size_threshold=0)
    export(tmp_path / "out", tmp_path / "net.onnx")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]
    assert (tmp_path / "out" / "model.onnx").read_bytes() == DIGITS.read_bytes()


def test_no_onnx_file_at_all_is_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(StageError, match="no ONNX file is given"):
        STAGE.run(Job(ExportConfig(), {}, {"source": {"kind": "onnx"}}, tmp_path))


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([relu(source="nowhere")], "node 'relu' (Relu): Nodes in a graph must be topologically sorted"),
        ([relu(foo=1)], "node 'relu' (Relu): Unrecognized attribute: foo"),
        ([relu(), relu()], "'y' has been used as output names multiple times"),
        ([relu(result="z")], "Graph output 'y' is not an output of any node"),
        ([helper.make_node("Relu", ["x"], [], name="bare"), relu()], "node 'bare' (Relu) has no outputs"),
        ([helper.make_node("Foo", ["x"], ["z"]), relu(source="gone")], "node 'relu' (Relu): Nodes in a graph"),
    ],
)
def test_a_broken_structure_is_refused_with_the_node_it_is_in(
    nodes: list[onnx.NodeProto], said: str, tmp_path: Path
) -> None:
    assert said in refused(model_of(nodes), tmp_path).what


@pytest.mark.parametrize(
    ("domain", "opsets", "name"),
    [
        ("", {"": 20}, "EfficientNMS_TRT"),
        ("mine", {"": 20, "mine": 1}, "mine::EfficientNMS_TRT"),
        ("mine", {"": 20}, "mine::EfficientNMS_TRT"),
    ],
)
def test_a_plugin_passes_in_whatever_domain_it_stands(
    domain: str, opsets: dict[str, int], name: str, tmp_path: Path
) -> None:
    model = model_of([helper.make_node("EfficientNMS_TRT", ["x"], ["y"], name="nms", domain=domain)], opsets=opsets)
    metrics, written = export_model(model, tmp_path)
    assert metrics["unregistered_operators"] == [name]
    assert written == model


def test_a_known_operator_that_its_opset_lacks_is_refused(tmp_path: Path) -> None:
    model = model_of([helper.make_node("Gelu", ["x"], ["y"], name="gelu")], opsets={"": 17})
    assert refused(model, tmp_path).what.endswith(
        "node 'gelu' (Gelu): No Op registered for Gelu with domain_version of 17"
    )


def test_weights_shorter_than_their_shape_are_refused(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    tensor.raw_data = tensor.raw_data[:-2]
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], [tensor])
    assert "weights 'w' of shape [4] cannot be read: they have 14 bytes instead of 16" in refused(model, tmp_path).what


def test_weights_longer_than_their_shape_are_refused(tmp_path: Path) -> None:
    tensor = numpy_helper.from_array(np.ones(4, np.float32), "w")
    tensor.raw_data += bytes(4)
    model = model_of([helper.make_node("Add", ["x", "w"], ["y"])], [tensor])
    assert "weights 'w' of shape [4] cannot be read" in refused(model, tmp_path).what


@settings(max_examples=80, deadline=None)
@given(places=st.lists(st.integers(0, 12_000), min_size=1, max_size=4), value=st.integers(0, 255))
def test_a_damaged_file_is_refused_or_still_a_model(
    places: list[int], value: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content, directory = bytearray(DIGITS.read_bytes()), tmp_path_factory.mktemp("damaged")
    for place in places:
        content[-place] = value
    (directory / "net.onnx").write_bytes(content)
    try:
        export(directory / "out", directory / "net.onnx")
    except StageError as error:
        assert "\n" not in error.what
    else:
        onnx_file.read(directory / "out" / "model.onnx")


# --- finite weights ---------------------------------------------------------------------------------------------------


def adding(array: np.ndarray, dtype: int = TensorProto.FLOAT) -> onnx.ModelProto:
    tensor = helper.make_tensor("w", dtype, array.shape, array.ravel().tolist())
    cast = helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT)
    return model_of([cast, helper.make_node("Add", ["x", "c"], ["y"])], [tensor])


@pytest.mark.parametrize("dtype", [TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE])
def test_weights_with_nan_or_infinity_are_refused_and_counted(dtype: int, tmp_path: Path) -> None:
    error = refused(adding(np.array([1, NAN, INF, NAN]), dtype), tmp_path)
    assert "weights 'w' are not finite: 2 NaN and 1 infinite of 4 values" in error.what


def branching(leaf: onnx.NodeProto) -> onnx.ModelProto:
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])
    branch = helper.make_graph([leaf], "branch", [], [z])
    condition = numpy_helper.from_array(np.array(True), "c")
    node = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    return model_of([node], [condition])


@pytest.mark.parametrize(
    "value",
    [{"value": numpy_helper.from_array(np.array([1, NAN], np.float32))}, {"value_floats": [1.0, NAN]}],
    ids=["tensor", "floats"],
)
def test_constants_inside_subgraphs_must_be_finite_too(value: dict[str, Any], tmp_path: Path) -> None:
    model = branching(helper.make_node("Constant", [], ["z"], **value))
    assert "weights 'z' are not finite: 1 NaN and 0 infinite of 2" in refused(model, tmp_path).what


@pytest.mark.parametrize("values", [[INF], [-INF], [0, -INF, -INF, 0]], ids=["bound", "lower-bound", "mask"])
def test_an_infinite_bound_and_an_attention_mask_are_no_broken_weights(values: list[float], tmp_path: Path) -> None:
    model = adding(np.array(values))
    assert export_model(model, tmp_path)[1] == model


@pytest.mark.parametrize("values", [[NAN], [0, INF], [1, -INF], [0, -INF, NAN]])
def test_infinities_among_real_weights_are_refused(values: list[float], tmp_path: Path) -> None:
    assert "not finite" in refused(adding(np.array(values)), tmp_path).what


# --- opsets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [18, 22])
def test_a_converted_model_has_the_opset_and_says_the_same(opset: int, tmp_path: Path) -> None:
    metrics = export(tmp_path / "out", DIGITS, opset=opset)
    images = np.load(DIGITS.parent / "holdout.npz")["images"]
    before, after = (
        onnxruntime.InferenceSession(str(path)).run(None, {"images": images})[0]
        for path in (DIGITS, tmp_path / "out" / "model.onnx")
    )
    assert metrics["opset"] == opset
    assert onnx_file.default_opset(onnx.load(str(tmp_path / "out" / "model.onnx"))) == opset
    np.testing.assert_allclose(after, before, atol=1e-5)


def test_functions_survive_a_conversion(tmp_path: Path) -> None:
    model = model_of([helper.make_node("Twice", ["x"], ["y"], domain="mine")], opsets={"": 20, "mine": 1})
    body = [helper.make_node("Add", ["a", "a"], ["b"])]
    model.functions.append(helper.make_function("mine", "Twice", ["a"], ["b"], body, [helper.make_opsetid("", 20)]))
    export_model(model, tmp_path, opset=18)
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert session.run(None, {"x": np.ones(4, np.float32)})[0].tolist() == [2, 2, 2, 2]


def test_a_conversion_that_cannot_be_done_says_why(tmp_path: Path) -> None:
    error = refused(model_of([helper.make_node("Gelu", ["x"], ["y"])]), tmp_path, opset=17)
    assert error.what == "the model cannot be converted from opset 20 to 17: No Previous Version of Gelu exists"


def test_an_opset_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    assert "from opset 20 to 99: " in refused(model_of([relu()]), tmp_path, opset=99).what


def saved_outside(arrays: Mapping[str, np.ndarray], nodes: Sequence[onnx.NodeProto], directory: Path) -> Path:
    """A model whose weights lie in one external file each."""
    tensors = []
    for name, array in arrays.items():
        array.tofile(directory / f"{name}.bin")
        tensor = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"{name}.bin")
        tensors.append(tensor)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [600]) for name in "xy")
    graph = helper.make_graph(nodes, "graph", [x], [y], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (directory / "net.onnx").write_bytes(model.SerializeToString())
    return directory / "net.onnx"


@pytest.fixture
def to_data_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights go to the data file from 1 kB on, in place of 256 MiB."""
    monkeypatch.setattr(onnx_file, "ONE_FILE_BYTES", 1000)


ADD = helper.make_node("Add", ["x", "w"], ["y"], name="add")


@pytest.mark.usefixtures("to_data_files")
@pytest.mark.parametrize("opset", [18, 22])
def test_a_model_with_external_weights_is_converted_and_they_are_copied(opset: int, tmp_path: Path) -> None:
    weights = np.arange(600, dtype=np.float32)
    metrics = export(tmp_path / "out", saved_outside({"w": weights}, [ADD], tmp_path), opset=opset)
    assert metrics["opset"] == opset
    assert metrics["initializer_bytes"] == 2400
    assert (tmp_path / "out" / "model.onnx.data").read_bytes() == weights.tobytes()
    session = onnxruntime.InferenceSession(str(tmp_path / "out" / "model.onnx"))
    assert session.run(None, {"x": np.ones(600, np.float32)})[0].tolist() == (weights + 1).tolist()


@pytest.mark.usefixtures("to_data_files")
def test_a_mask_that_is_read_piece_by_piece_is_still_a_mask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.onnx_data.PIECE_BYTES", 400)  # 100 numbers
    mask = np.where(np.arange(600) < 300, 0, -INF).astype(np.float32)
    export(tmp_path / "out", saved_outside({"w": mask}, [ADD], tmp_path))
    mask[50] = 1
    with pytest.raises(StageError, match="weights 'w' are not finite: 0 NaN and 300 infinite of 600 values"):
        export(tmp_path / "again", saved_outside({"w": mask}, [ADD], tmp_path))


@pytest.mark.usefixtures("to_data_files")
def test_external_weights_of_a_broken_structure_are_not_needed_to_say_so(tmp_path: Path) -> None:
    node = helper.make_node("Add", ["gone", "w"], ["y"], name="add")
    with pytest.raises(StageError, match=r"node 'add' \(Add\): Nodes in a graph must be topologically sorted"):
        export(tmp_path / "out", saved_outside({"w": np.ones(600, np.float32)}, [node], tmp_path))


# --- from a torch module ----------------------------------------------------------------------------------------------

MODULES = """
import torch
from torch import nn

class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.drop = nn.Dropout(0.5)
    def forward(self, x): return self.drop(self.layer(x))

class Named(Linear):
    output_names = ["scores"]

class TwoNames(Linear):
    output_names = ["scores", "more"]

class Both(nn.Module):
    def forward(self, a, b): return {"difference": a - b, "quotient": [a, b]}

class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 8)
    def forward(self, ids, mask): return self.words(ids) * mask.unsqueeze(-1)

class OnlyEight(nn.Module):
    def forward(self, x): return x.reshape(8, 4)

class Random(nn.Module):
    def forward(self, x): return x + torch.rand_like(x)

class Branches(nn.Module):
    def forward(self, x): return x if x.sum() > 0 else -x

class NotFinite(Linear):
    def __init__(self):
        super().__init__()
        self.layer.bias.data[1] = float("nan")

class Looks(nn.Module):
    # Fails where an id is not from 100 to 109.
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(10, 4)
    def forward(self, ids): return self.words(ids - 100)

class Scaled(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = nn.Linear(4, width)
    def forward(self, x): return self.layer(x)

class Wide(nn.Module):
    # 400 MiB of weights.
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5120, 10240, bias=False), nn.Linear(10240, 5120)
    def forward(self, x): return self.second(torch.relu(self.first(x)))

def tokens(batch, length): return {"ids": 100 + torch.arange(batch * length).reshape(batch, length) % 10}
def every_size(**sizes): return tokens(**sizes)
def one_size(): return {"ids": [[100, 109, 103]]}
def too_long(): return tokens(1, 99)
def floats(batch, length): return {"ids": torch.ones(batch, length)}
def misnamed(): return {"tokens": [[100]]}
def a_list(): return [[100]]
def failing(batch): raise KeyError(batch)

def broken(): raise ValueError("no such checkpoint\\nand more")
def number(): return 7
def weighted(path): return Linear() if path.read_text() == "weights" else None
constant = 3
"""
BATCH = {"x": {"shape": ["batch", 4], "dtype": "float32"}}


@pytest.fixture
def torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch itself, in a working directory where the user's `mods.py` lies."""
    for package in ("onnxscript", "safetensors"):
        pytest.importorskip(package)
    (tmp_path / "mods.py").write_text(MODULES)
    monkeypatch.chdir(tmp_path)
    return pytest.importorskip("torch")


def export_module(
    entry_point: str,
    inputs: Mapping[str, Any] = BATCH,
    dims: Mapping[str, Sequence[int]] | None = None,
    weights: Path | None = None,
    examples: str | None = None,
    **config: Any,
) -> tuple[Metrics, onnx.ModelProto]:
    fact = {"kind": "torch", "entry_point": entry_point, "inputs": inputs, "dims": dims or {"batch": [1, 4, 8]}}
    fact["examples"] = examples
    Path("out").mkdir(exist_ok=True)
    given = {"weights": [weights]} if weights else {}
    metrics = STAGE.run(Job(ExportConfig(**config), given, {"source": fact}, Path("out")))
    return metrics, onnx.load("out/model.onnx")


def module_refused(entry_point: str, *args: Any, **kwargs: Any) -> StageError:
    with pytest.raises(StageError) as caught:
        export_module(entry_point, *args, **kwargs)
    assert "\n" not in caught.value.what
    assert caught.value.next_step
    return caught.value


def face(values: Sequence[onnx.ValueInfoProto]) -> dict[str, list[Any]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] for value in values
    }


def test_without_torch_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch", None)
    error = module_refused("mods:Linear")
    assert "needs torch" in error.what
    assert error.next_step == "pip install 'trtforge[torch]'"


def test_a_dimension_without_a_range_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = module_refused("mods:Linear", {"x": {"shape": ["rows", 4]}})
    assert "input 'x' has the dimension 'rows', and model.dims knows ['batch']" in error.what


def test_inputs_that_no_machine_holds_are_refused_with_their_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = module_refused("mods:Linear", {"x": {"shape": ["batch", 4]}}, {"batch": [1, 8, 2_000_000_000]})
    assert "take 32,000,000,000 bytes (x (2000000000, 4)); allowed: at most 4,294,967,296" in error.what
    assert "model.dims" in error.next_step


def test_a_dtype_that_cannot_be_fed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "float32" in module_refused("mods:Linear", {"x": {"shape": [4], "dtype": "bfloat16"}}).what


@pytest.mark.torch
def test_the_digits_module_exports_as_its_onnx_file_says(torch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    inputs = {"images": {"shape": ["batch", 1, 8, 8], "dtype": "float32"}}
    weights = DIGITS.with_name("digits.safetensors")
    metrics, model = export_module("examples.digits.network:load", inputs, weights=weights)
    assert face(model.graph.input) == {"images": ["batch", 1, 8, 8]}
    assert face(model.graph.output) == {"logits": ["batch", 10]}
    assert (metrics["opset"], metrics["ir_version"], metrics["torch"]) == (20, 10, torch.__version__)
    holdout = np.load(DIGITS.with_name("holdout.npz"))
    (logits,) = onnxruntime.InferenceSession("out/model.onnx").run(None, {"images": holdout["images"]})
    assert (logits.argmax(axis=1) == holdout["labels"]).mean() >= 0.98


@pytest.mark.torch
def test_the_exported_file_names_no_path_and_is_the_same_each_time(torch: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    export_module("mods:Linear")
    first = Path("out/model.onnx").read_bytes()
    torch.manual_seed(0)
    export_module("mods:Linear")
    assert Path("out/model.onnx").read_bytes() == first
    assert not re.search(rb"site-packages|pkg\.torch|\.py\b", first)
    assert str(tmp_path).encode() not in first


@pytest.mark.torch
def test_the_module_is_exported_for_inference(torch: Any) -> None:
    metrics, model = export_module("mods:Linear")
    assert "Dropout" not in {node.op_type for node in model.graph.node}
    assert face(model.graph.output) == {"output": ["batch", 3]}
    errors: Any = metrics["max_abs_error"]
    assert errors.keys() == {"output"}
    assert 0 <= errors["output"] < 1e-4


@pytest.mark.torch
def test_outputs_are_called_what_the_module_calls_them(torch: Any) -> None:
    assert face(export_module("mods:Named")[1].graph.output).keys() == {"scores"}
    assert "output_names has 2 names, the module 1 outputs" in module_refused("mods:TwoNames").what


@pytest.mark.torch
def test_inputs_go_by_name_whatever_their_order(torch: Any) -> None:
    inputs = {"b": {"shape": ["batch", 2]}, "a": {"shape": ["batch", 2]}}
    _, model = export_module("mods:Both", inputs)
    assert list(face(model.graph.input)) == ["a", "b"]
    assert list(face(model.graph.output)) == ["difference", "quotient_0", "quotient_1"]
    a, b = np.full((1, 2), 5, np.float32), np.full((1, 2), 3, np.float32)
    session = onnxruntime.InferenceSession("out/model.onnx")
    assert session.run(["difference"], {"a": a, "b": b})[0].tolist() == [[2, 2]]


@pytest.mark.torch
def test_integers_and_two_dynamic_dimensions_export(torch: Any) -> None:
    inputs = {name: {"shape": ["batch", "length"], "dtype": "int64"} for name in ("ids", "mask")}
    _, model = export_module("mods:Tokens", inputs, {"batch": [1, 2, 4], "length": [1, 5, 9]})
    assert face(model.graph.input) == {"ids": ["batch", "length"], "mask": ["batch", "length"]}


@pytest.mark.torch
def test_a_dimension_whose_range_is_one_number_is_static(torch: Any) -> None:
    _, model = export_module("mods:OnlyEight", {"x": {"shape": ["batch", 4]}}, {"batch": [8, 8, 8]})
    assert face(model.graph.input) == {"x": [8, 4]}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("entry_point", "said"),
    [
        ("mods:OnlyEight", "mods:OnlyEight: the module fails on x=[4, 4]: "),
        (
            "mods:Random",
            r"output 'output' at batch=4 differs between ONNX and torch by up to 0\.\d+; allowed is 0.0001",
        ),
        ("mods:Branches", "mods:Branches: torch cannot export the module: GuardOnDataDependentSymNode: "),
        ("mods:NotFinite", "weights 'layer.bias' are not finite: 1 NaN and 0 infinite of 3 values"),
        ("mods:broken", "mods:broken raised ValueError: no such checkpoint$"),
        ("mods:number", "mods:number returned int, and must return a torch.nn.Module"),
        ("mods:constant", "mods:constant is no function: it is int"),
        ("mods:absent", "mods:absent cannot be imported: AttributeError"),
        ("absent:load", "absent:load cannot be imported: ModuleNotFoundError: No module named 'absent'"),
        ("mods", "'mods' is no package.module:callable"),
    ],
)
def test_what_goes_wrong_is_one_line_that_names_the_entry_point(torch: Any, entry_point: str, said: str) -> None:
    assert re.search(said.replace("[4, 4]", r"\[4, 4\]"), module_refused(entry_point).what)


@pytest.mark.torch
def test_dimensions_that_the_module_makes_equal_are_refused_under_two_names(torch: Any) -> None:
    inputs = {"a": {"shape": ["batch", 2]}, "b": {"shape": ["rows", 2]}}
    error = module_refused("mods:Both", inputs, {"batch": [1, 4, 8], "rows": [1, 4, 8]})
    assert "input 'b' is declared as ['rows', 2] and was exported as ['batch', 2]" in error.what


@pytest.mark.torch
def test_the_weights_reach_the_entry_point(torch: Any, tmp_path: Path) -> None:
    (tmp_path / "w").write_text("weights")
    export_module("mods:weighted", weights=tmp_path / "w")
    assert "raised TypeError" in module_refused("mods:weighted").what


@pytest.mark.torch
@pytest.mark.parametrize("form", ["state dict", "wrapped", "safetensors"])
def test_weights_are_loaded_into_a_module_whose_entry_point_takes_no_path(
    torch: Any, tmp_path: Path, form: str
) -> None:
    from safetensors.torch import save_file

    path, state = tmp_path / "weights", {"layer.weight": torch.full((4, 4), 2.0), "layer.bias": torch.zeros(4)}
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "epoch": 3} if form == "wrapped" else state, path)
    export_module("mods:Scaled", weights=path)
    session = onnxruntime.InferenceSession("out/model.onnx")
    assert session.run(None, {"x": np.ones((1, 4), np.float32)})[0].tolist() == [[8, 8, 8, 8]]


@pytest.mark.torch
def test_weights_of_another_module_and_what_is_no_state_dict_are_one_line(torch: Any, tmp_path: Path) -> None:
    path = tmp_path / "weights"
    torch.save({"layer.weight": torch.zeros(4, 4)}, path)
    assert "does not fit the module of mods:Scaled: " in (error := module_refused("mods:Scaled", weights=path)).what
    assert 'Missing key(s) in state_dict: "layer.bias"' in error.what
    torch.save({"epoch": 3}, path)
    assert "it holds dict, not tensors by name" in module_refused("mods:Scaled", weights=path).what
    path.write_bytes(b"no checkpoint")
    assert "is no state dict: UnpicklingError" in module_refused("mods:Scaled", weights=path).what


@pytest.mark.torch
def test_a_checkpoint_that_would_run_code_is_not_unpickled(torch: Any, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "sprung",))

    torch.save({"layer.weight": Trap()}, tmp_path / "weights")
    assert "is no state dict" in module_refused("mods:Scaled", weights=tmp_path / "weights").what
    assert not (tmp_path / "sprung").exists()


IDS = {"ids": {"shape": ["batch", "length"], "dtype": "int64"}}
SIZES = {"batch": [1, 2, 4], "length": [1, 3, 9]}


@pytest.mark.torch
def test_a_module_that_refuses_random_inputs_is_exported_with_the_users_own(torch: Any) -> None:
    assert "mods:Looks: the module fails on ids=[2, 3]" in module_refused("mods:Looks", IDS, SIZES).what
    for examples in ("mods:tokens", "mods:every_size", "mods:one_size"):
        metrics, model = export_module("mods:Looks", IDS, SIZES, examples=examples)
        assert face(model.graph.input) == {"ids": ["batch", "length"]}
        assert metrics["max_abs_error"] == {"output": 0.0}


@pytest.mark.torch
@pytest.mark.parametrize(
    ("examples", "said"),
    [
        ("mods:too_long", "the example of 'ids' is int64 [1, 99], and model.inputs says int64 ['batch', 'length']"),
        ("mods:floats", "the example of 'ids' is float32 [2, 3], and model.inputs says int64"),
        ("mods:misnamed", "mods:misnamed returned ['tokens'], and must return a dict of ['ids']"),
        ("mods:a_list", "mods:a_list returned list, and must return a dict of ['ids']"),
        ("mods:failing", "mods:failing(batch=2) raised KeyError: 2"),
        ("mods:nowhere", "the entry point mods:nowhere cannot be imported"),
    ],
)
def test_examples_that_do_not_fit_are_one_line(torch: Any, examples: str, said: str) -> None:
    assert said in module_refused("mods:Looks", IDS, SIZES, examples=examples).what


@pytest.mark.torch
def test_a_module_with_large_weights_is_exported_through_files(torch: Any) -> None:
    metrics, _ = export_module("mods:Wide", {"x": {"shape": ["batch", 5120]}}, {"batch": [1, 2, 3]})
    assert {path.name for path in Path("out").iterdir()} == {"model.onnx", "model.onnx.data"}
    assert Path("out/model.onnx").stat().st_size < 100_000
    assert int(str(metrics["initializer_bytes"])) > 400 << 20
    Path("out/model.onnx.data").unlink()


@pytest.mark.torch
def test_changed_code_is_exported_anew_in_the_same_process(torch: Any, tmp_path: Path) -> None:
    before = export_module("mods:Linear")[1]
    (tmp_path / "mods.py").write_text(MODULES.replace("nn.Linear(4, 3)", "nn.Linear(4, 5000)"))
    after = export_module("mods:Linear")[1]
    assert (face(before.graph.output), face(after.graph.output)) == (
        {"output": ["batch", 3]},
        {"output": ["batch", 5000]},
    )
    assert str(tmp_path) not in sys.path
