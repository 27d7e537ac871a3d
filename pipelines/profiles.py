"""Optimization profiles: the shapes that a model's config promises, checked against the model before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from conf.errors import ConfigError, suggest
from conf.schema import Model
from stages.profiles import override

Shapes = dict[str, Any]
"""{'min': shape, 'opt': shape, 'max': shape}; of a shape tensor's values, 'values': True beside them"""

SHAPE_DTYPES = ("int32", "int64")
"""What TensorRT's shape tensors are made of."""

_GUESS = {"min": 1, "opt": 8, "max": 32}


def resolve(model: Model, inputs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Shapes]]:
    """The profiles of `model`, each with a full shape for every dynamic input, and the values of each shape tensor.

    Args:
        model: The model's config: `profiles`, or the short form `dims`.
        inputs: The model's inputs: `{name, dtype, shape}`, a dim being a number, a name or None.

    Returns:
        `{profile: {input: {min, opt, max}}}`, `values: True` beside these of a shape tensor; empty where no input is
        dynamic or a shape tensor.

    Raises:
        ConfigError: An input without a shape, an unknown name, a wrong rank, a static dim changed, min > opt or > max;
            values of what is no shape tensor, or not in every profile.
    """
    _require_ranks(inputs)
    dims = _dims(model, inputs)
    names = list(model.profiles) or ["default"]
    dynamic = [tensor for tensor in inputs if _dynamic(tensor)]
    for name, given in model.profiles.items():
        for wrong in set(given) - {tensor["name"] for tensor in inputs}:
            raise ConfigError(
                f"model.profiles.{name}.{wrong}: the model has no input {wrong!r}",
                suggest(wrong, [tensor["name"] for tensor in inputs]),
            )
    # Of inputs without a dynamic dim, what was given is checked and not needed.
    shapes = {(name, t["name"]): _shapes(model, name, t, dims) for name in names for t in inputs}
    missing = [t for t in dynamic if any(shapes[name, t["name"]] is None for name in names)]
    if missing:
        raise _without_profile(missing)
    held = _shape_tensors(model, inputs, names)
    own = sorted({*held, *(t["name"] for t in dynamic)})
    return {name: {i: found for i in own if (found := shapes[name, i])} for name in names} if own else {}


