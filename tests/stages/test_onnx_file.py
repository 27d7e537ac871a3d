"""ONNX files in and out: what a person is told when a file is not what it should be."""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path

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


def test_external_files_are_loaded_from_wherever_they_are_named(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    tensors = []
    for index in range(6):
        array = np.full(1 if index == 3 else 4, index, np.float32)
        (tmp_path / "sub" / f"{index}.bin").write_bytes(array.tobytes())
        tensors.append(external(f"t{index}", f"sub/{index}.bin", array))
    onnx_file.write(everywhere(tensors), tmp_path / "net.onnx")
    model = onnx_file.read(tmp_path / "net.onnx")
    loaded = {t.name: numpy_helper.to_array(t)[0] for _, t in onnx_file.iter_tensors(model) if t.name != "indices"}
    assert loaded == {f"t{index}": index for index in range(6)}


def test_external_locations_are_listed_once_and_sorted_without_the_files(tmp_path: Path) -> None:
    tensors = [external("a", "./w.bin"), external("b", "w.bin"), external("c", "sub//v.bin")]
    model = model_of([helper.make_node("Sum", ["x", "a", "b", "c"], ["y"])], tensors)
    assert onnx_file.external_locations(model, tmp_path) == ["sub/v.bin", "w.bin"]


@pytest.mark.parametrize("location", ["/etc/passwd", "../w.bin", "sub/../../w.bin", "sub/../w.bin", "", "w\0.bin"])
def test_external_data_may_not_leave_the_models_directory(location: str, tmp_path: Path) -> None:
    onnx_file.write(adding(external("w", location)), tmp_path / "net.onnx")
    assert "'w'" in refused(tmp_path / "net.onnx").what


def test_a_link_that_leads_out_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    (tmp_path / "model" / "w.bin").symlink_to(tmp_path / "secret.bin")
    (tmp_path / "model" / "up").symlink_to(tmp_path)
    for location in ("w.bin", "up/secret.bin"):
        onnx_file.write(adding(external("w", location)), tmp_path / "model" / "net.onnx")
        assert "leaves the model's directory" in refused(tmp_path / "model" / "net.onnx").what


def test_a_loop_of_links_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.bin").symlink_to("w.bin")
    onnx_file.write(adding(external("w", "w.bin")), tmp_path / "net.onnx")
    refused(tmp_path / "net.onnx")


def test_a_model_in_a_linked_directory_is_read(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "w.bin").write_bytes(bytes(16))
    onnx_file.write(adding(external("w", "w.bin")), tmp_path / "real" / "net.onnx")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert onnx_file.read(tmp_path / "link" / "net.onnx").graph.initializer[0].raw_data == bytes(16)


def test_a_missing_external_file_is_named_with_its_tensor(tmp_path: Path) -> None:
    onnx_file.write(adding(external("w", "w.bin")), tmp_path / "net.onnx")
    error = refused(tmp_path / "net.onnx")
    assert "'w'" in error.what
    assert "no such file" in error.what
    assert "put w.bin beside net.onnx" in error.next_step


def test_an_external_file_that_is_too_short_is_refused(tmp_path: Path) -> None:
    tensor = external("w", "w.bin")
    tensor.external_data.add(key="length", value="16")
    (tmp_path / "w.bin").write_bytes(bytes(12))
    onnx_file.write(adding(tensor), tmp_path / "net.onnx")
    assert "exceeds available data" in refused(tmp_path / "net.onnx").what


def test_external_files_are_left_alone_when_nobody_asks_for_them(tmp_path: Path) -> None:
    onnx_file.write(adding(external("w", "missing.bin")), tmp_path / "net.onnx")
    assert onnx_file.read(tmp_path / "net.onnx", external_data=False).graph.node[0].name == "add"


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
