"""What calibration costs as samples grow: `python -m benchmarks.calibration`, about a minute.

One model, made here: a residual network of random weights at 3 x 224 x 224. Each number of samples runs in a process
of its own: its peak of memory, its CPU seconds and the size of its histograms; then the seconds of `ranges` with each
algorithm. Other models and other libraries are not measured here.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, parser

from stages import calibrate, ranges
from stages.stage import Job

SAMPLES = (32, 512)
ALLOWED = 1.1
DISTINCT = 16
"""So many different files; the others are links to them, which are read and run all the same."""

CHANNELS, BLOCKS = 32, 4


def network() -> onnx.ModelProto:
    """A stem at half the resolution, residual blocks, and a classifier."""
    random = np.random.default_rng(0)
    weights = {"w": random.standard_normal((CHANNELS, 3, 7, 7)) / 12, "g": random.standard_normal((CHANNELS, 10))}
    lines = ["c = Conv<strides=[2, 2], pads=[3, 3, 3, 3]>(x, w)", "r0 = Relu(c)"]
    for block in range(BLOCKS):
        for side in "ab":
            weights[f"{side}{block}"] = random.standard_normal((CHANNELS, CHANNELS, 3, 3)) / 17
        lines += [
            f"p{block} = Conv<pads=[1, 1, 1, 1]>(r{block}, a{block})",
            f"q{block} = Relu(p{block})",
            f"s{block} = Conv<pads=[1, 1, 1, 1]>(q{block}, b{block})",
            f"t{block} = Add(s{block}, r{block})",
            f"r{block + 1} = Relu(t{block})",
        ]
    lines += [f"m = GlobalAveragePool(r{BLOCKS})", "f = Flatten(m)", "y = Gemm(f, g)"]
    text = '<ir_version: 10, opset_import: ["": 20]> g (float[n, 3, 224, 224] x) => (float[n, 10] y) {'
    model = parser.parse_model(text + "\n".join(lines) + "}")
    model.graph.initializer.extend(
        numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()
    )
    return model


def store_samples(folder: Path, number: int) -> None:
    """Writes `number` files of one sample (1, 3, 224, 224) each."""
    folder.mkdir()
    random = np.random.default_rng(1)
    for index in range(number):
        path = folder / f"{index:04}.npy"
        if index < DISTINCT:
            np.save(path, random.standard_normal((1, 3, 224, 224)).astype(np.float32))
        else:
            path.hardlink_to(folder / f"{index % DISTINCT:04}.npy")


def calibrate_here(folder: Path, samples: int) -> dict[str, Any]:
    """Runs the stage in this process, which does nothing else."""
    job = Job(
        calibrate.CalibrateConfig(max_samples=samples),
        {"onnx": [folder / "model.onnx"], "calibration": sorted((folder / "samples").iterdir())},
        {},
        folder,
    )
    metrics = calibrate.STAGE.run(job)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    size = (folder / "histograms.bin").stat().st_size
    return {
        "samples": metrics["samples"],
        "peak_mb": usage.ru_maxrss / 1024,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "kb_per_tensor": size / 1000 / int(str(metrics["tensors"])),
    }


def measure(folder: Path, samples: int) -> dict[str, Any]:
    """What `calibrate_here` says in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.calibration", "--child", str(folder), str(samples)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def ranges_seconds(folder: Path, config: ranges.RangesConfig) -> tuple[float, str]:
    """How long `ranges` takes, and which algorithm it kept."""
    inputs: dict[str, Sequence[Path]] = {
        "onnx": [folder / "model.onnx"],
        "histograms": [folder / "histograms.bin"],
        "calibration": sorted((folder / "samples").iterdir()),
    }
    start = time.perf_counter()
    metrics = ranges.STAGE.run(Job(config, inputs, {}, folder))
    return time.perf_counter() - start, str(metrics["algorithm"])


def main() -> int:
    """Prints the figures; 1 where memory grows with the samples."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--child", nargs=2, metavar=("FOLDER", "SAMPLES"), help=argparse.SUPPRESS)
    child = arguments.parse_args().child
    if child:
        print(json.dumps(calibrate_here(Path(child[0]), int(child[1]))))
        return 0
    with TemporaryDirectory() as name:
        folder = Path(name)
        onnx.save(network(), str(folder / "model.onnx"))
        store_samples(folder / "samples", max(SAMPLES))
        found = [measure(folder, samples) for samples in SAMPLES]
        for each in found:
            print("calibrate, {samples} samples: peak {peak_mb:.0f} MB, {cpu_s:.1f} CPU s, "
                  "{kb_per_tensor:.1f} kB a tensor".format(**each))  # fmt: skip
        ratio = found[-1]["peak_mb"] / found[0]["peak_mb"]
        print(f"peak at {SAMPLES[-1]} over {SAMPLES[0]} samples: {ratio:.3f} (allowed: {ALLOWED})")
        for algorithm in ("max", "percentile", "mse", "entropy", "auto"):
            seconds, kept = ranges_seconds(folder, ranges.RangesConfig(algorithm))
            print(f"ranges, {algorithm}: {seconds:.2f} s" + (f", kept {kept}" if algorithm == "auto" else ""))
    return 0 if ratio <= ALLOWED else 1


if __name__ == "__main__":
    sys.exit(main())
