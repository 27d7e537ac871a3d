"""Objects that stand in for TensorRT's, held against its real bindings: no engine is built, and none is pretended.

Every name, argument and type is checked by what the bindings say of themselves: a name that the version lacks, an
argument of another type or one too many is an error here as it would be there. What methods return is made up.
"""

from __future__ import annotations

import ctypes
import gc
import inspect
import re
import struct
import sys
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx

Floats: TypeAlias = npt.NDArray[np.float32]

MADE_HERE = ("Builder", "OnnxParser", "Refitter", "OnnxParserRefitter", "Runtime")
"""Classes that trtforge makes itself; all others come out of methods."""

FUNCTIONS = {"get_plugin_registry": "IPluginRegistry"}
"""Functions of the module, and the class of what they return, which some versions' docstrings do not name."""

_SIGNATURE = r"^(?:\d+\. )?{name}\((.*)\) -> (.*)$"


class StandIn:
    """An object of the bindings' class `kind`."""

    def __init__(self, api: Api, kind: type[Any]) -> None:
        behaviour = BEHAVIOURS.get(kind.__name__, Behaviour)()
        self.__dict__.update(_api=api, _kind=kind, _behaviour=behaviour, _values={})

    @property
    def __class__(self) -> Any:
        """What `isinstance` asks where it is not told the truth by `type`."""
        return self._kind

    def __getattr__(self, name: str) -> Any:
        member = inspect.getattr_static(self._kind, name)  # AttributeError: the version has no such name
        self._api.note(name)
        if not isinstance(member, property):
            return self._api.method(self, name)
        said, value = getattr(self._behaviour, name, None), self._values.get(name, 0)
        if said is not None:
            return said
        return value() if isinstance(value, weakref.ref) else value

    def __setattr__(self, name: str, value: Any) -> None:
        member = inspect.getattr_static(self._kind, name)
        assert isinstance(member, property) and member.fset, f"{self._kind.__name__}.{name} cannot be set"
        taken = parameters(member.fset.__doc__, "")[0][0][1][1]
        assert self._api.fits(taken, value), f"{self._kind.__name__}.{name} takes {taken}, got {value!r}"
        self._api.note(name)
        self._api.calls.append(f"{self._kind.__name__}.{name}")
        if type(value).__module__ != "builtins" and not hasattr(value, "__members__"):
            value = weakref.ref(value)  # nor does TensorRT hold it
            self._api.used.append(value)
        self._values[name] = value


class Api:
    """A module `tensorrt` whose classes are made of stand-ins, and whose enums are the real ones.

    Attributes:
        bindings: The real module.
        calls: What was called or set, in order: `IBuilderConfig.set_flag`.
        asked: Where each name was asked for: (file, line, name).
        used: What was made, or handed to a method: TensorRT keeps none of it alive.
    """

    def __init__(self, bindings: Any) -> None:
        self.bindings = bindings
        self.calls: list[str] = []
        self.asked: set[tuple[str, int, str]] = set()
        self.used: list[weakref.ref[Any]] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.bindings, name)
        self.note(name)
        if name in FUNCTIONS:
            return self.function(found, name)
        return self.constructor(found) if name in MADE_HERE else found

    def note(self, name: str) -> None:
        """Notes that the caller's caller asks for `name`."""
        frame = sys._getframe(2)
        self.asked.add((frame.f_code.co_filename, frame.f_lineno, name))

    def alive(self) -> int:
        """How many of the objects that TensorRT was given are still held."""
        gc.collect()
        return sum(each() is not None for each in self.used)

    def require_all_alive(self) -> None:
        gone = len(self.used) - self.alive()
        assert not gone, f"{gone} objects that TensorRT still needs were let go of"

    def function(self, found: Any, name: str) -> Callable[..., StandIn]:
        def call(*arguments: Any, **named: Any) -> StandIn:
            taken = [([("self", "", False), *each], returned) for each, returned in parameters(found.__doc__, name)]
            self.check(name, taken, arguments, named)
            self.calls.append(name)
            return StandIn(self, getattr(self.bindings, FUNCTIONS[name]))

        return call

    def constructor(self, kind: type[Any]) -> Callable[..., StandIn]:
        def construct(*arguments: Any) -> StandIn:
            self.check(f"{kind.__name__}.__init__", parameters(kind.__init__.__doc__, "__init__"), arguments, {})
            self.calls.append(kind.__name__)
            made = StandIn(self, kind)
            made._behaviour.arguments = arguments
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
        annotation = _unqualified(annotation)
        if annotation in _PLAIN:
            return _PLAIN[annotation](value)
        kind = getattr(self.bindings, annotation)  # AttributeError: say in _PLAIN what it takes
        return issubclass(value._kind, kind) if isinstance(value, StandIn) else isinstance(value, kind)

    def made_up(self, annotation: str) -> Any:
        annotation = _unqualified(annotation)
        plain = {"bool": True, "None": None, "int": 0, "list[str]": [], "List[str]": []}
        return plain[annotation] if annotation in plain else StandIn(self, getattr(self.bindings, annotation))


