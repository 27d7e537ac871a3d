"""A value for every knob of a build that the backends do not have by themselves, for the tests beside this file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from stages.build_config import BuildConfig
from stages.knobs import KNOBS, Kind

_FURTHER: Mapping[str, Mapping[str, Any]] = {
    "exclude_lean_runtime": {"version_compatible": True},
    "refittable_weights": {"refit": "named"},
}
"""What a knob does not go without."""

_VALUES: Mapping[str, Any] = {
    "optimization_level": 5,
    "max_num_tactics": 1,
    "avg_timing_iterations": 7,
    "memory_pools.tactic_shared_memory": "48KiB",
    "memory_pools.dla_managed_sram": "1MiB",
    "preview_features.runtime_activation_resize_10_10": False,
    "tactic_sources.edge_mask_convolutions": False,
    "tactic_sources.jit_convolutions": False,
    "profiling_verbosity": "detailed",
    "max_aux_streams": 0,
    "tiling_optimization_level": "full",
    "l2_limit_for_tiling": "1MiB",
    "build_route": "-conv_use_long_w=off",
    "tf32": False,
    "io_formats": {"x": ["chw32"]},
    "hardware_compatibility_level": "ampere_plus",
    "runtime_platform": "windows_amd64",
    "refit": "any",
    "refittable_weights": ["w"],
    "engine_capability": "safety",
    "remote_auto_tuning_config": "ssh://board",
    "default_device_type": "dla",
    "dla_core": 1,
    "layer_device_types": {"*": "gpu", "conv*": "dla"},
    "plugins_to_serialize": ["libmine.so"],
}
_OF_KIND: Mapping[Kind, Any] = {Kind.POOL: "256MiB", Kind.FLAG: True, Kind.SOURCE: True, Kind.PREVIEW: True}

OTHER: Mapping[str, Mapping[str, Any]] = {
    knob.path: {**_FURTHER.get(knob.path, {}), knob.path: _VALUES.get(knob.path, _OF_KIND.get(knob.kind))}
    for knob in KNOBS
}
"""By a knob's path: what to set so that it is set, by path."""


def configured(*chosen: str) -> BuildConfig:
    """A config in which these knobs are set."""
    values = {path: value for each in chosen for path, value in OTHER[each].items()}
    return _made(BuildConfig, values)


def _made(kind: type[Any], values: Mapping[str, Any]) -> Any:
    given = {}
    for each in fields(kind):
        inner: Any = each.default_factory
        if is_dataclass(inner):
            start = f"{each.name}."
            given[each.name] = _made(
                inner, {p.removeprefix(start): v for p, v in values.items() if p.startswith(start)}
            )
        elif each.name in values:
            given[each.name] = values[each.name]
    return kind(**given)
