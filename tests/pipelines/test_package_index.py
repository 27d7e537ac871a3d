"""The package index is asked through pip, and one that does not answer is told in one line."""

from __future__ import annotations

import socket
import time

import pytest

from pipelines import package_index
from tests.pipelines import simple_index


def configure(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    for name, value in simple_index.variables(address).items():
        monkeypatch.setenv(name, value)


def test_the_users_own_index_is_asked_and_says_the_newest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    with simple_index.serving({"tensorrt-rtx": ["1.7.1.116", "1.10.0.2", "1.7.2.9.post1", "1.11.0rc1"]}) as address:
        configure(monkeypatch, address)
        found = package_index.ask(["tensorrt-rtx", "no-such-thing", "tensorrt-rtx"])
    assert found["tensorrt-rtx"] == package_index.Answer(("1.10.0.2", "1.7.2.9", "1.7.1.116"))
    assert found["no-such-thing"].versions == ()
    assert found["no-such-thing"].reason.endswith("No matching distribution found for no-such-thing")


def test_an_index_that_keeps_silent_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        configure(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        started = time.monotonic()
        found = package_index.ask(["tensorrt-rtx", "onnxruntime"], limit_s=0.5)
    assert time.monotonic() - started < 5.0
    assert {answer.reason for answer in found.values()} == {"the package index did not answer within 0.5 s"}


def test_what_answered_is_known_although_another_keeps_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    with simple_index.serving({"onnxruntime": ["1.20.0"]}, silent="tensorrt-rtx") as address:
        configure(monkeypatch, address)
        found = package_index.ask(["tensorrt-rtx", "onnxruntime"], limit_s=8.0)
    assert found["tensorrt-rtx"].reason == "the package index did not answer within 8 s"
    assert found["onnxruntime"] == package_index.Answer(("1.20.0",))


def test_a_python_without_pip_is_told_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_index, "_PIP", ("-m", "pip_that_is_not_here", "index"))
    found = package_index.ask(["onnxruntime"])
    assert "No module named pip_that_is_not_here" in found["onnxruntime"].reason
