"""Versions are what `importlib.metadata` says, without it."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from stages import installed


def test_every_installed_distribution_has_the_version_that_python_says() -> None:
    names = {str(found.metadata["Name"]) for found in metadata.distributions()}
    assert len(names) > 20
    assert {name: installed.version(name) for name in names} == {name: metadata.version(name) for name in names}


@pytest.mark.parametrize("spelled", ["hydra-core", "hydra_core", "Hydra.Core", "HYDRA--CORE"])
def test_a_name_may_be_spelled_in_all_the_ways(spelled: str) -> None:
    assert installed.version(spelled) == metadata.version("hydra-core")


def test_what_is_not_installed_has_none() -> None:
    assert installed.version("no-such-distribution") is None


def test_the_first_directory_of_the_path_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for directory, version in (("first", "1.0rc1"), ("second", "2.0")):
        info = tmp_path / directory / "odd_one-0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: odd-one\nVersion: {version}\n\nVersion: 9\n")
    for path in ("second", "first"):
        monkeypatch.syspath_prepend(str(tmp_path / path))
    assert installed.version("odd-one") == metadata.version("odd-one") == "1.0rc1"


@pytest.mark.parametrize("kind", ["egg", "twice"])
def test_what_is_in_another_form_python_is_asked(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"egg": ["odd.egg-info"], "twice": ["odd-1.dist-info", "odd-2.dist-info"]}[kind]
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        for file in ("PKG-INFO", "METADATA"):
            (tmp_path / name / file).write_text(f"Name: odd\nVersion: {number + 3}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert installed.version("odd") == metadata.version("odd")


def test_it_does_not_import_what_it_replaces() -> None:
    code = (
        "import sys; sys.modules['importlib.metadata'] = None; from stages import installed; installed.version('onnx')"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
