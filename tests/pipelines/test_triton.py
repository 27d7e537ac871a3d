"""Triton's model repository: a text protobuf that Triton's own schema reads, and the plans by capability."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format
from onnx import TensorProto, helper

from artifacts.digest import of_file
from artifacts.record import Blob, Record
from artifacts.store import Store
from conf.errors import ConfigError
from pipelines import triton
from stages.stage import StageError
from tests.artifacts.test_store import add

SCHEMA: Mapping[str, Mapping[str, tuple[int, str]]] = {
    "ModelConfig": {
        "name": (1, "string"),
        "platform": (2, "string"),
        "max_batch_size": (4, "int32"),
        "input": (5, "*Input"),
        "output": (6, "*Input"),
        "instance_group": (7, "*Group"),
        "cc_model_filenames": (9, "*Entry"),
        "parameters": (14, "*Parameter"),
    },
    "Input": {
        "name": (1, "string"),
        "data_type": (2, "DataType"),
        "dims": (4, "*int64"),
        "reshape": (5, "Shape"),
        "is_shape_tensor": (6, "bool"),
    },
    "Shape": {"shape": (1, "*int64")},
    "Group": {"kind": (4, "Kind"), "profile": (5, "*string")},
    "Entry": {"key": (1, "string"), "value": (2, "string")},
    "Parameter": {"key": (1, "string"), "value": (2, "Value")},
    "Value": {"string_value": (1, "string")},
}
"""What the configuration uses of Triton's `ModelConfig`: names and numbers of `model_config.proto`."""

ENUMS = {"DataType": triton.TYPES.values(), "Kind": ["KIND_AUTO", "KIND_GPU"]}