def _unqualified(annotation: str) -> str:
    """`tensorrt_bindings.tensorrt.ILogger`, and `tensorrt_rtx_bindings.tensorrt_rtx.ILogger`, without the module."""
    return re.sub(r"^.*\btensorrt(_rtx)?\.", "", annotation)


def _cuda() -> Any:
    """The stand-in of CUDA's driver, of tests/stages/stand_in_libraries.py."""
    return ctypes.CDLL("libcuda.so.1")


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
    "List[int]": lambda value: all(_is_whole(each) for each in value),
    "list[int]": lambda value: all(_is_whole(each) for each in value),
    "collections.abc.Sequence[typing.SupportsInt]": lambda value: all(_is_whole(each) for each in value),
    "tuple": lambda value: isinstance(value, tuple),
    "list": lambda value: isinstance(value, list),
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
    """What a class's objects answer, by the names of its methods and properties; all others are made up.

    Attributes:
        arguments: What the object was made with; empty where a method returned it.
    """

    arguments: tuple[Any, ...] = ()


class Network(Behaviour):
    """Inputs, outputs and weights of the model that was parsed, but those it `lacks`; and one layer: a convolution."""

    lacks: tuple[str, ...] = ()
    num_layers = 1
    name = ""

    def __init__(self) -> None:
        self.own: dict[str, StandIn] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.initializers: list[str] = []
        self.marked: list[str] = []

    @property
    def num_inputs(self) -> int:
        return len(self.inputs)

    @property
    def num_outputs(self) -> int:
        return len(self.outputs)

    def get_input(self, api: Api, index: int) -> StandIn:
        return self._tensor(api, self.inputs[index])

    def get_output(self, api: Api, index: int) -> StandIn:
        return self._tensor(api, self.outputs[index])

    def mark_weights_refittable(self, api: Api, name: str) -> bool:
        self.marked += [name] if name in self.initializers and name not in self.lacks else []
        return name in self.marked

    def are_weights_marked_refittable(self, api: Api, name: str) -> bool:
        return name in self.marked

    def get_layer(self, api: Api, index: int) -> StandIn:
        return self._named(api, "ILayer", "conv0")

    def _tensor(self, api: Api, value: Any) -> StandIn:
        """Of an ONNX value: dynamic dimensions are -1, and a few integers are a shape."""
        tensor, kind = self._named(api, "ITensor", value.name), value.type.tensor_type
        shape = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
        tensor._behaviour.shape = shape
        tensor._behaviour.is_shape_tensor = kind.elem_type == onnx.TensorProto.INT64 and len(shape) < 2
        return tensor

    def _named(self, api: Api, kind: str, name: str) -> StandIn:
        if name not in self.own:
            self.own[name] = StandIn(api, getattr(api.bindings, kind))
            self.own[name]._values["name"] = name
        return self.own[name]


class Tensor(Behaviour):
    """Its `allowed_formats` are what was set, unless they are said here to be others."""

    allowed_formats: int | None = None


