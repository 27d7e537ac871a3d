"""The stage `split`: a model in two parts, its structure and its weights, each of which has a digest of its own.

A refittable plan is built from the structure alone: any weights of it lead to the same plan. The weights are put in
afterwards, by the stage `refit`.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from stages import onnx_data, onnx_file, onnx_graph, safetensors_file, structure
from stages.allowed import require, require_word
from stages.stage import Job, Metrics, Stage, StageError
from stages.wording import listed

if TYPE_CHECKING:
    from onnx import ModelProto, TensorProto

MODES = ("any", "named")


@dataclass(frozen=True)
class SplitConfig:
    """Which weights are taken out.

    Attributes:
        mode: `any`: all; `named`: those of `weights`, the others being part of the structure.
        weights: Patterns of initializer names, such as `*lora*`, with `mode: named`.
    """

    mode: str = "any"
    weights: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        require_word(self, "mode", MODES)
        named = self.mode == "named"
        require(bool(self.weights) == named, "weights", self.weights, "patterns, with mode: named and only then")


def split(job: Job[SplitConfig]) -> Metrics:
    """Writes the structure and the weights.

    Returns:
        Metrics: `weights` (how many tensors were taken out), `weight_bytes`, `kept` (how many initializers stay in the
        structure) and `nodes`.

    Raises:
        StageError: The model cannot be read, has no weights, or none of the names asked for.
    """
    made, weights = structure.split(onnx_file.read(job.inputs["onnx"]), partial(_chosen, job.config))
    job.progress("weights", None)
    safetensors_file.write(weights, job.out / STAGE.outputs["weights"])
    onnx_file.write(made, job.out / STAGE.outputs["structure"])
    return {
        "weights": len(weights),
        "weight_bytes": sum(map(onnx_data.nbytes, weights)),
        "kept": len(made.graph.initializer) - len(weights),
        "nodes": len(made.graph.node),
    }


def joined(paths: Sequence[Path], weights: Path) -> ModelProto:
    """The model of a structure and weights: what was split, in canonical form. Weights stay in their file.

    Args:
        paths: The structure, and its data file where it has one.
        weights: The weights' file.

    Raises:
        StageError: The two are not of one model: names what differs.
    """
    model, given = onnx_file.read(paths), safetensors_file.read(weights)
    wanted = {tensor.name: tensor for tensor in structure.empty(model)}
    if odd := sorted(wanted.keys() ^ given.keys()):
        raise _of_another_model(odd)
    for name, tensor in wanted.items():
        if (given[name].dtype, given[name].shape) != (safetensors_file.dtype(tensor), tuple(tensor.dims)):
            raise _of_another_model([name])
        at = given[name].at
        onnx_data.put(tensor, str(at.path), at.offset, at.length)
        if at.length <= onnx_data.INLINE_BYTES:
            tensor.CopyFrom(onnx_data.inlined(tensor))
    return model


def filled(paths: Sequence[Path], scratch: Path) -> tuple[ModelProto, int]:
    """The model of a structure, with made-up weights where it has none, and how many these are.

    A refittable plan does not depend on them. They are positive, since some are scales, and no two tensors have the
    same. A whole model comes as it is.

    Args:
        paths: The ONNX file, and its data file where it has one.
        scratch: Where the weights lie as long as the model is used.

    Raises:
        StageError: The model cannot be read.
    """
    model = onnx_file.read(paths)
    empty = structure.empty(model)
    if not empty:
        return model, 0
    safetensors_file.write(empty, scratch, _make_up)
    return joined(paths, scratch), len(empty)


def _make_up(tensor: TensorProto, destination: IO[bytes]) -> None:
    import numpy as np
    from onnx import helper

    random = np.random.default_rng(zlib.crc32(tensor.name.encode()))
    values = (random.random(tuple(tensor.dims), dtype=np.float32) + 1) / 2
    onnx_data.append(values.astype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).tobytes(), destination)


def _chosen(config: SplitConfig, weights: Collection[str]) -> Collection[str]:
    if not weights:
        raise StageError(
            "the model has no weights that a plan could take later: no float initializers outside of subgraphs",
            "let surgery run before (it makes initializers of Constant nodes), or build it with refit=false",
        )
    if config.mode == "any":
        return weights
    return onnx_graph.matching_names(sorted(weights), config.weights, "refit.weights", "weight")


def _of_another_model(names: Sequence[str]) -> StageError:
    return StageError(
        f"structure and weights are of two models: {listed(names)}",
        "split the model again: trtforge build",
    )


STAGE = Stage(
    name="split",
    version=1,
    config=SplitConfig,
    run=split,
    inputs=("onnx",),
    outputs={"structure": "structure.onnx", "weights": "weights.safetensors"},
    tools=("onnx",),
)
