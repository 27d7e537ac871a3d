"""The temporary Prefect server."""

from __future__ import annotations

import time

import pytest

from pipelines import prefect_server
from pipelines.errors import EngineError


def test_a_server_that_ends_before_it_answers_says_why_at_once(monkeypatch):
    monkeypatch.setattr(prefect_server.sys, "executable", "/bin/false")
    server = prefect_server.TemporaryServer()
    with pytest.raises(EngineError) as raised:
        server.wait()
    assert raised.value.what == "the temporary Prefect server does not start: exit code 1"
    assert not server.alive
    asked = time.monotonic()
    assert not server.has_recorded(["00000000-0000-0000-0000-000000000000"], 10.0)
    assert time.monotonic() - asked < 5