class OptimizationProfile(Behaviour):
    """Keeps the ranges that it is given."""

    def __init__(self) -> None:
        self.kept: dict[str, list[Any]] = {}

    def set_shape(self, api: Api, input: str, min: Any, opt: Any, max: Any) -> None:
        self.kept[input] = [min, opt, max]

    def get_shape(self, api: Api, input: str) -> list[Any]:
        return self.kept[input]

    set_shape_input, get_shape_input = set_shape, get_shape


class Config(Behaviour):
    """Keeps what it is told, as a builder config does; no profile, unless it `takes_profiles`, nor flag, if `deaf`."""

    takes_profiles = True
    deaf = False

    def __init__(self) -> None:
        self.flags = {"TF32"}
        self.kept: dict[Any, Any] = {}
        self.sources = 0
        self.timings: StandIn | None = None

    def add_optimization_profile(self, api: Api, profile: StandIn) -> int:
        return 0 if self.takes_profiles else -1

    def get_flag(self, api: Api, flag: Any) -> bool:
        return flag.name in self.flags

    def set_flag(self, api: Api, flag: Any) -> None:
        self.flags |= set() if self.deaf else {flag.name}

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
        self.kept[layer.name] = self.kept.get(layer.name, api.bindings.DeviceType.GPU) if self.deaf else device_type

    def get_device_type(self, api: Api, layer: StandIn) -> Any:
        return self.kept.get(layer.name, api.bindings.DeviceType.GPU)

    def create_timing_cache(self, api: Api, serialized_timing_cache: bytes) -> StandIn:
        cache = StandIn(api, api.bindings.ITimingCache)
        if b"junk" in serialized_timing_cache:  # as TensorRT-RTX 1.7.1 does
            (logger,) = self.arguments
            logger.log(api.bindings.ILogger.Severity.WARNING, "Failed to deserialize timing cache.")
        else:
            cache._behaviour.words = {*serialized_timing_cache.decode().split()}
        return cache

    def set_timing_cache(self, api: Api, cache: StandIn, ignore_mismatch: bool) -> bool:
        taken = ignore_mismatch or "foreign" not in cache._behaviour.words
        self.timings = cache if taken else self.timings
        return taken

    def get_timing_cache(self, api: Api) -> StandIn | None:
        return self.timings


class TimingCache(Behaviour):
    """Words, each of a tactic that was timed; with `foreign` among them it is another GPU's."""

    def __init__(self) -> None:
        self.words: set[str] = set()

    def combine(self, api: Api, input_cache: StandIn, ignore_mismatch: bool) -> bool:
        if "foreign" in input_cache._behaviour.words and not ignore_mismatch:
            return False
        self.words |= input_cache._behaviour.words
        return True

    def serialize(self, api: Api) -> bytes:
        return " ".join(sorted(self.words)).encode()


WEIGHTS = {"b": 1, "w": 512}
"""Of the engine that takes some: how many float32 each has."""

_BODY = b"BODY"


def header(version: str) -> bytes:
    """The first bytes of a plan of this TensorRT: what `stages.plan` reads."""
    return b"ftrt" + bytes(20) + _numbers(version) + bytes(100)


def plan_of(bindings: Any, weights: dict[str, bytes], refittable: bool) -> bytes:
    """A plan of the backend whose bindings these are, for an L4, with these weights of `WEIGHTS`."""
    body = _BODY + (b"R" if refittable else b"-") + b"".join(weights[name] for name in WEIGHTS if weights)
    if bindings.__name__ != "tensorrt_rtx":
        return header(bindings.__version__) + body
    size, version = 88 + len(body), _numbers(bindings.__version__)
    head = b"vtrt" + bytes(4) + struct.pack("<QQ", 1, size) + version + b"vtrt" + struct.pack("<I", 8)
    return head.ljust(64, b"\0") + struct.pack("<8sQQ", b"NGNE", 88, len(body)) + body


def _numbers(version: str) -> bytes:
    return bytes(int(part) for part in version.split(".")[:4]).ljust(4, b"\0")


