"""Optimization profiles: the shapes that a model's config promises, checked against the model before anything runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from conf.errors import ConfigError, suggest
from conf.schema import Model

Shapes = dict[str, list[int]]
"""{'min': shape, 'opt': shape, 'max': shape}"""

_GUESS = {"min": 1, "opt": 8, "max": 32}


def resolve(model: Model, inputs: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Shapes]]:
    """The profiles of `model`, each with a full shape for every dynamic input.

    Args:
        model: The model's config: `profiles`, or the short form `dims`.
        inputs: The model's inputs: `{name, dtype, shape}`, a dim being a number, a name or None.

    Returns:
        `{profile: {input: {min, opt, max}}}`; empty where no input is dynamic.

    Raises:
        ConfigError: An input without a shape, an unknown name, a wrong rank, a static dim changed, min > opt or > max.
    """
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
    own = sorted(t["name"] for t in dynamic)
    return {name: {i: found for i in own if (found := shapes[name, i])} for name in names} if dynamic else {}


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
    for which, shape in shapes.items():
        _check_shape(f"{where}.{which}", shape, tensor)
    _check_order(where, *shapes.values())
    return shapes


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
    def shape(which: str) -> str:
        return ",".join(str(dim if isinstance(dim, int) else _GUESS[which]) for dim in tensor["shape"])

    body = ",".join(f"{which}:[{shape(which)}]" for which in _GUESS)
    if tensor["name"].isidentifier():
        return f"'model.profiles.default.{tensor['name']}={{{body}}}'"
    # Dots, colons and brackets mean something to Hydra in a key, and nothing in a mapping once they are escaped.
    escaped = re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", tensor["name"])
    return f"'model.profiles.default={{{escaped}:{{{body}}}}}'"


def spell(shape: Sequence[Any]) -> str:
    """A shape for people: `(batch, 3, ?, ?)`."""
    return f"({', '.join('?' if dim is None else str(dim) for dim in shape)})"
