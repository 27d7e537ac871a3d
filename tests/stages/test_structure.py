from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from stages import structure
from stages.structure_changes import changes
from tests.stages.stage_runs import classifier, model


def structure_of(proto: onnx.ModelProto) -> onnx.ModelProto:
    return structure.split(proto)[0]


def written(proto: onnx.ModelProto) -> bytes:
    return structure_of(proto).SerializeToString(deterministic=True)


def copied(proto: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.ModelProto.FromString(proto.SerializeToString())


Random = Any


def random_model(random: Random) -> onnx.ModelProto:
    """A graph of 3 to 12 nodes over one input, with weights, an int initializer and an attribute on every third."""
    known, nodes, weights = ["x"], [], {}
    for number in range(random.randint(3, 12)):
        name, output = f"node{number}", f"tensor{number}"
        source = random.choice(known)
        match random.randrange(4):
            case 0:
                nodes.append(helper.make_node("Add", [source, random.choice(known)], [output], name=name))
            case 1:
                weights[f"w{number}"] = np.full((4, 4), number, np.float32)
                nodes.append(helper.make_node("MatMul", [source, f"w{number}"], [output], name=name))
            case 2:
                nodes.append(helper.make_node("LeakyRelu", [source], [output], name=name, alpha=number / 10))
            case _:
                weights[f"shape{number}"] = np.array([4, 4], np.int64)
                nodes.append(helper.make_node("Reshape", [source, f"shape{number}"], [output], name=name, allowzero=0))
        known.append(output)
    made = model(nodes, {"x": [4, 4]}, {known[-1]: [4, 4]}, weights)
    if not made.graph.initializer:
        made.graph.initializer.append(numpy_helper.from_array(np.zeros((4, 4), np.float32), "unused"))
    return made


def meaning(proto: onnx.ModelProto) -> Any:
    """What `proto` says, told another way than by its canonical form: each output as the expression that it is."""
    graph = proto.graph
    makers = {name: node for node in graph.node for name in node.output}
    initializers = {tensor.name: tensor for tensor in graph.initializer}

    def told(name: str) -> Any:
        if name in initializers:
            tensor = initializers[name]
            kept = None if tensor.data_type == TensorProto.FLOAT else numpy_helper.to_array(tensor).tolist()
            return (name, tensor.data_type, tuple(tensor.dims), str(kept))
        if name not in makers:
            return name
        node = makers[name]
        attributes = sorted((each.name, str(helper.get_attribute_value(each))) for each in node.attribute)
        return (node.name, node.op_type, list(node.output).index(name), attributes, *map(told, node.input))

    face = [value.SerializeToString() for value in (*graph.input, *graph.output)]
    opsets = sorted((each.domain, each.version) for each in proto.opset_import)
    return (face, opsets, [told(value.name) for value in graph.output])


def reorder(proto: onnx.ModelProto, random: Random) -> None:
    tensors = list(proto.graph.initializer)
    random.shuffle(tensors)
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(tensors)
    rest, ready, ordered = list(proto.graph.node), {"x", *(t.name for t in tensors)}, []
    while rest:
        node = random.choice([each for each in rest if set(each.input) <= ready])
        rest.remove(node)
        ordered.append(node)
        ready.update(node.output)
    del proto.graph.node[:]
    proto.graph.node.extend(ordered)


def rename_between(proto: onnx.ModelProto, random: Random) -> None:
    outputs = {value.name for value in proto.graph.output}
    between = [name for node in proto.graph.node for name in node.output if name not in outputs]
    news = {name: f"other{random.randrange(10**9)}_{number}" for number, name in enumerate(between)}
    for node in proto.graph.node:
        node.input[:] = [news.get(name, name) for name in node.input]
        node.output[:] = [news.get(name, name) for name in node.output]


def say(proto: onnx.ModelProto, random: Random) -> None:
    proto.producer_name, proto.doc_string, proto.model_version = "somebody", "a model", random.randrange(1, 99)
    proto.graph.name, proto.graph.doc_string = "another", "a graph"
    proto.metadata_props.add(key="epoch", value="7")
    node = random.choice(proto.graph.node)
    node.doc_string = "a stack trace"
    node.metadata_props.add(key="namespace", value="net.layer")
    proto.graph.value_info.append(helper.make_tensor_value_info(node.output[0], TensorProto.FLOAT, [4, 4]))


def train(proto: onnx.ModelProto, random: Random) -> None:
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor) + np.float32(random.random())
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def forget(proto: onnx.ModelProto, random: Random) -> None:
    proto.graph.node.append(
        helper.make_node("Neg", [random.choice(proto.graph.node).output[0]], ["nobody"], name="dead")
    )


def attribute(proto: onnx.ModelProto, random: Random) -> None:
    for node in random.sample(list(proto.graph.node), len(proto.graph.node)):
        for each in node.attribute:
            if each.name == "alpha":
                each.f += 0.5
                return


def edge(proto: onnx.ModelProto, random: Random) -> None:
    number = random.randrange(1, len(proto.graph.node))
    before = ["x", *(node.output[0] for node in list(proto.graph.node)[:number])]
    proto.graph.node[number].input[0] = random.choice(before)


def shape(proto: onnx.ModelProto, random: Random) -> None:
    tensor = random.choice(proto.graph.initializer)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(values.reshape(1, *values.shape), tensor.name))


def integers(proto: onnx.ModelProto, random: Random) -> None:
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.INT64:
            tensor.CopyFrom(numpy_helper.from_array(np.array([2, random.choice([4, 8])], np.int64), tensor.name))


