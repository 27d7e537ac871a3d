"""ONNX files in and out: what a person is told when a file is not what it should be."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from stages import onnx_file
from stages.stage import StageError

DIGITS = Path(__file__).parents[2] / "conf" / "data" / "digits" / "digits.onnx"


def external(name: str, location: str, array: np.ndarray | None = None) -> TensorProto:
    tensor = numpy_helper.from_array(np.ones(4, np.float32) if array is None else array, name)
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    return tensor


def model_of(nodes: list[onnx.NodeProto], initializers: Sequence[TensorProto] = ()) -> onnx.ModelProto:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in "xy")
    graph = helper.make_graph(nodes, "graph", [x], [y], initializer=initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def adding(tensor: TensorProto) -> onnx.ModelProto:
    return model_of([helper.make_node("Add", ["x", tensor.name], ["y"], name="add")], [tensor])


def everywhere(tensors: list[TensorProto]) -> onnx.ModelProto:
    """A model with one tensor in each place that a tensor can be: six of them."""
    initializer, in_subgraph, in_node, sparse, in_function, in_nested = tensors
    z = helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])
    leaf = helper.make_node("Constant", [], ["z"], name="leaf", value=in_nested)
    nested = helper.make_graph([leaf], "nested", [], [z])
    inner = helper.make_node("If", ["c"], ["z"], name="inner", then_branch=nested, else_branch=nested)
    branch = helper.make_graph([inner], "branch", [], [z], initializer=[in_subgraph])
    nodes = [
        helper.make_node("Constant", [], ["k"], name="k", value=in_node),
        helper.make_node("If", ["c"], ["y"], name="if", then_branch=branch, else_branch=branch),
    ]
    model = model_of(nodes, [initializer])
    indices = numpy_helper.from_array(np.array([0], np.int64), "indices")
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(sparse, indices, [4]))
    body = [helper.make_node("Constant", [], ["b"], name="b", value=in_function)]
    model.functions.append(helper.make_function("mine", "F", [], ["b"], body, [helper.make_opsetid("", 20)]))
    return model


def saved(model: onnx.ModelProto, directory: Path) -> Path:
    path = directory / "net.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def refused(path: Path) -> StageError:
    with pytest.raises(StageError) as caught:
        onnx_file.read(path)
    assert "\n" not in caught.value.what
    assert caught.value.next_step
    return caught.value


def test_a_model_survives_writing_and_reading(tmp_path: Path) -> None:
    model = onnx_file.read(DIGITS)
    onnx_file.write(model, tmp_path / "object-without-suffix")
    assert onnx_file.read(tmp_path / "object-without-suffix") == model


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "empty"),
        (b"dear sir or madam,\n", "text file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS pointer"),
        (b"<!DOCTYPE html><html>", "web page"),
        (b"PK\x03\x04\x14\x00", "zip archive"),
        (gzip.compress(b"x", mtime=0), "gzip"),
        (b"\xff" * 64, "not an ONNX file, or a truncated one (64 bytes"),
    ],
    ids=["nothing", "letter", "git-lfs", "html", "zip", "gzip", "noise"],
)
def test_a_file_that_is_no_onnx_is_called_what_it_is(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(content)
    assert said in refused(path).what


def test_a_missing_file_is_called_missing(tmp_path: Path) -> None:
    assert "no such file" in refused(tmp_path / "net.onnx").what


def test_a_directory_names_the_onnx_files_in_it(tmp_path: Path) -> None:
    assert "no .onnx file" in refused(tmp_path).next_step
    shutil.copy(DIGITS, tmp_path / "net.onnx")
    assert "a directory" in refused(tmp_path).what
    assert "net.onnx" in refused(tmp_path).next_step


@settings(max_examples=60, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused_or_lacks_only_its_tail(
    share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    content = DIGITS.read_bytes()
    path = tmp_path_factory.mktemp("cut") / "net.onnx"
    path.write_bytes(content[: int(len(content) * share)])
    refused(path)


def test_a_file_cut_anywhere_in_its_last_bytes_is_refused(tmp_path: Path) -> None:
    content, path = DIGITS.read_bytes(), tmp_path / "net.onnx"
    for missing in range(1, 40):
        path.write_bytes(content[:-missing])
        refused(path)


@pytest.mark.parametrize("name", [b"relu", b"batch", b"logits", b"pytorch"])
def test_names_that_are_no_text_are_refused(name: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_bytes(DIGITS.read_bytes().replace(name, b"\xff" * len(name)))
    assert "not text" in refused(tmp_path / "net.onnx").what


def test_a_file_beyond_what_protobuf_holds_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with (tmp_path / "net.onnx").open("wb") as file:
        file.truncate(onnx_file.MAX_BYTES + 1)  # a hole: it takes no space
    assert "larger than 2147483647 bytes" in refused(tmp_path / "net.onnx").what


def test_tensors_are_found_wherever_a_model_keeps_them() -> None:
    names = [f"t{index}" for index in range(6)]
    tensors = [numpy_helper.from_array(np.ones(1 if name == "t3" else 4, np.float32), name) for name in names]
    found = {tensor.name for _, tensor in onnx_file.iter_tensors(everywhere(tensors))}
    assert found == {*names, "indices"}


def test_nodes_are_found_in_subgraphs_and_functions() -> None:
    tensors = [numpy_helper.from_array(np.ones(1, np.float32), f"t{index}") for index in range(6)]
    names = {node.name for node in onnx_file.iter_nodes(everywhere(tensors))}
    assert names == {"k", "if", "inner", "leaf", "b"}


def test_external_files_are_read_from_wherever_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    tensors = []
    for index in range(6):
        array = np.full(1 if index == 3 else 4, index, np.float32)
        (tmp_path / "sub" / f"{index}.bin").write_bytes(array.tobytes())
        tensors.append(external(f"t{index}", f"sub/{index}.bin", array))
    model = onnx_file.read(saved(everywhere(tensors), tmp_path))
    read = {t.name: onnx_file.array(t)[0] for _, t in onnx_file.iter_tensors(model) if t.name != "indices"}
    assert read == {f"t{index}": index for index in range(6)}


def test_external_locations_are_listed_once_and_sorted_without_the_files(tmp_path: Path) -> None:
    tensors = [external("a", "./w.bin"), external("b", "w.bin"), external("c", "sub//v.bin")]
    model = model_of([helper.make_node("Sum", ["x", "a", "b", "c"], ["y"])], tensors)
    assert onnx_file.external_locations(model, tmp_path) == ["sub/v.bin", "w.bin"]


@pytest.mark.parametrize("location", ["/etc/passwd", "../w.bin", "sub/../../w.bin", "sub/../w.bin", "", "w\0.bin"])
def test_external_data_may_not_leave_the_models_directory(location: str, tmp_path: Path) -> None:
    assert "'w'" in refused(saved(adding(external("w", location)), tmp_path)).what


def test_a_link_that_leads_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "model" / "w.bin").symlink_to(tmp_path / "secret.bin")
    (tmp_path / "model" / "up").symlink_to(tmp_path)
    for location in ("w.bin", "up/secret.bin"):
        path = saved(adding(external("w", location)), tmp_path / "model")
        assert "leaves the model's directory" in refused(path).what


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.bin").symlink_to("w.bin")
    refused(saved(adding(external("w", "w.bin")), tmp_path))


def test_a_model_in_a_linked_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "w.bin").write_bytes(bytes(16))
    saved(adding(external("w", "w.bin")), tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert onnx_file.read(tmp_path / "link" / "net.onnx").graph.initializer[0].raw_data == bytes(16)


def test_a_missing_external_file_is_named_with_its_tensor(tmp_path: Path) -> None:
    error = refused(saved(adding(external("w", "w.bin")), tmp_path))
    assert "'w'" in error.what
    assert "no such file" in error.what
    assert "put w.bin beside the ONNX file" in error.next_step


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({}, "tensor 'w' is 16 bytes from 0 on of w.bin, which has 12 bytes"),
        ({"length": "16"}, "tensor 'w' is 16 bytes from 0 on of w.bin, which has 12 bytes"),
        ({"length": "12"}, "tensor 'w' is 12 bytes of w.bin, and its shape [4] takes 16"),
        ({"length": "-16"}, "the length of its external data is '-16'; allowed is a whole number, 0 or more"),
        ({"length": "16 "}, "the length of its external data is '16 '"),
        ({"length": "9" * 5000}, "the length of its external data is '9999"),
        ({"offset": "13"}, "tensor 'w' is 16 bytes from 13 on of w.bin, which has 12 bytes"),
        ({"offset": str(2**63 - 1)}, f"tensor 'w' is 16 bytes from {2**63 - 1} on"),
        ({"offset": "-4"}, "the offset of its external data is '-4'"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_external_data_that_cannot_be_is_refused_in_one_line(
    entries: dict[str, str], said: str, tmp_path: Path
) -> None:
    tensor = external("w", "w.bin")
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "w.bin").write_bytes(bytes(12))
    assert said in refused(saved(adding(tensor), tmp_path)).what


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"dims": [-4]}, "tensor 'w' has the shape [-4]"),
        ({"dims": [2**62, 2**62]}, f"tensor 'w' is {2**126} bytes from 0 on of w.bin"),
        ({"data_type": TensorProto.STRING}, "tensor 'w' holds strings, which cannot be external"),
        ({"data_type": TensorProto.UNDEFINED}, "tensor 'w' has the element type 0"),
        ({"data_type": 99}, "tensor 'w' has the element type 99"),
    ],
    ids=["negative", "absurd", "strings", "undefined", "unknown"],
)
def test_an_external_tensor_that_cannot_be_is_refused_in_one_line(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    tensor = external("w", "w.bin")
    for name, value in change.items():
        tensor.ClearField(name)
        tensor.MergeFrom(TensorProto(**{name: value}))
    (tmp_path / "w.bin").write_bytes(bytes(16))
    assert said in refused(saved(adding(tensor), tmp_path)).what


def placed(name: str, offset: int, count: int) -> TensorProto:
    tensor = external(name, "w.bin", np.ones(count, np.float32))
    tensor.external_data.add(key="offset", value=str(offset))
    return tensor


def summing(*tensors: TensorProto) -> onnx.ModelProto:
    return model_of([helper.make_node("Sum", ["x", *(t.name for t in tensors)], ["y"])], tensors)


def test_tensors_that_overlap_are_refused_and_named(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(bytes(64))
    error = refused(saved(summing(placed("a", 0, 4), placed("b", 12, 4)), tmp_path))
    assert error.what == "tensors 'a' and 'b' overlap in w.bin: bytes 0 to 16 and 12 to 28"


def test_tied_weights_neighbours_and_empty_tensors_do_not_overlap(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    tensors = [placed("a", 0, 4), placed("b", 0, 4), placed("c", 16, 4), placed("none", 8, 0), placed("end", 64, 0)]
    model = onnx_file.read(saved(summing(*tensors), tmp_path))
    assert [onnx_file.array(t).tolist() for t in model.graph.initializer] == [
        [0, 1, 2, 3],
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [],
        [],
    ]


def test_files_may_be_handed_over_under_other_names_in_the_order_of_the_locations(tmp_path: Path) -> None:
    (tmp_path / "object1").write_bytes(np.full(4, 1, np.float32).tobytes())
    (tmp_path / "object2").write_bytes(np.full(4, 2, np.float32).tobytes())
    path = saved(summing(external("b", "b.bin"), external("a", "a.bin")), tmp_path)
    model = onnx_file.read([path, tmp_path / "object1", tmp_path / "object2"])
    assert [onnx_file.array(t)[0] for t in model.graph.initializer] == [2, 1]
    with pytest.raises(StageError, match=r"names 2 external files, and 1 are given: a\.bin, b\.bin"):
        onnx_file.read([path, tmp_path / "object1"])


def test_external_files_are_left_alone_when_nobody_asks_for_them(tmp_path: Path) -> None:
    path = saved(adding(external("w", "missing.bin")), tmp_path)
    assert onnx_file.read(path, external_data=False).graph.node[0].name == "add"


# --- the data file ----------------------------------------------------------------------------------------------------


def weighty(*arrays: np.ndarray) -> onnx.ModelProto:
    """A model with these initializers, a small one and a string among them."""
    tensors = [numpy_helper.from_array(array, f"w{index}") for index, array in enumerate(arrays)]
    tensors.insert(1, numpy_helper.from_array(np.arange(3), "shape"))
    tensors.append(helper.make_tensor("words", TensorProto.STRING, [2], [b"a", b"b" * 2000]))
    return model_of([helper.make_node("Identity", ["x"], ["y"])], tensors)


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights go to the data file from 10 kB on, in place of 256 MiB."""
    monkeypatch.setattr(onnx_file, "ONE_FILE_BYTES", 10_000)


