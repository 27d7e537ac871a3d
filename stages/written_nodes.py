"""Nodes as people write them in a config, in ONNX's own text form: `y = acme.Gelu<approximate = 1>(x)`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from stages import onnx_file
from stages.allowed import require
from stages.onnx_opset import opset
from stages.stage import StageError

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto


_NAME = r"""[^\s,=()<>"]+|"[^"]*\""""
_NODE = re.compile(rf"\s*(?:{_NAME})(?:\s*,\s*(?:{_NAME}))*\s*=\s*[A-Za-z_][\w.:]*\s*\([^()=<>]*\)\s*")


def require_nodes(text: str, option: str) -> None:
    """Refuses what `parse` will not read for its form, before anything runs and without importing onnx.

    Attributes are looked at by their brackets alone.

    Raises:
        NotAllowedError: It is no list of `results = Operator<attributes>(inputs)`.
    """
    rest = re.sub(r'"(?:[^"\\]|\\.)*"', '""', text).replace("=>", " ")
    found = 1
    while found:
        rest, found = re.subn(r"<[^<>]*>", "", rest)
    at = 0
    while match := _NODE.match(rest, at):
        at = match.end()
    require(0 < at == len(rest), option, text, "nodes as 'y = Operator<attribute = 1>(x)', one a line")


def parse(text: str, option: str) -> list[NodeProto]:
    """The nodes of `text`, each a line `results = Operator<attributes>(inputs)`, a domain before a dot.

    Raises:
        StageError: It cannot be read.
    """
    from onnx import parser

    results = re.findall(r"^\s*([^=<(]+?)\s*=", text, re.MULTILINE)
    last = results[-1].split(",")[0].strip() if results else "y"
    try:
        function = parser.parse_function(f'<domain: "config", opset_import: ["": 1]> nodes () => ({last}) {{ {text} }}')
    except parser.ParseError as error:
        raise StageError(
            f"{option}: {text!r} cannot be read: {' '.join(str(error).split())}",
            f"write {option} as 'y = Operator<attribute = 1>(x)', one node a line",
        ) from error
    nodes = list(function.node)
    if not nodes or not all(node.output for node in nodes):
        raise StageError(f"{option}: {text!r} has no node that gives something", f"write {option} as 'y = Relu(x)'")
    return nodes


def import_domains(model: ModelProto, nodes: list[NodeProto]) -> None:
    """Makes `model` import the domains of `nodes` that it does not import yet, in version 1."""
    for domain in sorted({node.domain for node in onnx_file.walk(nodes)}):
        if not opset(model, domain) and domain not in ("", "ai.onnx"):
            model.opset_import.add(domain=domain, version=1)
