"""`trtforge refit`: new weights for a model that was built, and weights that are another model's."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from conf.compose import compose
from conf.errors import ConfigError
from pipelines import new_weights
from tests.pipelines import planning
from tests.pipelines.conftest import Forge
from tests.pipelines.training import DATA, DIGITS, train
from tests.stages.checkpoints import save, weights_of

pytestmark = pytest.mark.xdist_group("new weights")  # they share one build and one training

RUN = ("runner=local", "flow=refit", "targets=[l4]")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint, and the same as an ONNX file."""
    return train(tmp_path_factory.mktemp("trained"))


@pytest.fixture(scope="module")
def forge(tmp_path_factory):
    """A command line with a store in which the digits are built so that they can be refitted."""
    found = Forge(tmp_path_factory.mktemp("refit"))
    ran = found("build", "--json", *RUN)
    assert ran.code == 0, ran.err
    return found


def tree(directory):
    return {path.relative_to(directory): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")}


def published(forge):
    (path,) = forge.store.glob("published/digits/sm_89/*/refit/model.plan")
    return digest(path)


def digest(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def test_a_step_of_training_makes_every_weight_another_one_of_a_network_that_still_works(trained):
    before, after = (weights_of(onnx.load(str(path))) for path in (DIGITS, trained[1]))
    assert before.keys() == after.keys()
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {name for name in before if "running" not in name}


def test_new_weights_run_all_but_the_build_and_the_new_plan_comes_in_place_of_the_old_once_no_gate_says_no(
    forge, trained
):
    old = forge("status", "--json", *RUN).document
    (before,) = old["plans"]
    refit = ("refit", "--json", "--weights", str(trained[0]), *RUN)
    ran = forge(*refit, "gates.plan_bytes=1000")
    assert ran.code == 3, ran.err
    assert ran.states() == {
        **dict.fromkeys(("export", "surgery", "split", "refit[l4]", "validate[l4]"), "built"),
        "build[l4]": "cached",
        "publish[l4]": "skipped",
    }
    metrics = ran.step("refit", "l4")["metrics"]
    assert metrics["method"] == "rebuild"
    assert "no GPU of 8.9 here" in metrics["reason"]
    judged = ran.step("validate", "l4")["metrics"]
    assert judged["accuracy"] == judged["accuracy_reference"] >= 0.98
    assert published(forge) == before["digest"]

    ran = forge(*refit)
    assert {name for name, state in ran.states().items() if state != "cached"} == {"publish[l4]"}
    (plan,) = ran.document["plans"]
    assert plan["validated"] is True
    assert published(forge) == plan["digest"] != before["digest"]
    # The same questions have the same keys, whoever asks.
    assert set(forge.status(*RUN, f"model.weights={trained[0]}").states().values()) == {"cached"}
    # The ONNX file that was exported with these weights is the same model from there on, under its old name.
    again = forge("refit", "--json", "--weights", str(trained[1]), *RUN)
    assert {name for name, state in again.states().items() if state != "cached"} == {"export"}
    assert again.document["plans"] == ran.document["plans"]

    # What was served before is still there, under the key that it has had, and served again where it is asked for.
    key = next(step["key"] for step in old["steps"] if step["step"] == "refit")
    assert forge("inspect", key, "--json").document["outputs"]["plan"]["digest"] == before["digest"]
    assert forge("rollback", "digits").code == 0
    assert published(forge) == before["digest"]


def test_weights_of_another_model_are_a_table_and_nothing_is_stored(forge):
    weights = weights_of(onnx.load(str(DIGITS)))
    bias, stem = weights.pop("classify.bias"), weights["stem.0.weight"]
    save(forge.home / "w.safetensors", {**weights, "head.bias": bias, "stem.0.weight": stem.astype(np.float16)})
    before = tree(forge.store)
    ran = forge("refit", "--weights", "w.safetensors", *RUN)
    assert ran.code == 2
    assert [line.split() for line in ran.out.splitlines()] == [
        ["tensor", "is", "the", "model", "has", "the", "weights", "have"],
        ["classify.bias", "missing", "float32", "[10]", "-"],
        ["head.bias", "extra", "-", "float32", "[10]"],
        ["stem.0.weight", "different", "float32", "[32,", "1,", "3,", "3]", "float16", "[32,", "1,", "3,", "3]"],
    ]
    assert ran.err.splitlines()[0] == (
        "error: w.safetensors does not fit model digits: 1 missing, 1 extra, 1 different"
    )
    assert len(ran.err.splitlines()) == 2
    as_json = forge("refit", "--json", "--weights", "w.safetensors", *RUN)
    assert (as_json.code, as_json.document["ok"]) == (2, False)
    assert [(each["name"], each["kind"]) for each in as_json.document["mismatch"]] == [
        ("classify.bias", "missing"), ("head.bias", "extra"), ("stem.0.weight", "different"),
    ]  # fmt: skip
    assert as_json.document["mismatch"][2] == {
        "name": "stem.0.weight", "kind": "different",
        "want": {"dtype": "float32", "shape": [32, 1, 3, 3]}, "got": {"dtype": "float16", "shape": [32, 1, 3, 3]},
    }  # fmt: skip
    assert tree(forge.store) == before


def test_where_nothing_may_be_rebuilt_and_no_gpu_is_here_no_machine_can_do_it_and_nothing_is_stored(tmp_path, trained):
    forge = Forge(tmp_path)
    ran = forge("refit", "--weights", str(trained[0]), "runner=local", "targets=[l4]", "refit.fallback=fail")
    assert ran.code == 4, ran.err
    assert "no plan can be refitted here: target l4" in ran.err
    assert not list(forge.store.glob("objects/*/*"))


def swapped(weights, *given):
    return new_weights.overrides(Path(weights), given, [])


def refused(weights, *given):
    with pytest.raises(ConfigError) as caught:
        swapped(weights, *given)
    assert "\n" not in caught.value.what + caught.value.next_step
    return caught.value


def test_a_flow_that_takes_its_weights_last_stays_as_it_is_and_another_becomes_one(trained):
    weights = f"model.weights='{trained[0]}'"
    assert swapped(trained[0], "flow=fp16") == ["flow=fp16", "refit=true", weights]
    assert swapped(trained[0], "flow=refit") == ["flow=refit", weights]
    assert swapped(trained[0], "refit=any") == ["refit=any", weights]


def test_an_onnx_file_comes_in_place_of_the_old_one_under_the_name_the_model_had(tmp_path, trained):
    given = ("model=onnx", f"model.path={shutil.copy(DIGITS, tmp_path / 'net.onnx')}", f"model.weights={trained[0]}")
    config = compose(swapped(trained[1], *given))
    assert (config.model.name, config.model.path, config.model.weights) == ("net", str(trained[1]), None)


@pytest.mark.parametrize("name", ["with a space", "don't", "a=b,c", "(1)", "über", "$HOME"])
def test_a_path_is_taken_as_it_is(tmp_path, name):
    path = shutil.copy(DATA / "digits.safetensors", tmp_path / f"{name}.safetensors")
    assert compose(swapped(path)).model.weights == str(path)


def pickled(path):
    path.write_bytes(pickle.dumps({"w": [1.0]}))


@pytest.mark.parametrize(
    ("name", "make", "said", "todo"),
    [
        ("w.pt", pickled, "a pickle can run code, and is never loaded", "safetensors.torch.save_file"),
        ("w.safetensors", pickled, "a pickle, which can run code and is never loaded", "safetensors.torch.save_file"),
        ("w.npz", pickled, "neither a .safetensors nor an .onnx file", "--weights"),
        ("weights", pickled, "neither a .safetensors nor an .onnx file", "--weights"),
        ("w.safetensors", lambda path: None, "no such file", "path"),
        ("w.safetensors", lambda path: path.mkdir(), "a directory", "files in it"),
        ("w.safetensors", lambda path: path.write_bytes(b"\1\0\0\0\0\0\0\0{"), "not a safetensors file", "again"),
        ("w.onnx", lambda path: None, "no such file", "path"),
        ("w.onnx", lambda path: path.mkdir(), "a directory", "no .onnx file in it"),
        ("w.onnx", lambda path: path.write_bytes(DIGITS.read_bytes()[:9999]), "truncated", "again"),
    ],
)
def test_what_cannot_be_weights_is_one_line(tmp_path, name, make, said, todo):
    make(tmp_path / name)
    error = refused(tmp_path / name)
    assert str(tmp_path / name) in error.what
    assert said in error.what
    assert todo in error.next_step


def test_a_wrong_call_ends_with_two(tmp_path):
    forge = Forge(tmp_path)
    for arguments in (("--weights", "nope.safetensors"), ("--weights", "w.pt"), ()):
        ran = forge("refit", "--json", *arguments)
        assert ran.code == 2
        assert ran.document["ok"] is False
        assert ran.err.count("error: ") == 1
    assert not forge.store.exists()


def changed(path, change):
    model = onnx.load(str(DIGITS))
    change(model)
    onnx.save(model, str(path))
    return path


def test_an_onnx_file_with_other_tensors_is_compared_by_name_shape_and_type(tmp_path):
    def widen(model):
        bias = next(tensor for tensor in model.graph.initializer if tensor.name == "classify.bias")
        bias.CopyFrom(onnx.numpy_helper.from_array(np.zeros(11, np.float32), "classify.bias"))

    error = refused(changed(tmp_path / "new.onnx", widen))
    assert isinstance(error, new_weights.MismatchError)
    assert [(each.name, each.kind) for each in error.differences] == [("classify.bias", "different")]
    assert error.next_step.endswith(f"trtforge build model.path={tmp_path / 'new.onnx'}")


def test_an_onnx_file_of_another_structure_is_refused_with_the_nodes_and_the_way_to_build_it(tmp_path):
    def pad(model):
        node = next(node for node in model.graph.node if node.op_type == "Conv")
        next(attribute for attribute in node.attribute if attribute.name == "strides").ints[:] = [2, 2]

    name = next(node.name for node in onnx.load(str(DIGITS)).graph.node if node.op_type == "Conv")
    error = refused(changed(tmp_path / "new.onnx", pad))
    assert isinstance(error, new_weights.MismatchError)
    assert "has another structure than model digits" in error.what
    assert any(name in change for change in error.changes)
    assert json.loads(json.dumps(error.document()))["structure"] == list(error.changes)
    assert "trtforge build model.path=" in error.next_step


TORCH = ("model.source=torch", f"model.weights={DATA / 'digits.safetensors'}")


def test_weights_of_a_torch_module_are_held_against_those_it_was_built_with(tmp_path, trained):
    assert swapped(trained[0], *TORCH)[-1] == f"model.weights='{trained[0]}'"  # num_batches_tracked is not asked for
    other = save(tmp_path / "other.safetensors", {"stem.0.weight": np.zeros((32, 1, 5, 5), np.float32)})
    error = refused(other, *TORCH)
    assert isinstance(error, new_weights.MismatchError)
    assert {each.kind for each in error.differences} == {"missing", "different"}
    # Nothing to hold them against, without running the user's code: the stage export does.
    assert swapped(other, "model.source=torch", "model.weights=null")[-1] == f"model.weights='{other}'"
    (tmp_path / "earlier.pt").write_bytes(pickle.dumps({}))
    assert swapped(other, "model.source=torch", f"model.weights={tmp_path / 'earlier.pt'}")


def test_an_onnx_file_is_no_weights_of_a_torch_module(trained):
    error = refused(trained[1], *TORCH)
    assert "model.source=torch" in error.what
    assert ".safetensors" in error.next_step


def test_the_content_of_a_checkpoint_is_in_the_key_of_the_export_named_by_the_flow_or_not(tmp_path, trained):
    def key(*overrides):
        return planning.keys(planning.plan(tmp_path / "store", ["targets=[l4]", "flow=fp32", *overrides]))["export"]

    moved = shutil.copy(trained[0], tmp_path / "moved.safetensors")
    plain, earlier, new = key(), key(f"model.weights={DATA / 'digits.safetensors'}"), key(f"model.weights={trained[0]}")
    assert len({plain, earlier, new}) == 3
    assert key(f"model.weights={moved}") == new
    assert key(f"model.weights={moved}", "~steps.export.inputs.weights") == new


def test_a_flow_that_takes_the_onnx_file_as_it_is_cannot_have_a_checkpoint(tmp_path):
    ran = Forge(tmp_path)(
        "build", "runner=local", "flow=fp32", "targets=[l4]", "steps.surgery.inputs.onnx=model.onnx",
        f"model.weights={DATA / 'digits.safetensors'}",
    )  # fmt: skip
    assert ran.code == 2
    assert "steps.surgery.inputs.onnx=model.onnx" in ran.err
    assert "steps.surgery.inputs.onnx=export.onnx" in ran.err
