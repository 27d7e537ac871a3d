"""Objects that stand in for TensorRT's, held against its real bindings: no engine is built, and none is pretended.

Every name, argument and type is checked by what the bindings say of themselves: a name that the version lacks, an
argument of another type or one too many is an error here as it would be there. What methods return is made up.
"""

from __future__ import annotations

import gc
import inspect
import re
import weakref
from collections.abc import Callable
from typing import Any

MADE_HERE = ("Builder", "OnnxParser", "Refitter", "OnnxParserRefitter", "Runtime")
"""Classes that trtforge makes itself; all others come out of methods."""

_SIGNATURE = r"^(?:\d+\. )?{name}\((.*)\) -> (.*)$"


class StandIn:
    """An object of the bindings' class `kind`."""

    def __init__(self, api: Api, kind: type[Any]) -> None:
        behaviour = BEHAVIOURS.get(kind.__name__, Behaviour)()
        self.__dict__.update(_api=api, _kind=kind, _behaviour=behaviour, _values={})

    def __getattr__(self, name: str) -> Any:
        member = inspect.getattr_static(self._kind, name)  # AttributeError: the version has no such name
        if not isinstance(member, property):
            return self._api.method(self, name)
        made_up = getattr(self._behaviour, name, 0)
        return self._values.get(name, made_up)

    def __setattr__(self, name: str, value: Any) -> None:
        member = inspect.getattr_static(self._kind, name)
        assert isinstance(member, property) and member.fset, f"{self._kind.__name__}.{name} cannot be set"
        taken = parameters(member.fset.__doc__, "")[0][0][1][1]
        assert self._api.fits(taken, value), f"{self._kind.__name__}.{name} takes {taken}, got {value!r}"
        self._api.calls.append(f"{self._kind.__name__}.{name}")
        self._values[name] = value


class Api:
    """A module `tensorrt` whose classes are made of stand-ins, and whose enums are the real ones.

    Attributes:
        bindings: The real module.
        calls: What was called or set, in order: `IBuilderConfig.set_flag`.
        used: What was made, or handed to a method: TensorRT keeps none of it alive.
    """

    def __init__(self, bindings: Any) -> None:
        self.bindings = bindings
        self.calls: list[str] = []
        self.used: list[weakref.ref[Any]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.bindings, name)
        return self.constructor(found) if name in MADE_HERE else found

    def constructor(self, kind: type[Any]) -> Callable[..., StandIn]:
        def construct(*arguments: Any) -> StandIn:
            self.check(f"{kind.__name__}.__init__", parameters(kind.__init__.__doc__, "__init__"), arguments, {})
            self.calls.append(kind.__name__)
            made = StandIn(self, kind)
            self.used += [weakref.ref(each) for each in (made, *arguments)]
            return made

        return construct

    def method(self, of: StandIn, name: str) -> Callable[..., Any]:
        kind = of._kind

        def call(*arguments: Any, **named: Any) -> Any:
            where = f"{kind.__name__}.{name}"
            returned = self.check(where, parameters(getattr(kind, name).__doc__, name), arguments, named)
            self.calls.append(where)
            own = getattr(of._behaviour, name, None)
            answer = own(self, *arguments, **named) if own else self.made_up(returned)
            created = [answer] if name.startswith("create_") else []
            self.used += [weakref.ref(each) for each in (*arguments, *created) if isinstance(each, StandIn)]
            return answer

        return call

    def check(self, where: str, overloads: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> str:
        """The return type of the overload that takes the arguments."""
        assert overloads, f"{where}: the bindings say nothing of its arguments"
        for taken, returned in overloads:
            taken = taken[1:]  # without self
            given = {**dict(zip((name for name, _, _ in taken), arguments, strict=False)), **named}
            required = {name for name, _, default in taken if not default}
            types = {name: type_ for name, type_, _ in taken}
            named_right = len(arguments) <= len(taken) and required <= given.keys() <= types.keys()
            if named_right and all(self.fits(types[name], value) for name, value in given.items()):
                return returned
        raise AssertionError(f"{where} does not take {arguments} {named}: {overloads}")

    def fits(self, annotation: str, value: Any) -> bool:
        annotation = annotation.rpartition("tensorrt.")[2]
        if annotation in _PLAIN:
            return _PLAIN[annotation](value)
        kind = getattr(self.bindings, annotation)  # AttributeError: say in _PLAIN what it takes
        return issubclass(value._kind, kind) if isinstance(value, StandIn) else isinstance(value, kind)

    def made_up(self, annotation: str) -> Any:
        annotation = annotation.rpartition("tensorrt.")[2]
        plain = {"bool": True, "None": None, "int": 0, "list[str]": [], "List[str]": []}
        return plain[annotation] if annotation in plain else StandIn(self, getattr(self.bindings, annotation))


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, str) for each in value)


_PLAIN: dict[str, Callable[[Any], bool]] = {
    "int": _is_whole,
    "typing.SupportsInt": _is_whole,
    "bool": lambda value: isinstance(value, bool),
    "str": lambda value: isinstance(value, str),
    "buffer": lambda value: isinstance(value, bytes),
    "typing_extensions.Buffer": lambda value: isinstance(value, bytes),
    "collections.abc.Sequence[str]": _are_texts,
    "List[str]": _are_texts,
    "list[str]": _are_texts,
    "Dims": lambda value: all(_is_whole(each) for each in value),
}
"""The bindings' words for types that are Python's own, or are made of them."""


