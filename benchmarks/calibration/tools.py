"""What is measured, each in a process that does nothing else.

    python -m benchmarks.calibration.tools TOOL MODEL_FOLDER SAMPLES OUT

prints a line of JSON: what the process took, and the quantized models by algorithm. `ours` runs each stage in a process
of its own, as trtforge does, calibrates once and makes a model with each algorithm; the CPU seconds of one are those of
all that it needs, the start of three processes included. Activations are symmetric and per
tensor, weights per channel, biases stay in float: what TensorRT takes. Of onnxruntime only the operators are quantized
that the others quantize: with all of them its models are worse.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from stages import STAGES, calibrate, quantize, ranges
from stages.stage import Job, Metrics

OURS = "ours"
TOOLS = (
    OURS,
    "onnxruntime minmax",
    "onnxruntime entropy",
    "onnxruntime percentile",
    "modelopt max",
    "modelopt entropy",
)
ALGORITHMS = ("auto", "mse", "percentile", "max", "entropy")


def peak_bytes() -> int:
    """The largest resident set of this process; `ru_maxrss` would begin with that of the parent."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


@dataclass(frozen=True)
class Step:
    """What a stage gave and took, in a process of its own."""

    metrics: Metrics
    cpu_s: float
    peak: int


def _step(name: str, config: Any, inputs: dict[str, Sequence[Path]], out: Path) -> Step:
    """Runs a stage as trtforge does: in a process that does nothing else."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        return pool.submit(_here, name, config, inputs, out).result()


def _here(name: str, config: Any, inputs: dict[str, Sequence[Path]], out: Path) -> Step:
    out.mkdir(exist_ok=True)
    stage = STAGES[name]
    metrics = stage.run(Job(config, inputs, {"calibration": {}}, out))
    return Step(metrics, time.process_time(), peak_bytes())


def ours(folder: Path, files: Sequence[Path], out: Path) -> dict[str, Any]:
    """The stages `calibrate`, `ranges` and `quantize`."""
    onnx: dict[str, Sequence[Path]] = {"onnx": [folder / "model.onnx"]}
    data: dict[str, Sequence[Path]] = {**onnx, "calibration": files}
    first, made = _step("calibrate", calibrate.CalibrateConfig(), data, out), {}
    for algorithm in ALGORITHMS:
        place, seen = out / algorithm, {**data, "histograms": [out / "histograms.bin"]}
        found = _step("ranges", ranges.RangesConfig(algorithm), seen, place)
        placed = _step("quantize", quantize.QuantizeConfig(), {**onnx, "ranges": [place / "ranges.json"]}, place)
        steps = (first, found, placed)
        made[algorithm] = {
            "path": str(place / "model.onnx"),
            "cpu_s": sum(step.cpu_s for step in steps),
            "kept": found.metrics["algorithm"],
            "peak": max(step.peak for step in steps),
            "weighted": placed.metrics["weighted"],
            "quantized": placed.metrics["quantized"],
        }
    return made


def _reader(files: Sequence[Path]) -> Any:
    """The samples one by one, as both libraries like them."""
    import numpy as np
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.rewind()

        def rewind(self) -> None:
            self.left = iter(files)

        def get_next(self) -> Any:
            path = next(self.left, None)
            return None if path is None else dict(np.load(path))

        def get_first(self) -> Any:
            return dict(np.load(files[0]))

    return Reader()


def onnxruntime(folder: Path, files: Sequence[Path], out: Path, method: str) -> None:
    """`quantize_static`."""
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    quantize_static(
        str(folder / "model.onnx"),
        str(out / "model.onnx"),
        _reader(files),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=["Conv", "ConvTranspose", "Gemm", "MatMul"],
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
        calibrate_method={
            "minmax": CalibrationMethod.MinMax,
            "entropy": CalibrationMethod.Entropy,
            "percentile": CalibrationMethod.Percentile,
        }[method],
        extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
    )


def modelopt(folder: Path, files: Sequence[Path], out: Path, method: str) -> None:
    """`modelopt.onnx.quantization.quantize`."""
    from modelopt.onnx.quantization import quantize

    quantize(
        str(folder / "model.onnx"),
        quantize_mode="int8",
        calibration_data_reader=_reader(files),
        calibration_method=method,
        calibration_eps=["cpu"],
        high_precision_dtype="fp32",
        output_path=str(out / "model.onnx"),
        log_level="ERROR",
    )


def main() -> None:
    """Runs one tool and says what it took."""
    tool, folder, samples, out = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    files = sorted((folder / "calibration").iterdir())[:samples]
    kind, _, method = tool.partition(" ")
    if kind == "ours":
        made = ours(folder, files, out)
    else:
        {"onnxruntime": onnxruntime, "modelopt": modelopt}[kind](folder, files, out, method)
        path = str(out / "model.onnx")
        made = {method: {"path": path, "cpu_s": time.process_time(), "kept": method, "peak": peak_bytes()}}
    print(json.dumps({"made": made}))


if __name__ == "__main__":
    main()
