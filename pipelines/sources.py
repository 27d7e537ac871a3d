"""The files a model's config names: its ONNX or torch source, its weights, its batches."""

from __future__ import annotations

import ast
import site
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from conf.schema import Model, Source

BATCH_SUFFIXES = (".npz", ".npy")

Files = Mapping[str, Sequence[Path]]
"""What a flow can name as `model.<name>`: the files, in the order that counts."""


def main_file(model: Model) -> Path | None:
    """The ONNX file of a model that comes as one.

    Raises:
        ConfigError: It is not given or not there.
    """
    if model.source is not Source.onnx:
        return None
    if not model.path:
        raise ConfigError("model.path is not given", "say which ONNX file: model.path=net.onnx")
    return _existing("model.path", model.path)


def collect(model: Model, signature: Mapping[str, Any] | None) -> Files:
    """All files of `model` by the name that flows give them; what the model does not have is absent.

    Args:
        model: The model's config.
        signature: What the stage `signature` read from the ONNX file; None for a torch module.

    Raises:
        ConfigError: A path is not there, or holds no batches.
    """
    files: dict[str, Sequence[Path]] = {}
    main = main_file(model)
    if main is not None and signature is not None:
        files["onnx"] = [main, *(main.parent / name for name in signature["external_data"])]
        for external in files["onnx"][1:]:
            if not external.is_file():
                raise ConfigError(
                    f"{main}: its external data {external.name} is not there: {external}",
                    "keep the external files beside the ONNX file, under the names they were saved with",
                )
    else:
        files["source"] = modules(_entry_point(model))
        if model.weights:
            files["weights"] = [_existing("model.weights", model.weights)]
    for name, path in (("calibration", model.calibration.path), ("holdout", model.holdout.path)):
        if path:
            files[name] = _batches(f"model.{name}.path", path)
    return files


def modules(entry_point: str) -> list[Path]:
    """The Python files that decide what `package.module:callable` returns.

    They are its module and, followed through their imports, the modules of its own top-level package and all that lie
    neither in the standard library nor among installed packages. Nothing is imported to find out.

    Raises:
        ConfigError: The module cannot be found.
    """
    name = entry_point.partition(":")[0]
    top = name.partition(".")[0]
    found: dict[str, Path] = {}
    waiting = [name]
    while waiting:
        module = waiting.pop()
        path = _locate(module)
        if path is None or module in found:
            continue
        found[module] = path
        waiting += [other for other in _imports(path, module) if other.partition(".")[0] == top or _is_users(other)]
        waiting += [module.rpartition(".")[0]] if "." in module else []
    if name not in found:
        raise ConfigError(
            f"model.entry_point: module {name!r} is not found from {Path.cwd()}",
            "run from the directory that holds its package, or install it",
        )
    return [found[module] for module in sorted(found)]


def _entry_point(model: Model) -> str:
    if not model.entry_point or not all(model.entry_point.partition(":")):
        raise ConfigError(
            f"model.entry_point is {model.entry_point!r}", "say which: model.entry_point=package.module:callable"
        )
    return model.entry_point


def _existing(key: str, text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        what = "a directory, not a file" if path.is_dir() else "no such file"
        raise ConfigError(f"{key}={text}: {what}", f"give an existing file: {key}=…")
    return path.absolute()


def _batches(key: str, text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        files = sorted(file.absolute() for file in path.iterdir() if file.suffix in BATCH_SUFFIXES)
        if not files:
            raise ConfigError(f"{key}={text}: the directory holds no .npz or .npy file", "put the batches there")
        return files
    return [_existing(key, text)]


def _is_users(module: str) -> bool:
    """Whether a module is the user's own, and neither Python's nor installed."""
    path = _locate(module)
    return path is not None and not any(path.is_relative_to(root) for root in _foreign_roots())


@cache
def _foreign_roots() -> tuple[Path, ...]:
    # Python's own modules and site-packages, of the virtual environment and of the Python below it.
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return (*(Path(sysconfig.get_path(name)) for name in names), *(Path(root) for root in site.getsitepackages()))


def _locate(module: str) -> Path | None:
    relative = Path(*module.split("."))
    for root in (Path.cwd(), *(Path(entry) for entry in sys.path if entry)):
        for candidate in (root / relative.with_suffix(".py"), root / relative / "__init__.py"):
            if candidate.is_file():
                return candidate
    return None


def _imports(path: Path, module: str) -> Iterable[str]:
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno}: {error.msg}", "mend the module of model.entry_point") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
