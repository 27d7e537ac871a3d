"""The files a model's config names: its ONNX or torch source, its weights, the user's own Python."""

from __future__ import annotations

import ast
import site
import sys
import sysconfig
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

from conf.errors import ConfigError
from conf.schema import Model, Source
from stages import backends

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
    return existing("model.path", model.path)


def collect(model: Model, signature: Mapping[str, Any] | None) -> Files:
    """The files of `model` by the name that flows give them, data left out; what the model does not have is absent.

    Args:
        model: The model's config.
        signature: What the stage `signature` read from the ONNX file; None for a torch module.

    Raises:
        ConfigError: A path is not there.
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
        files["source"] = modules(*entry_points(model))
    if model.weights:
        files["weights"] = [existing("model.weights", model.weights)]
    if model.ranges:
        files["ranges"] = [existing("model.ranges", model.ranges)]
    if model.plugins:
        files["plugins"] = plugins(model)
    return files


def plugins(model: Model) -> list[Path]:
    """The plugin libraries of `model`.

    Raises:
        ConfigError: One is not there.
    """
    return [existing(f"model.plugins[{index}]", path) for index, path in enumerate(model.plugins)]


def refuse_plugins(model: Model, *chosen: str) -> None:
    """Refuses plugins where one of the `chosen` backends has none: it would find an unknown operator much later.

    Raises:
        ConfigError: One has none.
    """
    for backend in chosen if model.plugins else ():
        if not backends.find(backend).takes_plugins:
            raise ConfigError(
                f"model.plugins: {backend} has no plugins", "build with backend=tensorrt, or leave out model.plugins"
            )


def pass_modules(passes: Sequence[str]) -> list[Path]:
    """The Python files that decide what the user's own passes do, each named `package.module.callable`.

    Raises:
        ConfigError: A module cannot be found.
    """
    return modules(*map(_entry_point_of_pass, passes), key=_PASSES) if passes else []


def pass_packages(passes: Sequence[str]) -> dict[str, str | None]:
    """The versions of the installed distributions that these passes can use, onnx-graphsurgeon among them.

    Raises:
        ConfigError: A module cannot be found.
    """
    from importlib import metadata  # 20 ms, which only the user's own code needs

    graphsurgeon = {"onnx-graphsurgeon": metadata.version("onnx-graphsurgeon")}
    return {**packages(*map(_entry_point_of_pass, passes), key=_PASSES), **graphsurgeon}


_PASSES = "a surgery step's passes"


def _entry_point_of_pass(name: str) -> str:
    module, _, function = name.replace(":", ".").rpartition(".")
    return f"{module}:{function}"


def modules(*entry_points: str, key: str = "model.entry_point") -> list[Path]:
    """The Python files that decide what each `package.module:callable` returns.

    They are its module and, followed through their imports, the modules of its own top-level package and all that lie
    neither in the standard library nor among installed packages. Nothing is imported to find out.

    Raises:
        ConfigError: A module cannot be found.
    """
    found, _ = _follow(entry_points, key)
    return [found[module] for module in sorted(found)]


def script(path: Path, key: str) -> list[Path]:
    """The Python files that decide what a script does: itself first, then those that it imports, as `modules` has it.

    Raises:
        ConfigError: One cannot be parsed.
    """
    found, _ = _follow((), key, path)
    return [path, *(found[module] for module in sorted(found) if module != _MAIN)]


def script_packages(path: Path, key: str) -> dict[str, str | None]:
    """The version of each installed distribution that these files import, as `packages` has it.

    Raises:
        ConfigError: One cannot be parsed.
    """
    return _versions(_follow((), key, path)[1])


def packages(*entry_points: str, key: str = "model.entry_point") -> dict[str, str | None]:
    """The version of each installed distribution that these files import; None for a package that is not there.

    One that is missing counts, too: `try: import x` finds it once it is installed.

    Raises:
        ConfigError: A module cannot be found.
    """
    return _versions(_follow(entry_points, key)[1])


def _versions(imported: set[str]) -> dict[str, str | None]:
    if not imported:
        return {}
    from importlib import metadata

    versions: dict[str, str | None] = {}
    for package in imported:
        names = _distributions(package)
        versions.update({name: metadata.version(name) for name in names} if names else {package: None})
    return versions


_MAIN = "__main__"


def _follow(entry_points: Iterable[str], key: str, script: Path | None = None) -> tuple[dict[str, Path], set[str]]:
    """The modules of the user's own that these need, by name, and the packages of others that they import.

    A script stands beside them as `__main__`, and what lies beside it is found as Python finds it.
    """
    names = [entry_point.partition(":")[0] for entry_point in entry_points]
    tops = {name.partition(".")[0] for name in names}
    found: dict[str, Path] = {}
    others: set[str] = set()
    waiting = [*names, *([_MAIN] if script else [])]
    beside = (script.parent,) if script else ()
    while waiting:
        module = waiting.pop()
        path = script if module == _MAIN else _locate(module, beside)
        if path is None or module in found:
            continue
        found[module] = path
        for other in filter(None, _imports(path, module, key)):
            if other.partition(".")[0] in tops or _is_users(other, beside):
                waiting.append(other)
            else:
                others.add(other.partition(".")[0])
        waiting += [module.rpartition(".")[0]] if "." in module else []
    for name in names:
        if name not in found:
            raise ConfigError(
                f"{key}: module {name!r} is not found from {Path.cwd()}",
                "run from the directory that holds its package, or install it",
            )
    own = {module.partition(".")[0] for module in found}
    return found, others - own - sys.stdlib_module_names


def entry_points(model: Model) -> list[str]:
    """The user's own callables that a torch model names: the one that makes it, and the one that makes examples.

    Raises:
        ConfigError: None is given, or one is no `package.module:callable`.
    """
    given = {"entry_point": model.entry_point, **({"examples": model.examples} if model.examples else {})}
    for key, value in given.items():
        if not value or not all(value.partition(":")):
            raise ConfigError(f"model.{key} is {value!r}", f"say which: model.{key}=package.module:callable")
    return [value for value in given.values() if value]


def existing(key: str, text: str) -> Path:
    """The file that `text` says.

    Raises:
        ConfigError: It is not there, or a directory.
    """
    path = Path(text)
    if not path.is_file():
        what = "a directory, not a file" if path.is_dir() else "no such file"
        raise ConfigError(f"{key}={text}: {what}", f"give an existing file: {key}=…")
    return path.absolute()


def _is_users(module: str, beside: Sequence[Path] = ()) -> bool:
    """Whether a module is the user's own: neither Python's, nor one of a distribution that has a version."""
    path, top = _locate(module, beside), module.partition(".")[0]
    if path is None or top in sys.stdlib_module_names:
        return False
    return not any(path.is_relative_to(root) for root in _foreign_roots()) or not _distributions(top)


@cache
def _distributions(package: str) -> tuple[str, ...]:
    """The installed distributions that the top-level `package` comes from."""
    from importlib import metadata

    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:  # sklearn comes from scikit-learn; to find that out takes 0.1 s
        return tuple(sorted(set(metadata.packages_distributions().get(package, ()))))
    return (package,)


@cache
def _foreign_roots() -> tuple[Path, ...]:
    # Python's own modules and site-packages, of the virtual environment and of the Python below it.
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return (*(Path(sysconfig.get_path(name)) for name in names), *(Path(root) for root in site.getsitepackages()))


def _locate(module: str, beside: Sequence[Path] = ()) -> Path | None:
    relative = Path(*module.split("."))
    for root in (*beside, Path.cwd(), *(Path(entry) for entry in sys.path if entry)):
        compiled = (root / f"{relative}{suffix}" for suffix in EXTENSION_SUFFIXES)
        for candidate in (root / relative.with_suffix(".py"), root / relative / "__init__.py", *compiled):
            if candidate.is_file():
                return candidate
    return None


def _imports(path: Path, module: str, key: str) -> Iterable[str]:
    if path.suffix != ".py":
        return
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    try:
        tree = ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        raise ConfigError(f"{path}:{error.lineno}: {error.msg}", f"mend it: {key} needs it") from error
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
