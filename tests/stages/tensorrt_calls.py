"""Finds, in the sources of `stages`, every name that is asked of TensorRT: what the contract tests must reach.

TensorRT's bindings have no types for mypy, so its objects stand in our code as `Any`: a parameter, field or result of
that type, `trt`, and whatever comes out of these. A name of the bindings that is asked of such an object is a call.
Assignments count wherever they stand in a function, whatever their order.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

STAGES = Path(__file__).parents[2] / "stages"


@dataclass(frozen=True, order=True)
class Site:
    """A name asked of an object of TensorRT.

    Attributes:
        file: `build.py`, below `stages`.
        lines: The first and the last line of the expression, from 1.
        name: `build_serialized_network`.
    """

    file: str
    lines: tuple[int, int]
    name: str

    @property
    def range(self) -> range:
        """The lines."""
        return range(self.lines[0], self.lines[1] + 1)

    def __str__(self) -> str:
        return f"stages/{self.file}:{self.lines[1]}: {self.name}"


def names(bindings: ModuleType) -> set[str]:
    """All that TensorRT's bindings name: classes, functions, members of enums, methods and properties."""
    kinds = [kind for kind in vars(bindings).values() if inspect.isclass(kind)]
    inner = [value for kind in kinds for value in vars(kind).values() if inspect.isclass(value)]
    found = {*dir(bindings), *(name for kind in (*kinds, *inner) for name in dir(kind))}
    return {name for name in found if not name.startswith("__")}


@contextmanager
def traced() -> Iterator[set[tuple[str, int]]]:
    """The lines of `stages` that run meanwhile: (file, line)."""
    lines: set[tuple[str, int]] = set()
    below = str(STAGES)

    def line(frame: FrameType, event: str, argument: Any) -> Any:
        lines.add((frame.f_code.co_filename, frame.f_lineno))
        return line

    def call(frame: FrameType, event: str, argument: Any) -> Any:
        return line(frame, event, argument) if frame.f_code.co_filename.startswith(below) else None

    before = sys.gettrace()
    sys.settrace(call)
    try:
        yield lines
    finally:
        sys.settrace(before)


@dataclass(frozen=True)
class Calls:
    """What `stages` asks of TensorRT, of one version's names.

    Attributes:
        made: Names that the version has, asked of objects of TensorRT.
        lacking: Names like those of TensorRT that the version lacks, asked of such objects.
        overlooked: Names that the version has and hardly anything else, asked of what does not seem to be TensorRT's.
    """

    made: tuple[Site, ...]
    lacking: tuple[Site, ...]
    overlooked: tuple[Site, ...]

    def unreached(self, ran: Collection[tuple[str, int]], asked: Collection[tuple[str, int, str]]) -> list[Site]:
        """Those of `made` that did not happen; where a line asks for what the version lacks, it was not to happen.

        Args:
            ran: The lines that ran.
            asked: (file, line, name) of what stand-ins were asked for: of a line with two methods, maybe one was.
        """
        elsewhere = {(site.file, line) for site in self.lacking for line in site.range}

        def happened(site: Site) -> bool:
            file = str(STAGES / site.file)
            if is_long(site.name):
                return any((file, line, site.name) in asked for line in site.range)
            return any((file, line) in ran for line in site.range)

        return [
            site
            for site in self.made
            if not happened(site) and not {(site.file, line) for line in site.range} & elsewhere
        ]


def sources() -> dict[str, str]:
    """The modules of `stages`, by their file."""
    return {path.relative_to(STAGES).as_posix(): path.read_text() for path in sorted(STAGES.rglob("*.py"))}


def calls(names: Collection[str], sources: Mapping[str, str]) -> Calls:
    """What the sources, by file, ask of a version of TensorRT that has these names.

    Of modules that ask none of the longer names, nothing: `name` and `shape` have objects of many libraries.
    """
    # The others ask nothing for sure, and parsing takes its time.
    likely = {
        file: text for file, text in sources.items() if "trt." in text or "-> Any" in text or _asks_long(text, names)
    }
    parsed = {file: ast.parse(text) for file, text in likely.items()}
    made, lacking, overlooked = list[Site](), list[Site](), list[Site]()
    functions = {(Path(file).stem, name) for file, module in parsed.items() for name in _returning_any(module)}
    for file, module in parsed.items():
        foreign = Foreign(module, _returning_any(module) | _imported(module, functions), functions)
        nodes = [node for node in ast.walk(module) if isinstance(node, ast.Attribute)]
        theirs = {node for node in nodes if foreign.is_foreign(node.value)}
        if any(node.attr in names and (is_long(node.attr) or _is_module(node.value)) for node in theirs):
            made += [_site(file, node) for node in theirs if node.attr in names]
            lacking += [_site(file, node) for node in theirs if node.attr not in names and _is_theirs(node.attr)]
            overlooked += [_site(file, node) for node in nodes if node not in theirs and is_long(node.attr)]
    found = {*made}
    return Calls(
        tuple(sorted(found)),
        tuple(sorted({*lacking})),
        tuple(sorted({site for site in overlooked if site.name in names} - found)),
    )


def is_long(name: str) -> bool:
    """Whether hardly anything but TensorRT has a method or property of this name."""
    return "_" in name and name.islower() and not name.startswith("_")


def _asks_long(text: str, names: Collection[str]) -> bool:
    return any(is_long(word) and word in names for word in re.findall(r"\.(\w+)", text))


