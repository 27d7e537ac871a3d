"""What one writes without trtforge: TensorRT-RTX's calls for one plan, in a loop over targets. See benchmarks.overhead.

    python benchmarks/plain_loop.py MODEL.onnx OUT SM80 SM89 ...

The calls are those of trtforge's stage `build`; there is no cache, no check and no record.
"""

from __future__ import annotations

import sys
from pathlib import Path

import tensorrt_rtx as trt


def build(model: Path, plan: Path, capability: str) -> None:
    """Builds a strongly typed plan of a model with fixed shapes for one compute capability, such as `SM89`."""
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    network.name = "model"
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(model)):
        sys.exit(str([parser.get_error(index).desc() for index in range(parser.num_errors)]))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, capability), 0)
    built = builder.build_serialized_network(network, config)
    if built is None:
        sys.exit(f"{model}: no plan for {capability}")
    plan.write_bytes(memoryview(built))


if __name__ == "__main__":
    for each in sys.argv[3:]:
        build(Path(sys.argv[1]), Path(sys.argv[2]) / f"{each}.plan", each)