def dtype(proto: onnx.ModelProto, random: Random) -> None:
    tensor = random.choice(proto.graph.initializer)
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.int32), tensor.name))


def operator(proto: onnx.ModelProto, random: Random) -> None:
    node = random.choice(proto.graph.node)
    if node.op_type == "Add":
        node.op_type = "Mul"


def opset(proto: onnx.ModelProto, random: Random) -> None:
    proto.opset_import[0].version = random.choice([21, 22])


def interface(proto: onnx.ModelProto, random: Random) -> None:
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = random.choice([4, 5])


NEUTRAL = (reorder, rename_between, say, train, forget)
EDITS = (*NEUTRAL, attribute, edge, shape, integers, dtype, operator, opset, interface)


@settings(max_examples=150, deadline=None)
@given(st.randoms(use_true_random=False), st.lists(st.sampled_from(EDITS), min_size=1, max_size=4))
def test_edits_change_the_digest_exactly_when_they_change_the_structure(
    random: Random, edits: list[Callable[..., None]]
) -> None:
    before = random_model(random)
    after = copied(before)
    for each in edits:
        each(after, random)
    same = meaning(before) == meaning(after)
    assert (written(before) == written(after)) == same
    assert (changes(structure_of(before), structure_of(after)) == []) == same


def test_a_structure_keeps_every_initializer_by_name_type_and_shape_without_its_values(tmp_path: Path) -> None:
    given = onnx.load(classifier(tmp_path / "m.onnx"))
    made = structure_of(given)
    told = [(t.name, t.data_type, list(t.dims)) for t in made.graph.initializer]
    assert told == sorted((t.name, t.data_type, list(t.dims)) for t in given.graph.initializer)
    assert [t.name for t in structure.empty(made)] == ["g", "w"]
    assert written(made) == written(given)


def test_what_steers_a_layer_is_no_weight_and_what_shapes_come_from_neither() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["a"], name="matmul"),
        helper.make_node("Clip", ["a", "low", "high"], ["b"], name="clip"),
        helper.make_node("Shape", ["b"], ["s"], name="shape"),
        helper.make_node("Cast", ["s"], ["f"], name="float", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["f", "half"], ["h"], name="halve"),
        helper.make_node("Cast", ["h"], ["i"], name="int", to=TensorProto.INT64),
        helper.make_node("Expand", ["one", "i"], ["e"], name="expand"),
        helper.make_node("Add", ["b", "e"], ["y"], name="add"),
    ]
    values = {name: np.array(value, np.float32) for name, value in (("low", 0), ("high", 6), ("half", 1), ("one", 1))}
    made = model(nodes, {"x": [4, 4]}, {"y": [4, 4]}, {"w": np.eye(4, dtype=np.float32), **values})
    assert structure.weights(made) == {"w", "one"}


def test_weights_that_a_subgraph_reads_or_an_unknown_operator_takes_stay_in_the_structure() -> None:
    branch = helper.make_graph(
        [helper.make_node("Add", ["c", "inner"], ["t"])], "then", [], [helper.make_tensor_value_info("t", 1, [4])]
    )
    nodes = [
        helper.make_node("If", ["yes"], ["c2"], name="if", then_branch=branch, else_branch=branch),
        helper.make_node("Foo", ["c2", "odd"], ["d"], name="foo", domain="acme"),
        helper.make_node("Add", ["d", "w"], ["y"], name="add"),
    ]
    weights = {name: np.ones(4, np.float32) for name in ("inner", "odd", "w")}
    made = model(nodes, {"c": [4]}, {"y": [4]}, {**weights, "yes": np.array(True)})
    assert structure.weights(made) == {"w"}


def test_a_long_chain_needs_no_deep_stack() -> None:
    nodes = [helper.make_node("Relu", [f"t{n}" if n else "x"], [f"t{n + 1}"]) for n in range(5000)]
    made = structure_of(model(nodes, {"x": [1]}, {"t5000": [1]}))
    assert [node.output[0] for node in made.graph.node[-2:]] == ["t4998_0", "t5000"]


def pad_more(made: onnx.ModelProto) -> str:
    made.graph.node[1].attribute[0].ints[0] = 2
    return "node conv0: attribute pads [1, 1, 1, 1] -> [2, 1, 1, 1]"


def change_operator(made: onnx.ModelProto) -> str:
    made.graph.node[2].op_type = "Sigmoid"
    return "node relu0: Relu -> Sigmoid"


def change_name(made: onnx.ModelProto) -> str:
    made.graph.node[2].name = "relu1"
    return "node relu0: gone (Relu)"


def skip_relu(made: onnx.ModelProto) -> str:
    made.graph.node[3].input[0] = "c"
    return "node flatten0: reads ['relu0'] -> ['conv0']"


def change_opset(made: onnx.ModelProto) -> str:
    made.opset_import[0].version = 21
    return "opset 22 -> 21"


def widen(made: onnx.ModelProto) -> str:
    made.graph.initializer[1].dims[1] = 6
    return "initializer g: float [512, 5] -> float [512, 6]"


def take_more_channels(made: onnx.ModelProto) -> str:
    made.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5
    return "input x: float [n, 4, 8, 8] -> float [n, 5, 8, 8]"


@pytest.mark.parametrize(
    "edit", [pad_more, change_operator, change_name, skip_relu, change_opset, widen, take_more_channels]
)
def test_a_change_is_told_by_node_attribute_and_values(tmp_path: Path, edit: Callable[[onnx.ModelProto], str]) -> None:
    before = onnx.load(classifier(tmp_path / "m.onnx"))
    after = copied(before)
    told = edit(after)
    assert told in changes(structure_of(before), structure_of(after))
