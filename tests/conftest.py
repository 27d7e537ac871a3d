"""What tests of every room share: real remotes, on loopback and on this machine's disk."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.s3 import BUCKET, S3, aws, free_port, wait_for


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server of its own for each test process."""
    port, log = free_port(), tmp_path_factory.mktemp("s3") / "log"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with log.open("wb") as sink, subprocess.Popen(command, stdout=sink, stderr=sink) as process:
        try:
            wait_for(port)
            yield S3(process, aws(port))
        finally:
            process.kill()


@pytest.fixture
def s3(s3_server: S3, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An S3 server with a bucket, found by this process and its children."""
    import fsspec

    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    fsspec.filesystem("s3", skip_instance_cache=True).makedirs(BUCKET, exist_ok=True)
    return s3_server


@pytest.fixture(params=["file", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty remote: a second directory with an awkward name, or a prefix in a bucket."""
    if request.param == "file":
        return f"file://{tmp_path}/shared dïsk"
    s3: S3 = request.getfixturevalue("s3")
    return s3.url
