"""From a torch module to ONNX: made by the user's entry point, exported, and compared with its export.

The comparison runs both on the user's example inputs or on random ones, over the opt, min and max of every dynamic
dimension.
"""

from __future__ import annotations

import importlib
import inspect
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import batches, onnx_file
from stages.onnx_check import require_opset
from stages.onnx_session import open_session
from stages.stage import JSON, Job, Metrics, StageError
from stages.users_python import find, imports_from
from stages.wording import first_line

if TYPE_CHECKING:
    import numpy as np
    import onnx
    import torch

    from stages.export import ExportConfig

DEFAULT_OPSET = 20
"""What a torch module is exported to: from opset 23 on `Attention` appears, which TensorRT-RTX refuses in FP32."""

INPUT_DTYPES = ("float32", "float16", "float64", "int64", "int32", "int8", "uint8", "bool")
"""Dtypes that both PyTorch and ONNX Runtime's CPU provider take as inputs."""

MIN, OPT, MAX = range(3)

ONE_EXPORT = threading.Lock()
"""torch.export patches the whole process, and so does `sys.path`."""


@dataclass(frozen=True)
class TorchSource:
    """The fact `source` of a torch model.

    Attributes:
        entry_point: `package.module:callable`, which returns the module.
        shapes: The shape of each input, its dynamic dimensions by name.
        dtypes: The dtype of each input, in numpy's words.
        dims: (min, opt, max) of each named dimension.
        examples: `package.module:callable`, which returns example inputs; None: random ones.
    """

    entry_point: str
    shapes: Mapping[str, Sequence[int | str]]
    dtypes: Mapping[str, str]
    dims: Mapping[str, Sequence[int]]
    examples: str | None = None

    @classmethod
    def of(cls, fact: Mapping[str, Any]) -> TorchSource:
        """Reads the fact and holds it to itself.

        Raises:
            StageError: A dimension has no range, or a dtype cannot be fed.
        """
        inputs: Mapping[str, Mapping[str, Any]] = fact["inputs"]
        source = cls(
            entry_point=fact["entry_point"],
            shapes={name: spec["shape"] for name, spec in inputs.items()},
            dtypes={name: spec.get("dtype", "float32") for name, spec in inputs.items()},
            dims=fact.get("dims") or {},
            examples=fact.get("examples"),
        )
        source._check()
        return source

    def shape(self, name: str, pick: int) -> tuple[int, ...]:
        """The shape of the input `name` with every named dimension at its `MIN`, `OPT` or `MAX`."""
        return tuple(dim if isinstance(dim, int) else self.dims[dim][pick] for dim in self.shapes[name])

    def dynamic(self, name: str) -> dict[int, str]:
        """The axes of the input `name` that vary, and the names of their dimensions."""
        axes = ((axis, dim) for axis, dim in enumerate(self.shapes[name]) if isinstance(dim, str))
        return {axis: dim for axis, dim in axes if self.dims[dim][MIN] != self.dims[dim][MAX]}

    def _check(self) -> None:
        for name, shape in self.shapes.items():
            for dim in shape:
                if isinstance(dim, str) and dim not in self.dims:
                    raise StageError(
                        f"input '{name}' has the dimension '{dim}', and model.dims knows {sorted(self.dims) or 'none'}",
                        f"give its range: model.dims.{dim}=[1,8,32]",
                    )
            if self.dtypes[name] not in INPUT_DTYPES:
                raise StageError(
                    f"input '{name}' has the dtype '{self.dtypes[name]}'; allowed are {', '.join(INPUT_DTYPES)}",
                    "give the module inputs of one of these dtypes, and cast with the stage `cast` after the export",
                )
        largest = {name: (self.shape(name, MAX), self.dtypes[name]) for name in self.shapes}
        batches.require_room("inputs of the max of model.dims", largest, "lower the max in model.dims")