MATRIX = np.random.default_rng(0).standard_normal((60, 60)).astype(np.float32)


@pytest.mark.usefixtures("small_limit")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn", "int64", "bool", "int4", "uint2"])
def test_weights_of_every_type_come_back_from_the_data_file(dtype: str, tmp_path: Path) -> None:
    name = {"float32": "float", "float8_e4m3fn": "float8e4m3fn"}.get(dtype, dtype).upper()
    if name not in TensorProto.DataType.keys():  # noqa: SIM118 - an enum wrapper, no dict
        pytest.skip(f"this onnx has no {name}")
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(name))
    odd = np.abs(np.tile(MATRIX, (2, 1))[:119]).astype(kind)  # 7,140 elements
    model = weighty(MATRIX, odd)
    onnx_file.write(model, tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < 5_000
    read = onnx_file.read(tmp_path / "model.onnx")
    got, want = onnx_file.array(read.graph.initializer[2]), onnx_file.array(model.graph.initializer[2])
    assert (got.dtype, got.shape) == (want.dtype, want.shape) == (kind, (119, 60))
    assert got.tobytes() == want.tobytes()
    assert onnx_file.inlined(read) == model
    assert onnx_file.size(read) > 14_400 + onnx_file.nbytes(model.graph.initializer[2])


@pytest.mark.usefixtures("small_limit")
def test_only_what_is_heavy_is_kept_outside_and_starts_at_a_page(tmp_path: Path) -> None:
    onnx_file.write(weighty(MATRIX, np.zeros((0, 9), np.float32), MATRIX), tmp_path / "model.onnx")
    raw = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    entries = {t.name: {e.key: e.value for e in t.external_data} for t in raw.graph.initializer if t.external_data}
    assert entries == {
        "w0": {"location": "model.onnx.data", "offset": "0", "length": "14400"},
        "w2": {"location": "model.onnx.data", "offset": "16384", "length": "14400"},
    }
    assert (tmp_path / "model.onnx.data").stat().st_size == 16384 + 14400


@pytest.mark.usefixtures("small_limit")
def test_other_tools_read_what_is_written(tmp_path: Path) -> None:
    model = weighty(MATRIX)
    onnx_file.write(model, tmp_path / "model.onnx")
    loaded = onnx.load(str(tmp_path / "model.onnx"))
    assert numpy_helper.to_array(loaded.graph.initializer[0]).tobytes() == MATRIX.tobytes()
    onnx.checker.check_model(str(tmp_path / "model.onnx"))


def test_a_model_below_the_limit_is_one_file_wherever_its_weights_lay(tmp_path: Path) -> None:
    model = weighty(MATRIX)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "ONE_FILE_BYTES", 10_000)
        onnx_file.write(model, tmp_path / "model.onnx")
    (tmp_path / "out").mkdir()
    onnx_file.write(onnx_file.read(tmp_path / "model.onnx"), tmp_path / "out" / "model.onnx")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.onnx"]
    assert onnx.load(str(tmp_path / "out" / "model.onnx")) == model


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 3000), min_size=1, max_size=6),
    seed=st.integers(0, 9),
    name=st.sampled_from(["a.onnx", "b"]),
)
def test_the_bytes_depend_on_the_model_alone(
    sizes: list[int], seed: int, name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    directory, random = tmp_path_factory.mktemp("same"), np.random.default_rng(seed)
    model = weighty(*(random.standard_normal(size).astype(np.float32) for size in sizes))
    before = model.SerializeToString(deterministic=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_file, "ONE_FILE_BYTES", 10_000)
        for number in (1, 2):  # from memory, then from the files of the first
            (directory / f"{number}").mkdir()
            onnx_file.write(model, directory / f"{number}" / name)
            model = onnx_file.read(directory / f"{number}" / name)
    assert onnx_file.inlined(model).SerializeToString(deterministic=True) == before
    one, two = ({path.name: path.read_bytes() for path in (directory / n).iterdir()} for n in "12")
    assert one == two


@pytest.mark.usefixtures("small_limit")
def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(MATRIX.tobytes())
    tied = [external(name, "w.bin", MATRIX) for name in "ab"]
    model = model_of([helper.make_node("Identity", ["x"], ["y"])], tied)
    onnx_file.write(onnx_file.read(saved(model, tmp_path)), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").read_bytes() == MATRIX.tobytes()


@pytest.mark.usefixtures("small_limit")
def test_writing_leaves_the_model_as_it_is(tmp_path: Path) -> None:
    model = weighty(MATRIX)
    before = model.SerializeToString(deterministic=True)
    onnx_file.write(model, tmp_path / "model.onnx")
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("imports", "opset"), [([("", 20)], 20), ([("a", 1), ("ai.onnx", 17)], 17), ([("a", 1)], None)]
)
def test_the_opset_is_that_of_onnx_itself(imports: list[tuple[str, int]], opset: int | None) -> None:
    model = model_of([])
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(*entry) for entry in imports)
    assert onnx_file.default_opset(model) == opset


def test_provenance_is_stripped_at_every_depth_and_nothing_else() -> None:
    tensors = [numpy_helper.from_array(np.ones(1, np.float32), f"t{index}") for index in range(6)]
    clean = everywhere(tensors)
    marked = onnx.ModelProto()
    marked.CopyFrom(clean)
    marked.metadata_props.add(key="k", value="/home/me")
    marked.graph.input[0].doc_string = "/home/me"
    for node in onnx_file.iter_nodes(marked):
        node.doc_string = "/home/me"
        node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value="/home/me")
    for _, tensor in onnx_file.iter_tensors(marked):
        tensor.doc_string = "/home/me"
    onnx_file.strip_provenance(marked)
    assert marked == clean
