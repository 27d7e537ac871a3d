"""Telling Prefect of an upgrade; with a real server it is in `test_flows`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

import pytest

from artifacts.store import Store
from pipelines import version_events
from pipelines.versions import Change
from tests.pipelines.conftest import Forge
from tests.pipelines.releases import OLDER, leave
from tests.pipelines.simple_index import variables

CHANGE = Change("tensorrt_rtx", "1.7.0.98", "1.7.1.116", "sm_80_86_89", ("digits", "net"))


@pytest.fixture
def nobody(built: Forge) -> Forge:
    """A command line whose store an older release has left, where no package index answers."""
    return leave(Forge(built.home, variables("http://127.0.0.1:9/simple")), OLDER)


def test_without_an_api_there_is_nobody_to_tell(nobody: Forge) -> None:
    ran = nobody("watch", "--emit")
    assert ran.code == 2
    assert "--emit: no API of Prefect's is configured" in ran.err
    assert "PREFECT_API_URL=" in ran.err
    assert not (nobody.store / "emitted").exists()


class Taking(BaseHTTPRequestHandler):
    """An API that takes so many events and has an error of its own for those after them."""

    taken: ClassVar[list[str]] = []
    room: ClassVar[int] = 1

    def do_POST(self) -> None:
        (event,) = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        full = len(self.taken) >= self.room
        if not full:
            self.taken.append(event["payload"]["architecture"])
        self.send_response(500 if full else 204)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_error(404)  # Prefect asks for a token against forgery first, and does without

    def log_message(self, *arguments: object) -> None: ...


def test_what_a_server_did_not_take_is_told_the_next_time_and_nothing_twice(nobody: Forge) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Taking)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    forge = Forge(nobody.home, {**nobody.environment, "PREFECT_API_URL": f"http://127.0.0.1:{server.server_port}/api"})
    try:
        ran = forge("watch", "--emit")
        assert ran.code == 1
        assert ran.err.startswith("error: Prefect does not take the event trtforge.tensorrt.version.changed: ")
        assert ran.err.count("\n") == 2
        Taking.room = 9
        ran = forge("watch", "--emit")
    finally:
        server.shutdown()
        server.server_close()
    assert ran.code == 0, ran.err
    assert "told to Prefect: 2 of 3 changes; the others were told before" in ran.out
    assert Taking.taken == ["sm_120", "sm_86", "sm_89"]
    assert len(list((nobody.store / "emitted").rglob("*.json"))) == 3


def test_telemetry_is_off_before_prefect_is_imported() -> None:
    code = """
import os, sys
from pipelines import version_events
print(os.environ["DO_NOT_TRACK"], "prefect" in sys.modules)
"""
    plain = {name: value for name, value in os.environ.items() if name != "DO_NOT_TRACK"}
    ran = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == ["1", "False"]


def test_an_event_has_the_same_id_whenever_one_store_tells_it(built: Forge) -> None:
    store = Store(built.store)
    other = replace(CHANGE, architecture="sm_89")
    events = [version_events._event(store, change) for change in (CHANGE, CHANGE, other)]
    assert events[0]["id"] == events[1]["id"] != events[2]["id"]
    assert events[0]["resource"]["prefect.resource.id"] == "trtforge.tensorrt.sm_80_86_89"
    assert events[0]["payload"] == {
        "backend": "tensorrt_rtx",
        "from": "1.7.0.98",
        "to": "1.7.1.116",
        "architecture": "sm_80_86_89",
        "models": ["digits", "net"],
    }
