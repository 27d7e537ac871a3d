"""Sets the knobs of a build on TensorRT's own objects, and reads each back.

TensorRT's setters do not raise: they log an error and keep the old value. So a knob counts as set only if it reads back
as asked.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from stages import onnx_graph
from stages.build_config import REFIT
from stages.builder_log import config_error
from stages.knobs import Kind, Knob, find
from stages.stage import StageError


@dataclass(frozen=True)
class Objects:
    """What a build's settings are set on.

    Attributes:
        trt: The backend's module.
        network: The parsed network.
        config: The builder config.
        errors: What the logger has kept.
        backend: `tensorrt_rtx` or `tensorrt`.
    """

    trt: Any
    network: Any
    config: Any
    errors: list[str]
    backend: str


def apply(on: Objects, values: Mapping[str, Any]) -> None:
    """Sets the knobs.

    Args:
        on: The objects.
        values: By the knobs' paths, as `stages.knobs.given` has them; `plugins_to_serialize` are paths of libraries.

    Raises:
        StageError: The backend does not take a value, or a tensor, layer or weight is not in the network.
    """
    for path, value in values.items():
        knob = find(path)
        setting, reading = _KINDS[knob.kind]
        setting(on, knob, value)
        got = reading(on, knob, value)
        if got != value:
            raise config_error(path, value, got, on.backend, on.errors)


def with_weights(values: Mapping[str, Any], patterns: Sequence[str], weights: Collection[str]) -> dict[str, Any]:
    """`values` with the names of weights in the place of the patterns of `refittable_weights`, where they have these.

    Args:
        values: By the knobs' paths.
        patterns: Of names, such as `*lora*`.
        weights: The names of the model's weights.

    Raises:
        StageError: A pattern fits the name of no weight; names near ones.
    """
    names = sorted(onnx_graph.matching_names(sorted(weights), patterns, "refittable_weights", "weight"))
    return {**values, **{path: names for path in values if find(path).kind is Kind.WEIGHTS}}


def device_of(layer: str, patterns: Mapping[str, str]) -> str | None:
    """The device of the longest pattern that fits the layer's name, whatever their order; None where none fits."""
    fitting = [pattern for pattern in patterns if fnmatchcase(layer, pattern)]
    return patterns[max(fitting, key=lambda pattern: (len(pattern), pattern))] if fitting else None


def _set_value(on: Objects, knob: Knob, value: Any) -> None:
    setattr(on.config, knob.member, value)


def _get_value(on: Objects, knob: Knob, value: Any) -> Any:
    got = getattr(on.config, knob.member)
    return list(got) if isinstance(value, list) else got


def _set_word(on: Objects, knob: Knob, value: str) -> None:
    setattr(on.config, knob.member, _enum_member(on, knob, value))


def _get_word(on: Objects, knob: Knob, value: str) -> str:
    return _word(getattr(on.config, knob.member))


def _set_flag(on: Objects, knob: Knob, value: bool) -> None:
    _switch(on, knob.member, value)


def _get_flag(on: Objects, knob: Knob, value: bool) -> bool:
    return _is_on(on, knob.member)


def _set_refit(on: Objects, knob: Knob, value: str) -> None:
    # The modes exclude each other.
    for mode, name in _refit_flags(knob):
        _switch(on, name, mode == value)


def _get_refit(on: Objects, knob: Knob, value: str) -> str:
    return ", ".join(mode for mode, name in _refit_flags(knob) if _is_on(on, name))


def _refit_flags(knob: Knob) -> Iterator[tuple[str, str]]:
    return zip(REFIT[1:], (name.rpartition(".")[2] for name in knob.api), strict=True)


def _set_pool(on: Objects, knob: Knob, value: int) -> None:
    on.config.set_memory_pool_limit(getattr(on.trt.MemoryPoolType, knob.member), value)


def _get_pool(on: Objects, knob: Knob, value: int) -> int:
    return int(on.config.get_memory_pool_limit(getattr(on.trt.MemoryPoolType, knob.member)))


def _set_source(on: Objects, knob: Knob, value: bool) -> None:
    bit, sources = _bit(on.trt.TacticSource, knob.member), on.config.get_tactic_sources()
    on.config.set_tactic_sources(sources | bit if value else sources & ~bit)


def _get_source(on: Objects, knob: Knob, value: bool) -> bool:
    return bool(on.config.get_tactic_sources() & _bit(on.trt.TacticSource, knob.member))


def _set_preview(on: Objects, knob: Knob, value: bool) -> None:
    on.config.set_preview_feature(getattr(on.trt.PreviewFeature, knob.member), value)