def export_torch(job: Job[ExportConfig], scratch: Path) -> tuple[onnx.ModelProto, Metrics]:
    """The user's torch module as ONNX, and how far ONNX Runtime is from it.

    Args:
        job: The run of the stage.
        scratch: A directory for large weights, which the model names; it must stay until the model is written.

    Raises:
        StageError: torch is not installed, or the module cannot be made or exported, or differs from its export.
    """
    source = TorchSource.of(job.facts["source"])
    _require_torch()
    import torch

    with ONE_EXPORT, imports_from(Path.cwd()), torch.no_grad():
        job.progress("load", None)
        module = _make_module(source.entry_point, job.file("weights") if job.inputs.get("weights") else None)
        case = _Case(module, source)
        job.progress("export", None)
        model = _trace(case, job.config, scratch)
        job.progress("compare", None)
        errors = _compare(case, model, job.config)
    return model, {"torch": torch.__version__, "max_abs_error": errors}


@contextmanager
def opened(fact: Mapping[str, Any], weights: Path | None) -> Iterator[Module]:
    """The user's module itself, to be run on feeds.

    Args:
        fact: The fact `source` of a torch model.
        weights: The file of its weights.

    Raises:
        StageError: torch is not installed, or the module cannot be made.
    """
    source = TorchSource.of(fact)
    _require_torch()
    import torch

    with ONE_EXPORT, imports_from(Path.cwd()), torch.no_grad():
        yield Module(_Case(_make_module(source.entry_point, weights), source))


@dataclass(frozen=True)
class Module:
    """A torch module that takes and gives arrays by the names that its export has."""

    case: _Case

    @property
    def inputs(self) -> list[batches.Input]:
        """What it takes."""
        source = self.case.source
        return [batches.Input(name, source.dtypes[name], tuple(source.shapes[name])) for name in self.case.inputs]

    def feed(self, batch: Mapping[str, batches.Array]) -> dict[str, batches.Array]:
        """Its outputs for one batch.

        Raises:
            StageError: The module fails.
        """
        import torch

        found = self.case.called({name: torch.from_numpy(batch[name].copy()) for name in self.case.inputs})
        return {name: _array(value) for name, (_, value) in zip(self.case.outputs, found, strict=True)}


def _array(tensor: torch.Tensor) -> batches.Array:
    import torch

    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()  # type: ignore[no-any-return]


