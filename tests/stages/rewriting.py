"""What the tests of the stages that rewrite ONNX share: running a stage, a model, and a real TensorRT-RTX build."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import numpy_helper, parser

from stages import plan_graph
from stages.plan_graph import Operation
from stages.stage import Job, Metrics, Stage

DIGITS = Path(__file__).parents[2] / "conf" / "data" / "digits"
TARGETS = ("SM86", "SM120")

BUILD = """
import sys
import tensorrt_rtx as trt
path, capability, *out = sys.argv[1:]
logger = trt.Logger(trt.Logger.ERROR)
builder = trt.Builder(logger)
network = builder.create_network(0)
onnx_parser = trt.OnnxParser(network, logger)
assert onnx_parser.parse_from_file(path), [onnx_parser.get_error(i).desc() for i in range(onnx_parser.num_errors)]
config = builder.create_builder_config()
config.num_compute_capabilities = 1
config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
profile = builder.create_optimization_profile()
inputs = [network.get_input(i) for i in range(network.num_inputs)]
dynamic = [tensor for tensor in inputs if -1 in tuple(tensor.shape)]
for tensor in dynamic:
    profile.set_shape(tensor.name, *([size if d < 0 else d for d in tensor.shape] for size in (1, 4, 8)))
if dynamic:
    config.add_optimization_profile(profile)
plan = builder.build_serialized_network(network, config)
assert plan is not None, "the build failed"
if out:
    open(out[0], "wb").write(bytes(plan))
print(plan.nbytes)
"""


def rng() -> np.random.Generator:
    """The same numbers in every test, whatever ran before."""
    return np.random.default_rng(0)


def parsed(text: str, **weights: Any) -> onnx.ModelProto:
    """The model of `text` with `weights` as initializers; lists and float64 become float32."""
    model = parser.parse_model(text)
    for name, value in weights.items():
        array = np.asarray(value)
        array = array.astype(np.float32) if array.dtype == np.float64 else array
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def saved(model: onnx.ModelProto, path: Path) -> Path:
    onnx.save(model, str(path))
    return path


def run(
    stage: Stage[Any],
    out: Path,
    config: Any = None,
    data: Mapping[str, Any] | None = None,
    **inputs: Path | Sequence[Path],
) -> tuple[Path, Metrics]:
    """Runs `stage`, its data read as `data` says, and returns its output file and metrics."""
    out.mkdir(parents=True, exist_ok=True)
    files = {name: [given] if isinstance(given, Path) else list(given) for name, given in inputs.items()}
    config = config or stage.config()
    facts = {name: dict(data or {}) for name in (*stage.facts, *stage.facts_when(config))}
    metrics = stage.run(Job(config, files, facts, out))
    return out / next(iter(stage.outputs.values())), metrics


def outputs(model: onnx.ModelProto | Path, feeds: dict[str, Any]) -> list[Any]:
    """What ONNX Runtime computes, with every node as the model has it."""
    loaded = onnx.ModelProto()
    loaded.CopyFrom(onnx.load(str(model)) if isinstance(model, Path) else model)
    loaded.ir_version = min(loaded.ir_version, 13)  # the newest that ONNX Runtime 1.31 loads
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(loaded.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def sqnr(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Signal to quantization noise, dB."""
    noise = float(((reference - candidate) ** 2).sum())
    return 10 * np.log10(float((reference**2).sum()) / max(noise, 1e-30))


def plan_graph_of(path: Path, capability: str) -> list[Operation]:
    """Builds `path` as `plan_bytes` does and returns the operations of the plan."""
    plan = path.with_suffix(f".{capability}.plan")
    plan_bytes(path, capability, plan)
    return list(plan_graph.read(plan)[0].operations)


def plan_bytes(path: Path, capability: str, out: Path | None = None) -> int:
    """Builds `path` for `capability` in a child process; an assertion fails where TensorRT-RTX refuses it."""
    command = [sys.executable, "-c", BUILD, str(path), capability, *([str(out)] if out else [])]
    child = subprocess.run(command, capture_output=True, text=True)
    assert child.returncode == 0, f"{child.stdout}\n{child.stderr}"
    return int(child.stdout.split()[-1])


def ops(path: Path) -> list[str]:
    return [node.op_type for node in onnx.load(str(path)).graph.node]


def residual_block(rng: np.random.Generator, projection: bool = False) -> onnx.ModelProto:
    """Conv, Relu, Conv, Add with what came in (or a Conv of it), Relu, and a Gemm at the end."""
    shortcut = "shortcut = Conv<kernel_shape=[1, 1]>(stem, ws)" if projection else "shortcut = Identity(stem)"
    return parsed(
        f"""<ir_version: 10, opset_import: ["": 20]> block (float[batch, 4, 8, 8] x) => (float[batch, 5] y) {{
            stem_conv = Conv<pads=[1, 1, 1, 1]>(x, w0)
            stem = Relu(stem_conv)
            first_conv = Conv<pads=[1, 1, 1, 1]>(stem, w1)
            first = Relu(first_conv)
            second = Conv<pads=[1, 1, 1, 1]>(first, w2, b2)
            {shortcut}
            sum = Add(second, shortcut)
            joined = Relu(sum)
            pooled = GlobalAveragePool(joined)
            flat = Flatten(pooled)
            y = Gemm<transB=1>(flat, wg, bg)
        }}""",
        **{f"w{i}": rng.standard_normal((4, 4, 3, 3)) / 6 for i in range(3)},
        **({"ws": rng.standard_normal((4, 4, 1, 1)) / 2} if projection else {}),
        b2=rng.standard_normal(4),
        wg=rng.standard_normal((5, 4)),
        bg=rng.standard_normal(5),
    )
