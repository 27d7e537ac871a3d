"""The user's own passes and plugins in a whole run: keys, refusals, and what `inspect` shows."""

from __future__ import annotations

import json
import subprocess

import onnx
import pytest

from artifacts import digest
from stages import backends
from stages.gpus import gpus
from tests.stages.rewriting import DIGITS, parsed

THEN = "steps.surgery.config.then"


def surgery(forge, *overrides):
    return forge.status("flow=export", *overrides).step("surgery")


@pytest.fixture
def own(built):
    package = built.home / "mine"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "names.py").write_text("PREFIX = 'a'\n")
    code = "from mine.names import PREFIX\n\ndef label(graph):\n    graph.nodes[0].name = PREFIX\n"
    (package / "passes.py").write_text(code)
    return built


def test_the_source_of_an_own_pass_and_what_it_imports_are_in_the_key(own):
    override = f"{THEN}=[mine.passes.label]"
    first = surgery(own, override)["key"]
    assert first not in (None, surgery(own)["key"])
    (own.home / "mine/names.py").write_text("PREFIX = 'b'\n")
    second = surgery(own, override)["key"]
    assert second != first
    (own.home / "mine/unrelated.py").write_text("PREFIX = 'c'\n")
    assert surgery(own, override)["key"] == second


def test_an_own_pass_runs_and_inspect_shows_what_each_pass_did(own):
    ran = own.build("flow=export", "runner=local", f"{THEN}=[mine.passes.label]")
    assert ran.code == 0, ran.err
    key = ran.step("surgery")["key"]
    shown = own("inspect", key).out
    assert "mine.passes.label" in shown
    assert "fused: 6" in shown
    passes = json.loads(own("inspect", key, "--json").out)["metrics"]["passes"]
    assert [each["pass"] for each in passes][-1] == "mine.passes.label"
    assert all(each["nodes_after"] <= each["nodes_before"] for each in passes)


def test_a_pass_that_is_not_there_is_refused_before_anything_runs(own):
    for name, words in (("mine.absent.label", "module 'mine.absent' is not found"), ("fodl", "did you mean fold?")):
        ran = own("build", f"{THEN}=[{name}]")
        assert (ran.code, len(ran.err.strip().splitlines())) == (2, 2)
        assert words in ran.err


def test_plugins_are_refused_on_rtx_before_anything_runs(built):
    library = built.home / "libmine.so"
    library.write_bytes(b"x")
    before = built.records()
    ran = built("build", f"model.plugins=[{library}]")
    assert ran.code == 2
    assert "tensorrt_rtx has no plugins" in ran.err
    assert built.records() == before


PLUGINS = """
void *const *getCreators(int *count) { *count = 0; return 0; }
void setLoggerFinder(void *finder) { (void)finder; }
"""
"""The least that TensorRT takes for a library of plugins: one that has none."""


@pytest.mark.gpu
@pytest.mark.skipif(
    not gpus().found or not backends.installed_version("tensorrt"), reason="no GPU, or TensorRT is not installed"
)
def test_a_plugin_library_is_loaded_into_the_builder_and_is_in_the_key(forge):
    source, library = forge.home / "mine.c", forge.home / "libmine.so"
    source.write_text(PLUGINS)
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    given = ("flow=fp32", "targets=[local]", "backend=tensorrt", f"model.plugins=[{library}]")
    ran = forge.build(*given)
    assert ran.code == 0, ran.err
    record = forge("inspect", "--json", ran.step("build", "local")["key"], *given).document
    assert record["inputs"]["plugins"] == [digest.of_file(library)]


def test_inspect_lists_what_the_parser_refuses_and_ends_with_1(built):
    path = built.home / "bad.onnx"
    text = """<ir_version: 10, opset_import: ["": 20, "acme": 1]> g (float[2] x) => (float[2] y) {
        [odd] y = acme.Foo(x) }"""
    onnx.save(parsed(text), path)
    ran = built("inspect", str(path), "--ops")
    assert ran.code == 1
    assert "acme::Foo (node 'odd'): no such operator" in ran.out
    document = json.loads(built("inspect", str(path), "--ops", "--json").out)
    assert (document["ok"], [each["node"] for each in document["refused"]]) == (False, ["odd"])


def test_inspect_says_that_the_parser_takes_what_surgery_made(built):
    key = built.status().step("surgery")["key"]
    ran = built("inspect", key, "--ops")
    assert (ran.code, "takes all 15 nodes" in ran.out) == (0, True), ran.out + ran.err
    assert built("inspect", str(DIGITS / "holdout.npz"), "--ops").code != 0