def read(path: Path) -> Any:
    """The configuration, as a protobuf of that schema reads it."""
    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="model_config.proto", package="t", syntax="proto3")
    for name, values in ENUMS.items():
        own = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            own.value.add(name=value, number=number)
    for name, fields in SCHEMA.items():
        message = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            label = kinds.LABEL_REPEATED if kind[0] == "*" else kinds.LABEL_OPTIONAL
            made = message.field.add(name=field, number=number, label=label)
            plain = kind.lstrip("*")
            if plain in SCHEMA or plain in ENUMS:
                made.type, made.type_name = (kinds.TYPE_MESSAGE if plain in SCHEMA else kinds.TYPE_ENUM), f".t.{plain}"
            else:
                made.type = getattr(kinds, f"TYPE_{plain.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    config = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))()
    return text_format.Parse(path.read_text(), config)


def shapes(**dims: list[int]) -> dict[str, Any]:
    return {"min": dims["least"], "opt": dims["least"], "max": dims["most"]}


class Published:
    """A store with a published plan for each capability, of a model with these inputs and outputs."""

    def __init__(self, root: Path) -> None:
        self.store, self.root, self.notes = Store(root / "store"), root, list[str]()

    def record(
        self,
        capability: str,
        inputs: Mapping[str, Any],
        outputs: Mapping[str, Any],
        profiles: Mapping[str, Any],
        content: bytes = b"plan",
        dtype: int = TensorProto.FLOAT,
        backend: str = "tensorrt",
    ) -> Record:
        graph = helper.make_graph(
            [],
            "g",
            [helper.make_tensor_value_info(name, dtype, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, dtype, shape) for name, shape in outputs.items()],
        )
        model = add(self.store, helper.make_model(graph).SerializeToString())
        plan = add(self.store, content + capability.encode())
        facts = {"profiles": profiles, "compute_capability": capability, "backend": backend}
        asked = {"stage": "build", "inputs": {"onnx": model.digest}, "facts": facts, "config": content.decode()}
        self.store.put(Record(asked, {"plan": plan}))
        fields = {"stage": "publish", "inputs": {"plan": plan.digest}, "facts": facts, "config": {"model": "net"}}
        made = Record(fields, {"plan": plan, "manifest": add(self.store, b"{}")})
        self.store.put(made)
        return made

    def write(self, *records: Record) -> list[Path]:
        return triton.write(self.store, self.root / "repository", records, self.notes.append)


@pytest.fixture
def published(tmp_path: Path) -> Published:
    return Published(tmp_path)


BATCHED = {"x": shapes(least=[1, 3, 8, 8], most=[32, 3, 8, 64])}
NET = ({"x": ["batch", 3, 8, "width"]}, {"y": ["batch", 10]}, {"default": BATCHED})


def test_plans_of_several_gpus_are_one_model(published: Published) -> None:
    records = [published.record("8.9", *NET), published.record("8.0,8.6", *NET)]
    config, *plans = published.write(*records)
    found = read(config)
    assert (found.name, found.platform, found.max_batch_size) == ("net", "tensorrt_plan", 32)
    assert [(each.name, list(each.dims)) for each in (*found.input, *found.output)] == [("x", [3, 8, -1]), ("y", [10])]
    assert list(triton.TYPES.values())[found.input[0].data_type] == "TYPE_FP32"
    files = {each.key: each.value for each in found.cc_model_filenames}
    assert files == {"8.0": "sm_80_86.plan", "8.6": "sm_80_86.plan", "8.9": "sm_89.plan"}
    assert {each.key: each.value.string_value for each in found.parameters}["trtforge_key_8.9"] == records[0].key
    assert [path.relative_to(published.root).as_posix() for path in plans] == [
        "repository/net/1/sm_80_86.plan",
        "repository/net/1/sm_89.plan",
    ]
    assert of_file(plans[1]) == records[0].outputs["plan"].digest
    assert published.notes == []


def test_other_plans_are_another_version_and_the_same_are_not(published: Published) -> None:
    first, second = published.record("8.9", *NET), published.record("8.9", *NET, content=b"newer")
    for record, version in ((first, "1"), (first, "1"), (second, "2"), (first, "3")):
        assert published.write(record)[1].parent.name == version
    assert sorted(path.name for path in (published.root / "repository/net").iterdir()) == [
        "1",
        "2",
        "3",
        "config.pbtxt",
    ]


@pytest.mark.parametrize(
    ("inputs", "outputs", "profiles", "batch", "dims"),
    [
        ({"x": [4, 8]}, {"y": [4, 2]}, {}, 0, [4, 8]),
        ({"x": ["n", 8]}, {"y": ["m", 2]}, {"default": {"x": shapes(least=[1, 8], most=[9, 8])}}, 0, [-1, 8]),
        ({"x": ["n", 8]}, {"y": ["n"]}, {"default": {"x": shapes(least=[2, 8], most=[9, 8])}}, 0, [-1, 8]),
        ({"x": ["n", 8]}, {"y": ["n"]}, {"default": {"x": shapes(least=[1, 8], most=[9, 8])}}, 9, [8]),
    ],
    ids=["fixed", "other name", "not one", "batched"],
)
def test_samples_are_put_together_only_where_every_tensor_and_profile_takes_that(
    inputs: Any, outputs: Any, profiles: Any, batch: int, dims: list[int], published: Published
) -> None:
    found = read(published.write(published.record("8.9", inputs, outputs, profiles))[0])
    assert (found.max_batch_size, list(found.input[0].dims)) == (batch, dims)


def test_a_number_for_each_sample_is_told_as_one_dim_and_reshaped(published: Published) -> None:
    profiles = {"default": {"x": shapes(least=[1, 8], most=[9, 8])}}
    found = read(published.write(published.record("8.9", {"x": ["n", 8]}, {"y": ["n"]}, profiles))[0])
    assert (list(found.output[0].dims), list(found.output[0].reshape.shape)) == ([1], [])
    assert found.output[0].HasField("reshape")


def test_shape_tensors_and_several_profiles_are_told(published: Published) -> None:
    sizes = {"min": [1, 8], "opt": [1, 8], "max": [4, 64], "values": True}
    profile = {"x": shapes(least=[1, 3], most=[8, 3]), "sizes": sizes}
    inputs = {"x": ["n", 3], "sizes": [2]}
    record = published.record("8.9", inputs, {"y": ["n", 3]}, {"one": profile, "two": profile}, dtype=TensorProto.INT64)
    found = read(published.write(record)[0])
    assert [(each.name, each.is_shape_tensor) for each in found.input] == [("x", False), ("sizes", True)]
    assert (found.max_batch_size, list(found.instance_group[0].profile)) == (0, ["0", "1"])


def test_names_are_quoted(published: Published) -> None:
    name = 'a "b"\\c'
    found = read(published.write(published.record("8.9", {name: [1]}, {"é": [1]}, {}))[0])
    assert (found.input[0].name, found.output[0].name) == (name, "é")


def test_plans_of_tensorrt_rtx_are_written_with_a_word_about_the_server(published: Published) -> None:
    published.write(published.record("8.9", *NET, backend="tensorrt_rtx"))
    assert published.notes == [triton.NOT_TENSORRT]


def test_two_plans_for_one_capability_are_refused(published: Published) -> None:
    records = [published.record("8.9", *NET), published.record("8.9", *NET, content=b"other")]
    with pytest.raises(ConfigError, match=r"two plans are for 8\.9"):
        published.write(*records)


def test_what_triton_has_no_word_for_is_refused(published: Published) -> None:
    record = published.record("8.9", *NET, dtype=TensorProto.FLOAT8E4M3FN)
    with pytest.raises(StageError, match="Triton cannot serve it: 'x' has the type float8_e4m3fn"):
        published.write(record)


def test_a_plan_whose_model_is_gone_is_refused(published: Published) -> None:
    record = published.record("8.9", *NET)
    for built in map(published.store.record, published.store.recorded()):
        if built and built.fields["stage"] == "build":
            published.store.path(Blob(built.fields["inputs"]["onnx"], 0)).unlink()
    with pytest.raises(StageError, match="the ONNX file behind it is gone"):
        published.write(record)


def test_a_directory_that_cannot_be_written_is_named(published: Published) -> None:
    (published.root / "repository").write_text("a file")
    with pytest.raises(ConfigError, match=r"--triton .*repository: Not a directory"):
        published.write(published.record("8.9", *NET))


def test_a_plan_that_was_refitted_takes_what_the_model_behind_it_takes(published: Published) -> None:
    built = published.record("8.9", *NET)
    stripped, plan = built.outputs["plan"], add(published.store, b"refitted")
    fields = {"stage": "refit", "inputs": {"plan": stripped.digest}, "facts": {}}
    published.store.put(Record(fields, {"plan": plan}))
    again = Record({**built.fields, "inputs": {"plan": plan.digest}}, {"plan": plan})
    published.store.put(again)
    assert read(published.write(again)[0]).max_batch_size == 32


def test_the_types_are_numpys() -> None:
    assert all(np.dtype(name) for name in triton.TYPES if name != "bfloat16")
    assert onnx.helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16).name == "bfloat16"
