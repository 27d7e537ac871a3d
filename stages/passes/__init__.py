"""The passes that surgery can run, each in a file of its own. The contract is `stages.passes.contract`.

A pass is imported where a config lists it: all 19 cost an up-to-date build 6 of its 130 ms.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.passes.contract import Pass

PASSES = (
    "adopt",
    "cast_io",
    "check_qdq",
    "deduplicate",
    "drop_dead",
    "drop_identities",
    "extract",
    "fold",
    "fold_bias_qdq",
    "fuse_conv_bn",
    "fuse_conv_scale",
    "infer_shapes",
    "insert",
    "mark_outputs",
    "merge_equal",
    "rename",
    "replace",
    "set_dims",
    "shift_uint8",
)
"""Their names, which are those of their modules."""


@cache
def named(name: str) -> Pass[Any]:
    """The declaration of the pass `name`, one of `PASSES`."""
    declared: Pass[Any] = import_module(f"stages.passes.{name}").PASS
    return declared