class Builder(Behaviour):
    """Reports as TensorRT does, and gives a plan; unless it is told to stop, or what it `says` is an error.

    A plan that takes other weights comes without its own.

    It times the tactic `times`, unless the timing cache has it; where it may time nothing, it ends as TensorRT does.
    """

    says = ""
    times = "conv"

    def create_builder_config(self, api: Api) -> StandIn:
        config = StandIn(api, api.bindings.IBuilderConfig)
        config._behaviour.arguments = self.arguments
        return config

    def build_serialized_network(self, api: Api, network: StandIn, config: StandIn) -> bytes | None:
        api.require_all_alive()
        monitor = config.progress_monitor
        monitor.phase_start("Building", None, 2)
        goes_on = monitor.step_complete("Building", 0)
        monitor.phase_finish("Building")
        if says := self.says or self.missed(config._behaviour):
            (logger,) = self.arguments
            logger.log(api.bindings.ILogger.Severity.ERROR, says)
        if not goes_on or says:
            return None
        refittable = any(flag.startswith("REFIT") for flag in config._behaviour.flags)
        return plan_of(api.bindings, {}, refittable=True) if refittable else header(api.bindings.__version__)

    def missed(self, config: Config) -> str:
        known = config.timings._behaviour.words if config.timings else set()
        if self.times not in known and "ERROR_ON_TIMING_CACHE_MISS" in config.flags and config.timings:
            return "Assertion !errorOnMiss failed. "
        known.add(self.times)
        return ""


class Engine(Behaviour):
    """`x` (n, 4) becomes the `y` that it is; of a plan with a body, `x` (n, 512) becomes `x * w + b`.

    New weights count once the stream that takes them is done. `drops_bias` is what TensorRT 11.3.0 is known for; all is
    times `spoils`.
    """

    refittable = True
    serializes = True
    drops_bias = False
    spoils = 1.0
    num_io_tensors = 2
    runs = True
    vectorized = -1
    on_host: tuple[str, ...] = ()

    def __init__(self) -> None:
        self.weights: dict[str, Floats] = {}
        self.pending: dict[str, Floats] = {}

    def load(self, plan: bytes) -> None:
        """What a plan of `plan_of` says; one without weights has some all the same, and nobody knows which."""
        _, found, body = plan.partition(_BODY)
        if found:
            self.refittable = self.refittable and body[:1] == b"R"
            values = np.frombuffer(body[1:], np.float32) if body[1:] else np.full(sum(WEIGHTS.values()), 7, np.float32)
            self.weights = dict(zip(WEIGHTS, np.split(values, [WEIGHTS["b"]]), strict=True))

    def create_execution_context(self, api: Api, *arguments: Any) -> StandIn | None:
        if not self.runs:
            return None
        context = StandIn(api, api.bindings.IExecutionContext)
        context._behaviour.engine = self
        context._behaviour.own = weakref.ref(context)
        return context

    def serialize_with_config(self, api: Api, config: StandIn) -> bytes | None:
        if not _cuda().stand_in_busy():
            self.weights |= self.pending
        flags = config._behaviour.flags
        kept = {} if "EXCLUDE_WEIGHTS" in flags else {name: each.tobytes() for name, each in self.weights.items()}
        return plan_of(api.bindings, kept, "INCLUDE_REFIT" in flags) if self.serializes else None

    def compute(self, x: Floats) -> Floats:
        if not self.weights:
            return x
        bias = self.weights["b"] * (not self.drops_bias)
        return ((x * self.weights["w"] + bias) * self.spoils).astype(np.float32)

    def get_tensor_name(self, api: Api, index: int) -> str:
        return "xy"[index]

    def get_tensor_location(self, api: Api, name: str) -> Any:
        places = api.bindings.TensorLocation
        return places.HOST if name in self.on_host else places.DEVICE

    def get_tensor_vectorized_dim(self, api: Api, name: str, profile_index: int = 0) -> int:
        return self.vectorized

    def get_tensor_components_per_element(self, api: Api, name: str, profile_index: int = 0) -> int:
        return 32

    def get_tensor_mode(self, api: Api, name: str) -> Any:
        modes = api.bindings.TensorIOMode
        return modes.INPUT if name == "x" else modes.OUTPUT

    def get_tensor_shape(self, api: Api, name: str) -> tuple[int, ...]:
        return (-1, WEIGHTS["w"] if self.weights else 4)

    def get_tensor_dtype(self, api: Api, name: str) -> Any:
        return api.bindings.DataType.FLOAT

    def get_tensor_format(self, api: Api, name: str, profile_index: int = 0) -> Any:
        return api.bindings.TensorFormat.LINEAR

    def is_shape_inference_io(self, api: Api, name: str) -> bool:
        return False

    def get_aliased_input_tensor(self, api: Api, name: str) -> str | None:
        return None