def _require_torch() -> None:
    for package in ("torch", "onnxscript"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise StageError(
                f"a model with source=torch needs {package}, which is not installed here",
                "pip install 'trtforge[torch]'",
            ) from error


def _make_module(entry_point: str, weights: Path | None) -> torch.nn.Module:
    import torch

    make = _find(entry_point)
    loads_itself = weights is not None and _takes_path(make)
    try:
        module = make(weights) if loads_itself else make()
    except Exception as error:
        raise StageError(
            f"{entry_point} raised {type(error).__name__}: {first_line(error)}",
            "call it by itself in Python; it gets the path of model.weights where that is set and its first parameter "
            "has no default or None, else nothing",
        ) from error
    if not isinstance(module, torch.nn.Module):
        raise StageError(
            f"{entry_point} returned {type(module).__name__}, and must return a torch.nn.Module",
            "return the module itself",
        )
    if weights is not None and not loads_itself:
        _load_weights(module, weights, entry_point)
    return module.cpu().eval()


def _takes_path(make: Callable[..., object]) -> bool:
    """Whether the entry point wants the path of the weights: its first parameter has no default, or None."""
    first = next(iter(inspect.signature(make).parameters.values()), None)
    return first is not None and (first.default is None or first.default is inspect.Parameter.empty)


def _load_weights(module: torch.nn.Module, weights: Path, entry_point: str) -> None:
    state = _read_state(weights)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        reasons = " ".join(str(error).split())
        raise StageError(
            f"model.weights={weights} does not fit the module of {entry_point}: {reasons[:500]}",
            "give the checkpoint of this module, or let the entry point take the path and load it",
        ) from error


def _read_state(path: Path) -> Mapping[str, torch.Tensor]:
    """The state dict in a safetensors file or a file of `torch.save`, told apart by their first bytes.

    Raises:
        StageError: It is neither, or holds other things than tensors, which are not unpickled: that would run them.
    """
    import torch

    with path.open("rb") as file:
        is_safetensors = file.read(9)[8:] == b"{"  # 8 bytes of length, then JSON
    try:
        if is_safetensors:
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zipfile, safetensors and torch have errors of their own
        raise StageError(
            f"model.weights={path} is no state dict: {type(error).__name__}: {first_line(error)}",
            "save tensors only: torch.save(module.state_dict(), path), or safetensors.torch.save_file",
        ) from error
    if isinstance(state, Mapping) and isinstance(state.get("state_dict"), Mapping):
        state = state["state_dict"]  # as training frameworks wrap it
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise StageError(
            f"model.weights={path} is no state dict: it holds {type(state).__name__}, not tensors by name",
            "save tensors only: torch.save(module.state_dict(), path)",
        )
    return state


def _find(entry_point: str) -> Callable[..., object]:
    module, _, name = entry_point.partition(":")
    if not module or not name:
        raise StageError(f"the entry point '{entry_point}' is no package.module:callable", "name both, with a colon")
    hint = f"run trtforge in the directory that holds {module.partition('.')[0]}, or install that package"
    return find(entry_point, called=f"the entry point {entry_point}", next_step=hint)


class _Case:
    """A module, its example inputs and its outputs by name.

    Inputs are given by name where the module's `forward` has parameters of these names, else in their order.
    """

    def __init__(self, module: torch.nn.Module, source: TorchSource) -> None:
        self.module = module
        self.source = source
        parameters = list(inspect.signature(module.forward).parameters)
        self.by_name = set(source.shapes) <= set(parameters)
        self.inputs = [name for name in parameters if name in source.shapes] if self.by_name else list(source.shapes)
        self._make = _find(source.examples) if source.examples else None
        self.outputs = self._name_outputs()

    @property
    def picks(self) -> Sequence[int]:
        """Where the module is compared with its export: examples that take no sizes come in one size only."""
        is_one_size = self._make is not None and not self._sizes(self._make, OPT)
        return (OPT, MIN, MAX) if self.source.dims and not is_one_size else (OPT,)

    def examples(self, pick: int) -> dict[str, torch.Tensor]:
        """Example inputs, the same ones each time, with named dimensions at their `MIN`, `OPT` or `MAX`."""
        return self._random(pick) if self._make is None else self._users(self._make, pick)

    def _sizes(self, make: Callable[..., object], pick: int) -> dict[str, int]:
        """The sizes of those dimensions that the parameters of the user's callable name."""
        parameters = inspect.signature(make).parameters
        takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
        return {name: sizes[pick] for name, sizes in self.source.dims.items() if takes_all or name in parameters}

    def _users(self, make: Callable[..., object], pick: int) -> dict[str, torch.Tensor]:
        import torch

        given = self._sizes(make, pick)
        try:
            returned = make(**given)
        except Exception as error:
            said = ", ".join(f"{name}={size}" for name, size in given.items())
            raise StageError(
                f"{self.source.examples}({said}) raised {type(error).__name__}: {first_line(error)}",
                "let it take the sizes of model.dims it needs as keyword arguments, and no others",
            ) from error
        if not isinstance(returned, Mapping) or set(returned) != set(self.inputs):
            got = sorted(returned) if isinstance(returned, Mapping) else type(returned).__name__
            raise StageError(
                f"{self.source.examples} returned {got}, and must return a dict of {sorted(self.inputs)}",
                "name an example for each of model.inputs",
            )
        examples = {name: torch.as_tensor(returned[name]) for name in self.inputs}
        self._check_examples(examples, pick, bool(given))
        return examples

    def _check_examples(self, examples: Mapping[str, torch.Tensor], pick: int, has_sizes: bool) -> None:
        """Holds the user's examples to `model.inputs`: all that follows believes it."""
        for name, value in examples.items():
            want, dtype = self.source.shape(name, pick), str(value.dtype).removeprefix("torch.")
            varies = self.source.dynamic(name) if not has_sizes else {}
            low, high = (self.source.shape(name, which) for which in (MIN, MAX))
            fits = len(value.shape) == len(want) and all(
                low[axis] <= size <= high[axis] if axis in varies else size == want[axis]
                for axis, size in enumerate(value.shape)
            )
            if not fits or dtype != self.source.dtypes[name]:
                raise StageError(
                    f"{self.source.examples}: the example of '{name}' is {dtype} {list(value.shape)}, and model.inputs "
                    f"says {self.source.dtypes[name]} {list(self.source.shapes[name])}, here {list(want)}",
                    "correct the example or model.inputs",
                )

    def _random(self, pick: int) -> dict[str, torch.Tensor]:
        import torch

        random = torch.Generator().manual_seed(0)
        examples = {}
        for name in self.inputs:
            shape, dtype = self.source.shape(name, pick), getattr(torch, self.source.dtypes[name])
            # 0 and 1 are the integers that are in range of every vocabulary, mask and token type.
            values = torch.randn if dtype.is_floating_point else lambda *size, **kw: torch.randint(0, 2, size, **kw)
            examples[name] = values(*shape, generator=random).to(dtype)
        return examples

    def run(self, pick: int) -> list[tuple[str, torch.Tensor]]:
        """The module's outputs on its examples, by their path in what it returns."""
        return self.called(self.examples(pick))

    def called(self, examples: Mapping[str, torch.Tensor]) -> list[tuple[str, torch.Tensor]]:
        """The module's outputs on `examples`, an input each in the order of `inputs`, by their path.

        Raises:
            StageError: The module fails.
        """
        try:
            result = self.module(**examples) if self.by_name else self.module(*examples.values())
        except Exception as error:
            sizes = ", ".join(f"{name}={list(value.shape)}" for name, value in examples.items())
            raise StageError(
                f"{self.source.entry_point}: the module fails on {sizes}: {first_line(error)}",
                "compare the module's forward with model.inputs and model.dims",
            ) from error
        return list(_flatten(result))

    def _name_outputs(self) -> list[str]:
        found = [name for name, _ in self.run(OPT)]
        named = [str(name) for name in getattr(self.module, "output_names", [])]
        if named and len(named) != len(found):
            raise StageError(
                f"{self.source.entry_point}: output_names has {len(named)} names, the module {len(found)} outputs",
                "name every output, in the order in which forward returns them",
            )
        return named or (["output"] if len(found) == 1 else found)


def _flatten(result: object, name: str = "output") -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors inside what a module returns: a dict's by key, a sequence's by number."""
    import torch

    if isinstance(result, torch.Tensor):
        yield name, result
    elif isinstance(result, Mapping):
        for key, value in result.items():
            yield from _flatten(value, str(key))
    elif isinstance(result, (list, tuple)):
        for index, value in enumerate(result):
            yield from _flatten(value, f"{name}_{index}")


def _trace(case: _Case, config: ExportConfig, scratch: Path) -> onnx.ModelProto:
    import torch

    examples, opset = case.examples(OPT), config.opset or DEFAULT_OPSET
    try:
        program = torch.onnx.export(
            case.module,
            () if case.by_name else tuple(examples.values()),
            kwargs=examples if case.by_name else None,
            input_names=case.inputs,
            output_names=case.outputs,
            dynamic_shapes=_dynamic_shapes(case),
            opset_version=opset,
            optimize=config.optimize,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    except Exception as error:
        raise StageError(
            f"{case.source.entry_point}: torch cannot export the module: {_root_cause(error)}",
            "try it by itself with torch.onnx.export(dynamo=True); give dimensions that cannot vary as numbers",
        ) from error
    model = _adopt(program, case, scratch)
    require_opset(model, opset, "choose an opset that torch exports to: steps.export.config.opset=20")
    onnx_file.strip_provenance(model)
    _require_face(model, case)
    return model


def _adopt(program: Any, case: _Case, scratch: Path) -> onnx.ModelProto:
    """The exported model: in memory where it is small, through a file in `scratch` where protobuf could not hold it."""
    if sum(tensor.nbytes for tensor in case.module.state_dict().values()) <= onnx_file.ONE_FILE_BYTES:
        model: onnx.ModelProto = program.model_proto
        return model
    path = scratch / "traced.onnx"
    program.save(str(path), external_data=True)
    return onnx_file.read(path)


def _dynamic_shapes(case: _Case) -> object:
    """What torch.export wants: a Dim for every axis that varies, one Dim for each name."""
    import torch

    dims = {
        name: torch.export.Dim(name, min=low, max=high)
        for name, (low, _, high) in case.source.dims.items()
        if low != high
    }
    shapes = {name: {axis: dims[dim] for axis, dim in case.source.dynamic(name).items()} for name in case.inputs}
    return shapes if case.by_name else tuple(shapes.values())


def _root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return f"{type(error).__name__}: {first_line(error)}"


def _require_face(model: onnx.ModelProto, case: _Case) -> None:
    """Holds the export to the declared inputs: flows name them in profiles and in calibration data."""
    for name in case.inputs:
        value = next((value for value in model.graph.input if value.name == name), None)
        dims = [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim] if value else None
        want = [case.source.dynamic(name).get(axis, size) for axis, size in enumerate(case.source.shape(name, OPT))]
        if dims != want:
            raise StageError(
                f"{case.source.entry_point}: input '{name}' is declared as {want} and was exported as {dims}",
                "declare what the module takes: equal dimensions under one name, fixed ones as numbers",
            )


def _compare(case: _Case, model: onnx.ModelProto, config: ExportConfig) -> dict[str, JSON]:
    """The largest absolute error of each output, over the dimensions' opt, min and max."""
    import onnxruntime

    try:
        session = open_session(model, onnxruntime.SessionOptions())
    except Exception as error:
        raise StageError(
            f"{case.source.entry_point}: ONNX Runtime cannot load the exported model: {first_line(error)}",
            "export the module in float32, and let the stage `cast` choose the precision",
        ) from error
    errors = dict.fromkeys(case.outputs, 0.0)
    for pick in case.picks:
        where = ", ".join(f"{name}={sizes[pick]}" for name, sizes in case.source.dims.items()) or "its fixed shapes"
        for name, got, want in zip(case.outputs, _infer(session, case, pick, where), case.run(pick), strict=True):
            errors[name] = max(errors[name], _error(f"output '{name}' at {where}", got, _numpy(want[1]), config))
    return dict(errors)


def _infer(session: Any, case: _Case, pick: int, where: str) -> list[np.ndarray]:
    feed = {name: value.numpy() for name, value in case.examples(pick).items()}
    try:
        outputs: list[np.ndarray] = session.run(case.outputs, feed)
    except Exception as error:
        raise StageError(
            f"{case.source.entry_point}: the exported model fails at {where}: {first_line(error)}",
            "narrow model.dims to the sizes that work, and let the module give dtypes that numpy has",
        ) from error
    return outputs


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    array: np.ndarray = tensor.detach().double().numpy()
    return array


def _error(what: str, got: np.ndarray, want: np.ndarray, config: ExportConfig) -> float:
    """The largest `|got - want|`; NaN meets NaN, and an infinity only itself."""
    import numpy as np

    if got.shape != want.shape:
        raise StageError(f"{what} has the shape {got.shape} in ONNX and {want.shape} in torch", "narrow model.dims")
    got = got.astype(np.float64)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore"):
        difference = np.where(same, 0.0, np.abs(got - want))
    allowed = np.isfinite(difference) & (difference <= config.atol + config.rtol * np.abs(want))
    worst = float(difference.max(initial=0.0))
    if not (same | allowed).all():
        raise StageError(
            f"{what} differs between ONNX and torch by up to {worst:.3g}; "
            f"allowed is {config.atol:g} + {config.rtol:g} * |torch|",
            "try steps.export.config.optimize=false; if the difference is fine, raise steps.export.config.atol",
        )
    return worst