def _is_theirs(name: str) -> bool:
    return is_long(name) or (not name.islower() and not name.startswith("_"))


def _is_module(node: ast.AST) -> bool:
    return "trt" in (getattr(node, "id", ""), getattr(node, "attr", ""))


def _site(file: str, node: ast.Attribute) -> Site:
    return Site(file, (node.lineno, node.end_lineno or node.lineno), node.attr)


def _imported(module: ast.Module, functions: Collection[tuple[str, str]]) -> set[str]:
    found = (node for node in ast.walk(module) if isinstance(node, ast.ImportFrom) and node.module)
    given = ((str(node.module).rpartition(".")[2], alias) for node in found for alias in node.names)
    return {alias.asname or alias.name for stem, alias in given if (stem, alias.name) in functions}


def _returning_any(module: ast.Module) -> set[str]:
    found = (node for node in ast.walk(module) if isinstance(node, ast.FunctionDef))
    return {node.name for node in found if node.returns and "Any" in _names(node.returns)}


class Foreign:
    """Which expressions of a module are objects that have no type of ours."""

    def __init__(self, module: ast.Module, functions: Collection[str], elsewhere: Collection[tuple[str, str]]) -> None:
        self.functions, self.elsewhere = functions, elsewhere
        self.scopes: dict[ast.AST, ast.AST] = dict(_scopes(module, module))
        self.known = {scope: {"trt"} | _parameters(scope) for scope in {*self.scopes.values()}}
        self.fields = {_target(each) for each in ast.walk(module) if _is_field(each)}
        size = -1
        while size != (size := sum(map(len, self.known.values())) + len(self.fields)):
            for node in ast.walk(module):
                self._learn(node)

    def is_foreign(self, node: ast.AST | None) -> bool:
        """Whether the expression is such an object, or holds some."""
        if isinstance(node, ast.Name):
            return self._is_known(node)
        if isinstance(node, ast.Attribute):
            return node.attr in self.fields or self.is_foreign(node.value)
        if isinstance(node, ast.Call):
            return self._is_function(node.func) or self.is_foreign(node.func)
        if isinstance(node, (ast.Subscript, ast.Starred)):
            return self.is_foreign(node.value)
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp)):
            return self.is_foreign(node.elt)
        if isinstance(node, ast.DictComp):
            return self.is_foreign(node.value)
        parts = {ast.List: "elts", ast.Tuple: "elts", ast.Set: "elts", ast.BoolOp: "values"}
        if type(node) in parts:
            return any(map(self.is_foreign, getattr(node, parts[type(node)])))
        return isinstance(node, ast.IfExp) and (self.is_foreign(node.body) or self.is_foreign(node.orelse))

    def _is_function(self, node: ast.AST) -> bool:
        if isinstance(node, ast.Name):
            return node.id in self.functions
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            return False
        return (node.value.id, node.attr) in self.elsewhere or (node.value.id == "self" and node.attr in self.functions)

    def _is_known(self, node: ast.Name) -> bool:
        scope: ast.AST | None = self.scopes[node]
        while scope is not None:
            if node.id in self.known.get(scope, ()):
                return True
            scope = self.scopes.get(scope)
        return False

    def _learn(self, node: ast.AST) -> None:
        if isinstance(node, ast.Assign):
            for target in node.targets:
                self._bind(target, node.value)
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
            self._bind(node.target, node.value)
        elif isinstance(node, (ast.For, ast.comprehension)):
            self._bind(node.target, node.iter)
        elif isinstance(node, ast.withitem) and node.optional_vars:
            self._bind(node.optional_vars, node.context_expr)

    def _bind(self, target: ast.AST, value: ast.AST | None) -> None:
        if isinstance(target, ast.Tuple):
            values = value.elts if isinstance(value, ast.Tuple) else [value] * len(target.elts)
            for each, its in zip(target.elts, values, strict=False):
                self._bind(each, its)
        elif self.is_foreign(value):
            if isinstance(target, ast.Name):
                self.known[self.scopes[target]].add(target.id)
            elif isinstance(target, ast.Attribute) and isinstance(target.value, ast.Name) and target.value.id == "self":
                self.fields.add(target.attr)


def _scopes(node: ast.AST, scope: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Each node, and the function, or the module, that it stands in."""
    for child in ast.iter_child_nodes(node):
        yield child, scope
        inner = child if isinstance(child, (ast.FunctionDef, ast.Lambda)) else scope
        yield from _scopes(child, inner)


def _parameters(scope: ast.AST) -> set[str]:
    if not isinstance(scope, ast.FunctionDef):
        return set()
    given = [*scope.args.posonlyargs, *scope.args.args, *scope.args.kwonlyargs]
    return {each.arg for each in given if each.annotation and "Any" in _names(each.annotation)}


def _is_field(node: ast.AST) -> bool:
    return isinstance(node, ast.AnnAssign) and _is_any(node.annotation)


def _target(node: ast.AST) -> str:
    target = getattr(node, "target", None)
    return target.attr if isinstance(target, ast.Attribute) else getattr(target, "id", "")


def _is_any(annotation: ast.AST) -> bool:
    return isinstance(annotation, ast.Name) and annotation.id == "Any"


def _names(node: ast.AST) -> set[Any]:
    return {each.id for each in ast.walk(node) if isinstance(each, ast.Name)}