class SerializationConfig(Behaviour):
    """As of an engine whose plan came without weights."""

    def __init__(self) -> None:
        self.flags = {"EXCLUDE_WEIGHTS"}

    def set_flag(self, api: Api, flag: Any) -> bool:
        self.flags.add(flag.name)
        return True

    def clear_flag(self, api: Api, flag: Any) -> bool:
        self.flags.discard(flag.name)
        return True


class Context(Behaviour):
    """Computes the output from the input, on the stand-in of CUDA whose device memory is the host's.

    It refuses some of what it is asked: `profile`, `shape`, `address`, `size` or `run`. A profiler is told of `times`.
    """

    refuses: tuple[str, ...] = ()
    shape: tuple[int, ...] = ()
    times: dict[str, float] = {"mm0": 0.5, "reformat": 0.25}  # noqa: RUF012 - replaced, never changed
    own: Callable[[], Any] = staticmethod(lambda: None)

    def __init__(self) -> None:
        self.engine = Engine()
        self.profile: int | None = None
        self.addresses: dict[str, int] = {}
        self.allocators: dict[str, Any] = {}

    def set_optimization_profile_async(self, api: Api, profile_index: int, stream_handle: int) -> bool:
        self.profile = profile_index
        return "profile" not in self.refuses

    def set_input_shape(self, api: Api, name: str, shape: Any) -> bool:
        self.shape = tuple(shape)
        return "shape" not in self.refuses

    def get_max_output_size(self, api: Api, name: str) -> int:
        return -1 if "size" in self.refuses else 4 * self.shape[0] * self.shape[1]

    def get_tensor_shape(self, api: Api, name: str) -> tuple[int, ...]:
        return self.shape

    def set_tensor_address(self, api: Api, name: str, memory: int) -> bool:
        self.addresses[name] = memory
        return "address" not in self.refuses

    def get_tensor_address(self, api: Api, name: str) -> int:
        return self.addresses.get(name, 0)

    def set_output_allocator(self, api: Api, name: str, output_allocator: Any) -> bool:
        self.allocators[name] = output_allocator
        return True

    def execute_async_v3(self, api: Api, stream_handle: int) -> bool:
        gc.collect()
        count = self.shape[0] * self.shape[1]
        x = np.ctypeslib.as_array((ctypes.c_float * count).from_address(self.addresses["x"])).reshape(self.shape)
        y = np.ascontiguousarray(self.engine.compute(x))
        if "y" in self.allocators:
            self.addresses["y"] = self.allocators["y"].reallocate_output("y", 0, y.nbytes, 1)
            self.allocators["y"].notify_shape("y", self.shape)
        ctypes.memmove(self.addresses["y"], y.ctypes.data, y.nbytes)
        self.tell()
        return self.profile is not None and "run" not in self.refuses

    def tell(self) -> None:
        """Tells the profiler, if there is one, of the `times` of its layers in milliseconds."""
        context = self.own()
        profiler = context._values.get("profiler") if context is not None else None
        for name, ms in self.times.items() if profiler else ():
            profiler().report_layer_time(name, ms)


class Inspector(Behaviour):
    """Says `text` of the engine's layers."""

    text = "{}"

    def get_engine_information(self, api: Api, format: Any) -> str:
        return self.text if format.name == "JSON" else ""


