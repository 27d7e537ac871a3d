"""A Prefect server on which a build is deployed, and an empty project for each test."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from pipelines.deploying import asked
from tests.chaos.harness import CRASHED_AFTER_SECONDS, Server, processes_of
from tests.pipelines.conftest import Forge

OVERRIDES = ["flow=fp32", "targets=[l4]"]


@pytest.fixture(scope="session")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with the deployments of a new `prefect.yaml`, of which no schedule is active."""
    server = Server(tmp_path_factory.mktemp("prefect"))
    server.start()
    forge = Forge(tmp_path_factory.mktemp("deploy"), {"PREFECT_API_URL": server.api})
    path = forge.home / "prefect.yaml"
    asked(path, OVERRIDES, [])
    text = path.read_text().replace("active: true", "active: false")
    path.write_text(text.replace("crashed_after_seconds: 90", f"crashed_after_seconds: {CRASHED_AFTER_SECONDS}"))
    ran = forge("deploy")
    assert ran.code == 0, ran.err
    yield server
    server.kill()


@pytest.fixture
def server(deployed: Server) -> Server:
    """The server, which an earlier test may have killed."""
    deployed.start()
    return deployed


@pytest.fixture
def forge(server: Server, tmp_path: Path) -> Iterator[Forge]:
    """A command line that knows the server, in an empty directory that is also its workers'."""
    yield Forge(tmp_path, {"PREFECT_API_URL": server.api})
    for pid in processes_of(tmp_path):  # of a test that failed
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
