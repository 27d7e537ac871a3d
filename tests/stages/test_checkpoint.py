"""New weights for an ONNX file out of a safetensors file: what fits, what does not, and what comes out."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from stages import checkpoint, onnx_data
from stages.export import STAGE, ExportConfig
from stages.stage import Job, StageError
from tests.stages.checkpoints import save, weights_of, with_weights

DATA = Path(__file__).parents[2] / "conf" / "data" / "digits"
DIGITS = DATA / "digits.onnx"


def export(tmp_path, onnx_path, weights=None):
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    inputs = {"onnx": [onnx_path], **({"weights": [weights]} if weights else {})}
    return STAGE.run(Job(ExportConfig(), inputs, {"source": {"kind": "onnx"}}, out)), out / "model.onnx"


def refused(tmp_path, onnx_path, weights):
    with pytest.raises(StageError) as caught:
        export(tmp_path, onnx_path, weights)
    assert not (tmp_path / "out" / "model.onnx").exists()
    assert "\n" not in caught.value.what
    assert caught.value.next_step
    return caught.value


def values(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def net(tmp_path, extra=(), nodes=()):
    """`y = (x @ w + b) * one`: a matrix, a vector, a lone number; and what `extra` and `nodes` add."""
    arrays = {"w": values((4, 4)), "b": values(4, seed=1), "one": np.float32(2)}
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Add", ["product", "b"], ["sum"]),
        helper.make_node("Mul", ["sum", "one"], ["y"]),
        *nodes,
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy")
    tensors = [*(numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()), *extra]
    model = helper.make_model(
        helper.make_graph(nodes, "net", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    path = tmp_path / "net.onnx"
    onnx.save(model, str(path))
    return path


TRAINED = {"w": values((4, 4), seed=7), "b": values(4, seed=8)}


def test_the_checkpoint_that_a_training_saved_fits_the_onnx_file_of_the_same_network(tmp_path):
    metrics, written = export(tmp_path, DIGITS, DATA / "digits.safetensors")
    assert written.read_bytes() == DIGITS.read_bytes()
    assert (metrics["weights_taken"], metrics["weights_kept"]) == (32, [])
    assert metrics["weights_passed_over"] == sorted(
        f"{name}.num_batches_tracked"
        for name in ("stem.1", "blocks.0.first.1", "blocks.0.second.1", "blocks.1.first.1", "blocks.1.second.1",
                     "blocks.1.shortcut.1")
    )  # fmt: skip


def test_new_weights_give_the_bytes_of_the_onnx_file_that_was_exported_with_them(tmp_path):
    old = onnx.load(str(DIGITS))
    trained = {name: array * 1.01 + 0.001 for name, array in weights_of(old).items()}
    onnx.save(with_weights(old, trained), str(tmp_path / "new.onnx"))
    weights = save(tmp_path / "new.safetensors", dict(reversed(trained.items())))
    _, written = export(tmp_path, DIGITS, weights)
    assert written.read_bytes() == (tmp_path / "new.onnx").read_bytes()
    assert written.read_bytes() != DIGITS.read_bytes()


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.sampled_from(["w", "b"])),
    st.sets(st.sampled_from(["u", "v"])),
    st.sampled_from(["", "w shape", "b dtype"]),
)
def test_every_missing_extra_or_different_tensor_is_named_and_nothing_else(tmp_path_factory, missing, extra, odd):
    tmp_path = tmp_path_factory.mktemp("net")
    model = onnx.load(str(net(tmp_path)))
    arrays = {name: array for name, array in TRAINED.items() if name not in missing}
    arrays |= {name: values(2) for name in extra}
    if odd and odd[0] in arrays:
        arrays[odd[0]] = values((4, 5)) if odd == "w shape" else values(4, np.float16)
    found = checkpoint.hold_against(model, checkpoint.read(save(tmp_path / "w.safetensors", arrays)))
    told = {each.name: each.kind for each in found.differences}
    different = {odd[0]} if odd and odd[0] in arrays else set()
    assert told == {
        **dict.fromkeys(missing, "missing"), **dict.fromkeys(extra, "extra"), **dict.fromkeys(different, "different"),
    }  # fmt: skip


def test_a_checkpoint_that_does_not_fit_is_refused_with_what_does_not(tmp_path):
    weights = save(tmp_path / "w.safetensors", {"w": values((4, 5)), "weight": values(3)})
    error = refused(tmp_path, net(tmp_path), weights)
    assert error.what.endswith(
        "w.safetensors does not fit the model: 1 missing, 1 extra, 1 different: missing: b float32 [4]; "
        "extra: weight float32 [3]; different: w float32 [4, 5] instead of float32 [4, 4]"
    )
    assert "model.path=" in error.next_step


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, ml_dtypes.float8_e4m3fn])
def test_a_checkpoint_in_another_precision_is_not_converted(tmp_path, dtype):
    weights = save(tmp_path / "w.safetensors", {name: array.astype(dtype) for name, array in TRAINED.items()})
    told = f"w {np.dtype(dtype).name} [4, 4] instead of float32 [4, 4]"
    assert told in refused(tmp_path, net(tmp_path), weights).what


def test_a_lone_number_is_taken_where_the_checkpoint_has_it_and_stays_where_not(tmp_path):
    path = net(tmp_path)
    metrics, written = export(tmp_path, path, save(tmp_path / "w.safetensors", TRAINED))
    assert metrics["weights_kept"] == ["one"]
    assert weights_of(onnx.load(str(written)))["one"] == 2
    metrics, written = export(tmp_path, path, save(tmp_path / "w.safetensors", {**TRAINED, "one": np.float32(3)}))
    assert (metrics["weights_kept"], metrics["weights_taken"]) == ([], 3)
    assert weights_of(onnx.load(str(written)))["one"] == 3


def test_what_steers_a_layer_is_no_weight_and_need_not_be_there(tmp_path):
    scales = numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales")
    nodes = [
        helper.make_node("Reshape", ["y", "shape"], ["image"]),
        helper.make_node("Resize", ["image", "", "scales"], ["large"]),
    ]
    path = net(tmp_path, [scales, numpy_helper.from_array(np.array([1, 1, 2, 2]), "shape")], nodes)
    metrics, written = export(tmp_path, path, save(tmp_path / "w.safetensors", TRAINED))
    assert metrics["weights_kept"] == ["one", "scales"]
    other = save(tmp_path / "w.safetensors", {**TRAINED, "scales": values(3)})
    written.unlink()
    assert "scales float32 [3] instead of float32 [4]" in refused(tmp_path, path, other).what


def test_integers_of_the_same_name_are_taken_and_must_be_the_same_others_are_passed_over(tmp_path):
    path = net(tmp_path, [numpy_helper.from_array(np.arange(3), "ids")])
    steps = {"num_batches_tracked": np.array(7), "mask": np.array([True])}
    weights = save(tmp_path / "w.safetensors", {**TRAINED, **steps, "ids": np.arange(3) + 5})
    metrics, written = export(tmp_path, path, weights)
    assert metrics["weights_passed_over"] == ["mask", "num_batches_tracked"]
    assert weights_of(onnx.load(str(written)))["ids"].tolist() == [5, 6, 7]
    written.unlink()
    for ids in (np.arange(4), np.arange(3, dtype=np.int32)):
        weights = save(tmp_path / "w.safetensors", {**TRAINED, "ids": ids})
        assert f"ids {ids.dtype} [{ids.size}] instead of int64 [3]" in refused(tmp_path, path, weights).what


def test_weights_that_are_not_finite_are_refused_as_those_of_an_onnx_file_are(tmp_path):
    weights = save(tmp_path / "w.safetensors", {**TRAINED, "b": np.array([1, np.nan, 2, 3], np.float32)})
    assert "weights 'b' are not finite: 1 NaN" in refused(tmp_path, net(tmp_path), weights).what


def test_values_that_the_model_keeps_in_a_typed_field_are_replaced_too(tmp_path):
    # A small one and a large one: the one is read, the other stays in the checkpoint until the model is written.
    path = net(tmp_path, [numpy_helper.from_array(values(600), "large")], [helper.make_node("Tanh", ["large"], ["t"])])
    model = onnx.load(str(path))
    for tensor in model.graph.initializer:
        if tensor.name in ("b", "large"):
            tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.FLOAT, tensor.dims, [1.0] * tensor.dims[0]))
            assert tensor.float_data
    onnx.save(model, str(path))
    trained = {**TRAINED, "large": values(600, seed=9)}
    _, written = export(tmp_path, path, save(tmp_path / "w.safetensors", trained))
    model = onnx.load(str(written))
    assert not any(tensor.float_data for tensor in model.graph.initializer)
    for name, array in trained.items():
        np.testing.assert_array_equal(weights_of(model)[name], array)


def test_large_weights_are_not_read_but_stay_in_the_checkpoint(tmp_path):
    large = values((64, 64))
    typed = helper.make_tensor("large", TensorProto.FLOAT, [64, 64], large.reshape(-1).tolist())
    model = onnx.load(str(net(tmp_path, [typed], [helper.make_node("Tanh", ["large"], ["t"])])))
    weights = save(tmp_path / "w.safetensors", {**TRAINED, "large": large + 1})
    checkpoint.put(model, weights)
    tensor = model.graph.initializer[-1]
    assert onnx_data.is_external(tensor)
    assert onnx_data.place(tensor).path == weights
    assert not tensor.float_data
    np.testing.assert_array_equal(onnx_data.array(tensor), large + 1)


def branches(tmp_path, other="u2"):
    """`y = x + u` or `x + u2`, as the input `yes` says: each weight, of 2 KiB, in a branch of its own."""

    def branch(name):
        weight = numpy_helper.from_array(values(512), name)
        result = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
        return helper.make_graph([helper.make_node("Add", ["x", name], ["r"])], name, [], [result], [weight])

    node = helper.make_node("If", ["yes"], ["y"], then_branch=branch("u"), else_branch=branch(other))
    yes = helper.make_tensor_value_info("yes", TensorProto.BOOL, [])
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [512]) for name in "xy")
    model = helper.make_model(
        helper.make_graph([node], "net", [yes, x], [y]), opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    )
    path = tmp_path / "branches.onnx"
    onnx.save(model, str(path))
    return path


def test_weights_inside_a_subgraph_are_weights_like_others(tmp_path):
    path = branches(tmp_path)
    assert (
        "missing: u2 float32 [512]"
        in refused(tmp_path, path, save(tmp_path / "w.safetensors", {"u": values(512)})).what
    )
    _, written = export(tmp_path, path, save(tmp_path / "w.safetensors", {"u": values(512, seed=1), "u2": values(512)}))
    then = next(a.g for a in onnx.load(str(written)).graph.node[0].attribute if a.name == "then_branch")
    np.testing.assert_array_equal(numpy_helper.to_array(then.initializer[0]), values(512, seed=1))


def test_two_weights_of_one_name_in_two_branches_are_refused(tmp_path):
    error = refused(tmp_path, branches(tmp_path, other="u"), save(tmp_path / "w.safetensors", {"u": values(512)}))
    assert "two initializers of the model, in subgraphs, are called 'u'" in error.what


def test_sparse_weights_are_refused(tmp_path):
    path = net(tmp_path)
    model = onnx.load(str(path))
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(values(1), "s"), numpy_helper.from_array(np.array([2])), [4]
    )
    model.graph.sparse_initializer.append(sparse)
    onnx.save(model, str(path))
    assert "sparse weights" in refused(tmp_path, path, save(tmp_path / "w.safetensors", TRAINED)).what


def zipped(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("net/data.pkl", b"")


@pytest.mark.parametrize(
    ("make", "said", "todo"),
    [
        (zipped, "a zip archive, such as torch.save writes", "safetensors.torch.save_file"),
        (lambda path: path.write_bytes(pickle.dumps({"w": [1.0]})), "a pickle", "safetensors.torch.save_file"),
        (lambda path: np.save(path.open("wb"), values(4)), "an array of numpy", "safetensors.numpy.save_file"),
        (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS", "git lfs pull"),
        (lambda path: path.mkdir(), "a directory", "one of the files"),
        (lambda path: None, "no such file", "path of a safetensors file"),
        (lambda path: path.write_bytes(b""), "truncated", "again"),
        (lambda path: path.write_bytes(DIGITS.read_bytes()), "not a safetensors file", "again"),
        (lambda path: path.write_bytes((DATA / "digits.safetensors").read_bytes()[:-1]), "truncated", "again"),
        (lambda path: path.write_bytes((DATA / "digits.safetensors").read_bytes()[:500]), "truncated", "again"),
    ],
    ids=["zip", "pickle", "npy", "lfs", "directory", "missing", "empty", "onnx", "a byte short", "header cut"],
)
def test_what_is_no_safetensors_file_is_told_for_what_it_is(tmp_path, make, said, todo):
    path = tmp_path / "weights"
    make(path)
    error = refused(tmp_path, net(tmp_path), path)
    assert str(path) in error.what
    assert said in error.what
    assert todo in error.next_step


WHOLE = (DATA / "digits.safetensors").read_bytes()
HEADER_END = 8 + int.from_bytes(WHOLE[:8], "little")


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(
        st.integers(0, HEADER_END - 1), st.sampled_from(b'0129{}[],:"-.eE \\\x00\xff'), min_size=1, max_size=4
    )
)
def test_a_damaged_header_is_one_line_or_another_table_and_never_a_crash(tmp_path_factory, changes):
    content = bytearray(WHOLE)
    for place, byte in changes.items():
        content[place] = byte
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes(content)
    try:
        found = checkpoint.specs(checkpoint.read(path))
    except StageError as error:
        assert str(path) in error.what
        assert error.next_step
    else:
        assert all(isinstance(size, int) and size >= 0 for spec in found.values() for size in spec.shape)


FOUR = '{"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'


@pytest.mark.parametrize(
    "header",
    [
        "[" * 100_000,
        '{"\\ud800": ' + FOUR + "}",
        '{"a": ' + FOUR + ', "b": ' + FOUR + "}",
        '{"a": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [true], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": "1", "data_offsets": [0, 4]}}',
        '{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F16", "shape": [1], "data_offsets": [2, 4]}}',
        '{"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}',
    ],
    ids=["nested", "no text", "overlap", "infinite", "bool", "letters", "list of types", "gap", "rest"],
)
def test_a_header_that_cannot_be_true_is_refused(tmp_path, header):
    text = header.encode()
    (tmp_path / "w").write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    assert "not a safetensors file" in refused(tmp_path, net(tmp_path), tmp_path / "w").what


def test_no_pickle_is_ever_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    (tmp_path / "w.pt").write_bytes(pickle.dumps({"w": Trap()}))
    refused(tmp_path, net(tmp_path), tmp_path / "w.pt")
    assert not (tmp_path / "sprung").exists()
