"""What is not part of any key, and why it cannot matter.

A test walks every field of every config: one that changes no key and does not stand here fails it, and so does one that
stands here and does change a key. What of a build's settings counts, and on which backend, `stages.knobs` says.
"""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase

_READ_AT_THE_END = (
    "gates are held against metrics that are kept; what skip=auto holds to them it has in steps.keep_float.config"
)
_FAILS = "a step that goes beyond it fails, and failures are not kept"
_CONTENT = "what the file holds is in the key; where it lies is not"

NOT_KEYED: Mapping[str, str] = {
    "model.path": _CONTENT,
    "model.weights": _CONTENT,
    "model.calibration.path": _CONTENT,
    "model.holdout.path": _CONTENT,
    "model.holdout.golden": _CONTENT,
    "steps.*.config.against": _CONTENT,
    "model.ranges": _CONTENT,
    "targets.*.name": "the facts of a target count, not what people call it",
    "targets.*.memory": "told where a plan is larger; the builder never hears of it",
    "steps.*.time_limit_s": _FAILS,
    "steps.*.stall_limit_s": _FAILS,
    "steps.*.memory_limit": _FAILS,
    "gates.*": _READ_AT_THE_END,
    "store.*": "where an answer is kept does not change it",
    "runner": "the same steps run, with Prefect or without",
    "routing": "facts of a target are those of the machine that builds it, wherever that is",
}
"""Keys of the config, `*` for any name, with the reason."""

_CHECKS = "decides whether the stage fails, never what it writes"
_REPORTS = "checks, and infers the shapes that the report of layers counts with; the plan is TensorRT's alone"

NOT_KEYED_TOOLS: Mapping[tuple[str, str], str] = {
    ("*", "google"): "protobuf writes what onnx says; other bytes of the same model are another digest downstream",
    ("*", "cuda"): "asked which GPUs there are; the fact `gpu_here` and the target's facts hold the answer",
    ("signature", "numpy"): "the names of element types",
    ("export", "numpy"): _CHECKS,
    ("export", "onnxruntime"): _CHECKS,
    ("export", "safetensors"): "reads tensors whose bytes are in the key, as the checkpoint's content",
    ("validate", "torch"): "the fact `source` holds it where the torch module is a reference",
    ("validate", "safetensors"): "reads tensors whose bytes are in the key, as the checkpoint's content",
    ("build", "onnx"): _REPORTS,
    ("build", "numpy"): _REPORTS,
    ("build", "onnxruntime"): _REPORTS,
    ("operators", "numpy"): _CHECKS,
    ("surgery", "ml_dtypes"): _CHECKS,
    ("surgery", "onnx_graphsurgeon"): "the fact `pass_packages` holds it where the user's own pass gets a graph of it",
    (
        "split",
        "numpy",
    ): "makes up numbers where `build` has none, which no plan that takes its weights later depends on",
    ("refit", "onnx"): _REPORTS,
    ("refit", "numpy"): _REPORTS,
    ("refit", "onnxruntime"): _REPORTS,
    ("refit", "polygraphy"): _CHECKS,
}
"""(stage or `*`, package) that a stage imports without its version being part of the key, with the reason."""


def why_not_keyed(path: str) -> str | None:
    """Why the config's `path` is in no key; None where it may be."""
    return next((reason for pattern, reason in NOT_KEYED.items() if fnmatchcase(path, pattern)), None)