def named(inputs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The inputs with a name for every dim that has neither a name nor a size: `x_0`."""
    return [
        {
            **tensor,
            "shape": [f"{tensor['name']}_{axis}" if dim is None else dim for axis, dim in enumerate(tensor["shape"])],
        }
        for tensor in inputs
    ]


def dims(inputs: Sequence[Mapping[str, Any]], resolved: Mapping[str, Mapping[str, Shapes]]) -> dict[str, list[int]]:
    """What each named dim may be over all profiles: `[min, opt, max]`, the opt of the first.

    Args:
        inputs: The model's inputs, none of their dims None.
        resolved: What `resolve` gave for them.

    Raises:
        ConfigError: A profile gives one dim two ranges.
    """
    found: dict[str, list[int]] = {}
    for profile, shapes in resolved.items():
        own: dict[str, list[int]] = {}
        for tensor in inputs:
            for axis, dim in enumerate(tensor["shape"]):
                if isinstance(dim, int):
                    continue
                sizes = [shapes[tensor["name"]][which][axis] for which in ("min", "opt", "max")]
                if own.setdefault(dim, sizes) != sizes:
                    raise ConfigError(
                        f"model.profiles.{profile}: dim {dim!r} is {own[dim]} in one input, {sizes} in another",
                        "give it the same min, opt and max everywhere, or the dims different names in model.inputs",
                    )
        for dim, (low, opt, high) in own.items():
            before = found.get(dim, [low, opt, high])
            found[dim] = [min(before[0], low), before[1], max(before[2], high)]
    return found


def _require_ranks(inputs: Sequence[Mapping[str, Any]]) -> None:
    unranked = [tensor["name"] for tensor in inputs if tensor["shape"] is None]
    if unranked:
        raise ConfigError(
            f"the model does not say how many dims these inputs have: {', '.join(unranked)}",
            "export it with a shape for each input: a plan's inputs have a fixed rank",
        )


def _shape_tensors(model: Model, inputs: Sequence[Mapping[str, Any]], profiles: Sequence[str]) -> list[str]:
    """The inputs whose values the profiles give."""
    held = [t["name"] for t in inputs if any(_values(model, name, t["name"]) for name in profiles)]
    for tensor in held:
        for name in profiles:
            if not _values(model, name, tensor):
                raise ConfigError(
                    f"model.profiles.{name}: no values of {tensor!r}, and another profile takes it for a shape tensor",
                    f"every profile needs them: model.profiles.{name}.{tensor}={{min:[…],opt:[…],max:[…],values:true}}",
                )
    return held


def _values(model: Model, profile: str, name: str) -> bool:
    given = model.profiles.get(profile, {}).get(name)
    return given is not None and given.values


def _dynamic(tensor: Mapping[str, Any]) -> bool:
    return any(not isinstance(dim, int) for dim in tensor["shape"])


def _dims(model: Model, inputs: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    known = {dim for tensor in inputs for dim in tensor["shape"] if isinstance(dim, str)}
    found = {}
    for name, value in model.dims.items():
        if name not in known:
            next_step = suggest(name, known) if known else "leave it out: the inputs' dims are fixed or have no names"
            raise ConfigError(f"model.dims.{name}: no input of the model has a dim {name!r}", next_step)
        sizes = [value] * 3 if isinstance(value, int) else list(value or ())
        if len(sizes) != 3 or not all(type(size) is int for size in sizes):  # True is an int, too
            raise ConfigError(f"model.dims.{name}: got {value!r}", f"give min, opt and max: model.dims.{name}=[1,8,32]")
        _check_order(f"model.dims.{name}", *([size] for size in sizes))
        found[name] = sizes
    return found


def _shapes(model: Model, profile: str, tensor: Mapping[str, Any], dims: Mapping[str, list[int]]) -> Shapes | None:
    given = model.profiles.get(profile, {}).get(tensor["name"])
    if given is None:
        return _from_dims(tensor["shape"], dims)
    shapes = {"min": list(given.min), "opt": list(given.opt), "max": list(given.max)}
    where = f"model.profiles.{profile}.{tensor['name']}"
    if given.values:
        _check_values(where, shapes, tensor)
        return {**shapes, "values": True}
    for which, shape in shapes.items():
        _check_shape(f"{where}.{which}", shape, tensor)
    _check_order(where, *shapes.values())
    return shapes


def _check_values(where: str, values: Mapping[str, list[int]], tensor: Mapping[str, Any]) -> None:
    shape, declared = tensor["shape"], f"{tensor['dtype']} {spell(tensor['shape'])}"
    if tensor["dtype"] not in SHAPE_DTYPES or len(shape) > 1 or _dynamic(tensor):
        raise ConfigError(
            f"{where}.values: {tensor['name']!r} is {declared}, and a shape tensor is {' or '.join(SHAPE_DTYPES)}, "
            "of rank 0 or 1 and a fixed size",
            "leave values out: min, opt and max are the input's shape then",
        )
    count = prod(shape)
    for which, given in values.items():
        if len(given) != count:
            raise ConfigError(
                f"{where}.{which}: {given} has {len(given)} values, the input holds {count}: {declared}",
                f"give {count}",
            )
    if not all(low <= opt <= high for low, opt, high in zip(*values.values(), strict=True)):
        ends = ", ".join(f"{which} {given}" for which, given in values.items())
        raise ConfigError(f"{where}: {ends} are not in order", "min <= opt <= max in every place")


def _from_dims(shape: Sequence[Any], dims: Mapping[str, list[int]]) -> Shapes | None:
    if any(not isinstance(dim, int) and dim not in dims for dim in shape):
        return None
    return {
        which: [dim if isinstance(dim, int) else dims[dim][index] for dim in shape]
        for index, which in enumerate(("min", "opt", "max"))
    }


def _check_shape(where: str, shape: list[int], tensor: Mapping[str, Any]) -> None:
    declared = spell(tensor["shape"])
    if len(shape) != len(tensor["shape"]):
        raise ConfigError(
            f"{where}: {shape} has {len(shape)} dims, the input has {len(tensor['shape'])}: {declared}",
            f"give one number for each dim of {declared}",
        )
    for position, (got, dim) in enumerate(zip(shape, tensor["shape"], strict=True)):
        if isinstance(dim, int) and got != dim:
            raise ConfigError(
                f"{where}: dim {position} is {got}, and the model fixes it at {dim}: {declared}",
                f"write {dim} there",
            )


def _check_order(where: str, low: list[int], opt: list[int], high: list[int]) -> None:
    for a, b, c in zip(low, opt, high, strict=True):
        if not 1 <= a <= b <= c:
            raise ConfigError(f"{where}: min {low}, opt {opt}, max {high} are not in order", "1 <= min <= opt <= max")


def _without_profile(tensors: Sequence[Mapping[str, Any]]) -> ConfigError:
    what = ", ".join(f"{tensor['name']} {spell(tensor['shape'])}" for tensor in tensors)
    names = dict.fromkeys(dim for t in tensors for dim in t["shape"] if isinstance(dim, str))
    plain = all(dim is not None for tensor in tensors for dim in tensor["shape"])
    short = " ".join(f"model.dims.{name}=[1,8,32]" for name in names if name.isidentifier())
    long = " ".join(_override(tensor) for tensor in tensors)
    options = f"{short}, or {long}" if short and plain and len(short.split()) == len(names) else long
    return ConfigError(f"dynamic inputs without a profile: {what}", f"give their shapes: {options}")


def _override(tensor: Mapping[str, Any]) -> str:
    ends = {
        which: [dim if isinstance(dim, int) else guess for dim in tensor["shape"]] for which, guess in _GUESS.items()
    }
    return override("default", tensor["name"], ends)


def spell(shape: Sequence[Any]) -> str:
    """A shape for people: `(batch, 3, ?, ?)`."""
    return f"({', '.join('?' if dim is None else str(dim) for dim in shape)})"