def _get_preview(on: Objects, knob: Knob, value: bool) -> bool:
    return bool(on.config.get_preview_feature(getattr(on.trt.PreviewFeature, knob.member)))


def _mark_weights(on: Objects, knob: Knob, value: Sequence[str]) -> None:
    for name in value:
        if not on.network.mark_weights_refittable(name):
            raise StageError(
                f"{knob.path}: the network has no weights {name!r}: the parser made them part of something else",
                f"leave it out of the patterns of {knob.path}",
            )


def _marked_weights(on: Objects, knob: Knob, value: Sequence[str]) -> list[str]:
    return [name for name in value if on.network.are_weights_marked_refittable(name)]


def _set_formats(on: Objects, knob: Knob, value: Mapping[str, Sequence[str]]) -> None:
    tensors = _tensors(on.network)
    for name, formats in value.items():
        if name not in tensors:
            known = ", ".join(sorted(tensors))
            raise StageError(f"{knob.path}: the network has no input or output {name!r}", f"it has {known}")
        tensors[name].allowed_formats = _mask(on, formats)


def _get_formats(on: Objects, knob: Knob, value: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    tensors = _tensors(on.network)
    return {
        # As it was asked for where it is the same set: a set has no order.
        name: formats if tensors[name].allowed_formats == _mask(on, formats) else _formats(on, tensors[name])
        for name, formats in value.items()
    }


def _set_devices(on: Objects, knob: Knob, value: Mapping[str, str]) -> None:
    layers = _layers(on.network)
    for pattern in value:
        if not any(fnmatchcase(layer.name, pattern) for layer in layers):
            names = ", ".join(layer.name for layer in layers[:5]) + (" …" if len(layers) > 5 else "")
            raise StageError(f"{knob.path}: no layer's name fits {pattern!r}", f"layers are {names}")
    for layer in layers:
        if device := device_of(layer.name, value):
            on.config.set_device_type(layer, _enum_member(on, knob, device))


def _get_devices(on: Objects, knob: Knob, value: Mapping[str, str]) -> Mapping[str, str]:
    for layer in _layers(on.network):
        asked, got = device_of(layer.name, value), _word(on.config.get_device_type(layer))
        if asked not in (None, got):
            return {layer.name: got}
    return value


_Set = Callable[[Objects, Knob, Any], None]
_Get = Callable[[Objects, Knob, Any], Any]

_KINDS: Mapping[Kind, tuple[_Set, _Get]] = {
    Kind.VALUE: (_set_value, _get_value),
    Kind.SIZE: (_set_value, _get_value),
    Kind.WORD: (_set_word, _get_word),
    Kind.FLAG: (_set_flag, _get_flag),
    Kind.POOL: (_set_pool, _get_pool),
    Kind.SOURCE: (_set_source, _get_source),
    Kind.PREVIEW: (_set_preview, _get_preview),
    Kind.REFIT: (_set_refit, _get_refit),
    Kind.WEIGHTS: (_mark_weights, _marked_weights),
    Kind.FORMATS: (_set_formats, _get_formats),
    Kind.DEVICES: (_set_devices, _get_devices),
}


def _switch(on: Objects, name: str, value: bool) -> None:
    flag = getattr(on.trt.BuilderFlag, name)
    if on.config.get_flag(flag) != value:
        (on.config.set_flag if value else on.config.clear_flag)(flag)


def _is_on(on: Objects, name: str) -> bool:
    return bool(on.config.get_flag(getattr(on.trt.BuilderFlag, name)))


def _enum_member(on: Objects, knob: Knob, word: str) -> Any:
    return getattr(getattr(on.trt, knob.enum), word.upper())


def _word(member: Any) -> str:
    return str(member.name).lower()


def _bit(enum: Any, name: str) -> int:
    return 1 << int(getattr(enum, name))


def _mask(on: Objects, formats: Sequence[str]) -> int:
    return sum(_bit(on.trt.TensorFormat, name.upper()) for name in {*formats})


def _formats(on: Objects, tensor: Any) -> list[str]:
    members = on.trt.TensorFormat.__members__
    return [name.lower() for name in members if tensor.allowed_formats & _bit(on.trt.TensorFormat, name)]


def _tensors(network: Any) -> dict[str, Any]:
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return {tensor.name: tensor for tensor in (*inputs, *outputs)}


def _layers(network: Any) -> list[Any]:
    return [network.get_layer(index) for index in range(network.num_layers)]
