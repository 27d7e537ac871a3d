"""The shim, compiled once, and directories for stores that are written thousands of times."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from artifacts import memo
from pipelines import child
from tests.faults.harness import Faults, compiled

MEMORY = Path("/dev/shm")  # noqa: S108 - fsync costs nothing there, and these tests call it thousands of times


@pytest.fixture(scope="session")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled(tmp_path_factory.mktemp("shim"))


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A directory in memory, where there is such a thing."""
    if not os.access(MEMORY, os.W_OK):
        yield tmp_path
        return
    directory = Path(tempfile.mkdtemp(prefix="trtforge-test-", dir=MEMORY))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def faults_below(shim: Path, tmp_path: Path) -> Callable[[Path], Faults]:
    """Faults for what lies below a directory."""
    return lambda root: Faults(shim, root, tmp_path / "control")


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes back what `small_build.session` changes in this process: other tests run in it, too."""
    monkeypatch.setattr(child, "run", child.run)
    monkeypatch.setattr(memo, "RACY_NS", memo.RACY_NS)