def parameters(doc: str | None, name: str) -> list[tuple[list[tuple[str, str, bool]], str]]:
    """Of each overload that a docstring of pybind11 tells: (name, type, whether it has a default) of each; returned."""
    found = re.findall(_SIGNATURE.format(name=re.escape(name)), (doc or "").replace("\n\n", "\n"), re.MULTILINE)
    return [
        ([_parameter(text) for text in _split(inside)], returned) for inside, returned in found if "*" not in inside
    ]


def _split(text: str) -> list[str]:
    return [part for part in re.split(r", (?=\w+: )", text) if part]


def _parameter(text: str) -> tuple[str, str, bool]:
    name, _, rest = text.partition(": ")
    annotation, default, _ = rest.partition(" = ")
    return name, annotation, bool(default)


class Behaviour:
    """What a class's objects answer, by the names of its methods and properties; all others are made up."""


class Network(Behaviour):
    """A convolution from `x` (any, 4) to `y`, with the weights `w`."""

    num_inputs = num_outputs = 1
    num_layers = 1
    name = ""

    def __init__(self) -> None:
        self.own: dict[str, StandIn] = {}

    def get_input(self, api: Api, index: int) -> StandIn:
        return self._named(api, "ITensor", "x")

    def get_output(self, api: Api, index: int) -> StandIn:
        return self._named(api, "ITensor", "y")

    def get_layer(self, api: Api, index: int) -> StandIn:
        return self._named(api, "ILayer", "conv0")

    def _named(self, api: Api, kind: str, name: str) -> StandIn:
        if name not in self.own:
            self.own[name] = StandIn(api, getattr(api.bindings, kind))
            self.own[name]._values["name"] = name
        return self.own[name]


class Tensor(Behaviour):
    shape = (-1, 4)
    is_shape_tensor = False


class Config(Behaviour):
    """Keeps what it is told, as a builder config does."""

    def __init__(self) -> None:
        self.flags = {"TF32"}
        self.kept: dict[Any, Any] = {}
        self.sources = 0

    def get_flag(self, api: Api, flag: Any) -> bool:
        return flag.name in self.flags

    def set_flag(self, api: Api, flag: Any) -> None:
        self.flags.add(flag.name)

    def clear_flag(self, api: Api, flag: Any) -> None:
        self.flags.discard(flag.name)

    def set_memory_pool_limit(self, api: Api, pool: Any, pool_size: int) -> None:
        self.kept[pool] = pool_size

    def get_memory_pool_limit(self, api: Api, pool: Any) -> int:
        return int(self.kept.get(pool, 0))

    def set_preview_feature(self, api: Api, feature: Any, enable: bool) -> None:
        self.kept[feature] = enable

    def get_preview_feature(self, api: Api, feature: Any) -> bool:
        return bool(self.kept.get(feature, feature.name.startswith("RUNTIME_ACTIVATION")))

    def set_tactic_sources(self, api: Api, tactic_sources: int) -> bool:
        self.sources = tactic_sources
        return True

    def get_tactic_sources(self, api: Api) -> int:
        return self.sources

    def set_device_type(self, api: Api, layer: StandIn, device_type: Any) -> None:
        self.kept[layer.name] = device_type

    def get_device_type(self, api: Api, layer: StandIn) -> Any:
        return self.kept.get(layer.name, api.bindings.DeviceType.GPU)


def header(version: str) -> bytes:
    """The first bytes of a plan of this TensorRT: what `stages.plan` reads."""
    numbers = bytes(int(part) for part in version.split(".")[:4])
    return b"ftrt" + bytes(20) + numbers.ljust(4, b"\0") + bytes(100)


class Builder(Behaviour):
    def build_serialized_network(self, api: Api, network: StandIn, config: StandIn) -> bytes:
        gc.collect()
        dead = [each for each in api.used if each() is None]
        assert not dead, f"{len(dead)} objects that the build needs were let go of"
        assert config.progress_monitor, "nobody hears of progress"
        return header(api.bindings.__version__)


class Engine(Behaviour):
    refittable = True

    def serialize_with_config(self, api: Api, config: StandIn) -> bytes:
        return header(api.bindings.__version__)


class Parser(Behaviour):
    """Takes every model; or, while `refuses`, none, for the node `conv0` of the operator Conv."""

    refuses = False
    num_errors = 1

    def parse_model_proto(self, api: Api) -> bool:
        return not self.refuses

    def get_error(self, api: Api, index: int) -> StandIn:
        return StandIn(api, api.bindings.ParserError)


class ParserError(Behaviour):
    def desc(self, api: Api) -> str:
        return "false"

    def code(self, api: Api) -> Any:
        return api.bindings.ErrorCode.UNSUPPORTED_NODE

    def node_operator(self, api: Api) -> str:
        return "Conv"

    def node_name(self, api: Api) -> str:
        return "conv0"


class Runtime(Behaviour):
    def deserialize_cuda_engine(self, api: Api, plan: bytes) -> StandIn:
        return StandIn(api, api.bindings.ICudaEngine)


class Registry(Behaviour):
    def load_library(self, api: Api, path: str) -> object:
        return object()


BEHAVIOURS: dict[str, type[Behaviour]] = {
    "INetworkDefinition": Network,
    "ITensor": Tensor,
    "IBuilderConfig": Config,
    "Builder": Builder,
    "ICudaEngine": Engine,
    "OnnxParser": Parser,
    "ParserError": ParserError,
    "Runtime": Runtime,
    "IPluginRegistry": Registry,
}