class Parser(Behaviour):
    """Takes every model; or, while `refuses`, none, for the node `name` of the operator Conv.

    Weights that lie beside the model it reads where they lie, and not before they are needed. Of a refit it `forgets`
    some.
    """

    refuses = False
    forgets: tuple[str, ...] = ()
    num_errors = 1

    def __init__(self) -> None:
        self.initializers: dict[str, Callable[[], bytes]] = {}

    def load_model_proto(self, api: Api, model: bytes) -> bool:
        graph, into = onnx.load_model_from_string(model).graph, self.arguments[0]._behaviour
        into.inputs, into.outputs = list(graph.input), list(graph.output)
        into.initializers = [tensor.name for tensor in graph.initializer]
        self.initializers = {tensor.name: partial(bytes, tensor.raw_data) for tensor in graph.initializer}
        return True

    def load_initializer(self, api: Api, name: str, data: int, size: int) -> bool:
        assert name in self.initializers
        self.initializers[name] = partial(ctypes.string_at, data, size)
        return True

    def parse_model_proto(self, api: Api) -> bool:
        api.require_all_alive()
        return not self.refuses

    def refit_model_proto(self, api: Api) -> bool:
        api.require_all_alive()
        given = {name: each for name, each in self.initializers.items() if name not in self.forgets}
        self.arguments[0]._behaviour.given |= given
        return not self.refuses

    def get_error(self, api: Api, index: int) -> StandIn:
        return StandIn(api, api.bindings.ParserError)


class ParserError(Behaviour):
    name = "conv0"
    number = 1

    def desc(self, api: Api) -> str:
        return "false"

    def code(self, api: Api) -> Any:
        return api.bindings.ErrorCode.UNSUPPORTED_NODE

    def node_operator(self, api: Api) -> str:
        return "Conv"

    def node_name(self, api: Api) -> str:
        return self.name

    def node(self, api: Api) -> int:
        return self.number


class Refitter(Behaviour):
    """Takes all weights that are `marked`; none, like TensorRT, while some are `missing`; or it `fails`.

    Of `stale` weights it says that it took them.
    """

    marked = tuple(WEIGHTS)
    missing: tuple[str, ...] = ()
    fails = False
    stale = False

    def __init__(self) -> None:
        self.given: dict[str, Callable[[], bytes]] = {}
        self.inputs: list[Any] = []
        self.outputs: list[Any] = []
        self.initializers: list[str] = []

    def get_all_weights(self, api: Api) -> list[str]:
        return [*self.marked]

    def get_named_weights(self, api: Api, weights_name: str) -> Any:
        weights = api.bindings.Weights
        return weights(np.zeros(WEIGHTS[weights_name], np.float32)) if weights_name in self.given else weights()

    def get_missing_weights(self, api: Api) -> list[str]:
        return list(self.missing)

    def refit_cuda_engine_async(self, api: Api, stream_handle: int) -> bool:
        api.require_all_alive()
        assert _cuda().stand_in_enqueue(stream_handle), "there is no such stream"
        if not self.stale:
            engine = self.arguments[0]._behaviour
            engine.pending = {name: np.frombuffer(self.given[name](), np.float32) for name in self.marked}
        return not self.fails and not self.missing


class Runtime(Behaviour):
    """Gives an engine for every plan; or none, and says nothing."""

    loads = True

    def deserialize_cuda_engine(self, api: Api, plan: bytes) -> StandIn | None:
        engine = StandIn(api, api.bindings.ICudaEngine)
        engine._behaviour.load(plan)
        return engine if self.loads else None


class Registry(Behaviour):
    """Takes every library; or none, and says nothing."""

    loads = True

    def load_library(self, api: Api, path: str) -> object:
        return object() if self.loads else None


BEHAVIOURS: dict[str, type[Behaviour]] = {
    "INetworkDefinition": Network,
    "ITensor": Tensor,
    "IBuilderConfig": Config,
    "IOptimizationProfile": OptimizationProfile,
    "ITimingCache": TimingCache,
    "Builder": Builder,
    "ICudaEngine": Engine,
    "IExecutionContext": Context,
    "EngineInspector": Inspector,
    "ISerializationConfig": SerializationConfig,
    "OnnxParser": Parser,
    "OnnxParserRefitter": Parser,
    "ParserError": ParserError,
    "Refitter": Refitter,
    "Runtime": Runtime,
    "IPluginRegistry": Registry,
}
