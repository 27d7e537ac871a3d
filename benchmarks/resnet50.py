"""A ResNet-50 of random weights whose batch normalisation fits the images it is given, so that activations are sane.

Weights are He's; the scale of a normalisation is 0.5 to 1.5, that of the last of each block 0.1 to 0.5, as training
leaves them, and its shift is around 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

BLOCKS = ((3, 64), (4, 128), (6, 256), (3, 512))
EPSILON = 1e-5


class _Network:
    """The graph as it grows; with `fitting`, each normalisation takes its statistics from the batch and gives them."""

    def __init__(self, fitting: bool) -> None:
        self.fitting = fitting
        self.random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, Any] = {}
        self.norms: list[str] = []

    def node(self, kind: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def weight(self, name: str, values: Any) -> str:
        self.weights[name] = np.asarray(values, np.float32 if np.asarray(values).dtype.kind == "f" else np.int64)
        return name

    def conv(self, x: str, given: int, made: int, size: int, stride: int, last: bool = False) -> str:
        """Convolution and normalisation."""
        index, pad = len(self.norms), size // 2
        values = self.random.standard_normal((made, given, size, size)) * np.sqrt(2 / (given * size * size))
        found = self.node("Conv", [x, self.weight(f"w{index}", values)], strides=[stride] * 2, pads=[pad] * 4)
        scale = self.random.uniform(*((0.1, 0.5) if last else (0.5, 1.5)), made)
        shift = self.random.normal(0, 0.2, made)
        self.norms.append(f"norm{index}")
        if not self.fitting:
            names = [self.weight(f"norm{index}_scale", scale), self.weight(f"norm{index}_shift", shift)]
            statistics = [f"norm{index}_mean", f"norm{index}_var"]
            return self.node("BatchNormalization", [found, *names, *statistics], epsilon=EPSILON)
        axes = self.weight("axes", np.array([0, 2, 3]))
        mean = f"norm{index}_mean"
        self.nodes.append(helper.make_node("ReduceMean", [found, axes], [mean], keepdims=1))
        centred = self.node("Sub", [found, mean])
        var = f"norm{index}_var"
        self.nodes.append(
            helper.make_node("ReduceMean", [self.node("Mul", [centred, centred]), axes], [var], keepdims=1)
        )
        deviation = self.node("Sqrt", [self.node("Add", [var, self.weight("epsilon", EPSILON)])])
        columns = [
            self.weight(f"norm{index}_{what}", values.reshape(1, -1, 1, 1))
            for what, values in (("scale", scale), ("shift", shift))
        ]
        scaled = self.node("Mul", [self.node("Div", [centred, deviation]), columns[0]])
        return self.node("Add", [scaled, columns[1]])

    def block(self, x: str, given: int, inner: int, stride: int) -> str:
        """A bottleneck: 1 x 1, 3 x 3, 1 x 1, and the shortcut."""
        y = self.node("Relu", [self.conv(x, given, inner, 1, 1)])
        y = self.node("Relu", [self.conv(y, inner, inner, 3, stride)])
        y = self.conv(y, inner, 4 * inner, 1, 1, last=True)
        shortcut = self.conv(x, given, 4 * inner, 1, stride) if given != 4 * inner else x
        return self.node("Relu", [self.node("Add", [y, shortcut])])

    def build(self) -> onnx.ModelProto:
        x = self.node("Relu", [self.conv("x", 3, 64, 7, 2)])
        x, given = self.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4), 64
        for number, (blocks, inner) in enumerate(BLOCKS):
            for block in range(blocks):
                x, given = self.block(x, given, inner, 2 if number and not block else 1), 4 * inner
        x = self.node("Flatten", [self.node("GlobalAveragePool", [x])])
        classes = self.weight("classes", self.random.standard_normal((given, 1000)) / np.sqrt(given))
        self.nodes.append(helper.make_node("Gemm", [x, classes], ["logits"], "gemm"))
        shown = [f"{name}_{what}" for name in self.norms for what in ("mean", "var")] if self.fitting else []
        float32 = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            "resnet50",
            [helper.make_tensor_value_info("x", float32, ["batch", 3, 224, 224])],
            [helper.make_tensor_value_info("logits", float32, ["batch", 1000])]
            + [helper.make_tensor_value_info(name, float32, None) for name in shown],
            [numpy_helper.from_array(values, name) for name, values in self.weights.items()],
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)


def fitted(images: Any) -> onnx.ModelProto:
    """The network, its statistics those of `images`, (N, 3, 224, 224) in float32."""
    fitting = _Network(fitting=True).build()
    session = ort.InferenceSession(fitting.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()][1:]
    statistics = dict(zip(names, session.run(names, {"x": images}), strict=True))
    network = _Network(fitting=False)
    model = network.build()
    model.graph.initializer.extend(
        numpy_helper.from_array(values.reshape(-1), name) for name, values in statistics.items()
    )
    return model
