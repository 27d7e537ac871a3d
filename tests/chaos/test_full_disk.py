"""The disk of the store is full in the middle of a worker's run: a file system of a few megabytes of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.chaos.harness import Server, frozen_child, working
from tests.chaos.test_killed import goes_on, unharmed
from tests.pipelines.conftest import Forge

pytestmark = pytest.mark.chaos


@pytest.fixture
def disk(forge: Forge) -> Iterator[Path]:
    """The store's directory, on a disk of 64 MiB."""
    forge.store.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(forge.store)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a file system here")
    yield forge.store
    subprocess.run(["umount", "--lazy", str(forge.store)], check=True)


def fill(disk: Path) -> Path:
    """Takes all that is left of the disk; the file that does."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))
    assert shutil.disk_usage(disk).free == 0
    return filler


def test_a_run_that_fills_the_disk_fails_with_a_next_step_and_goes_on_when_there_is_space(
    server: Server, forge: Forge, disk: Path
) -> None:
    run = server.run()
    with working(forge) as worker:
        child = frozen_child(forge.store, "build")
        filler = fill(disk)
        os.kill(child, signal.SIGCONT)
        ended = server.ended(run)
        assert ended["state_name"] == "Failed", worker.said
        assert "cannot be written: No space left on device" in worker.said
    filler.unlink()
    goes_on(server, forge, run, unharmed(forge, "build"))
