"""Asking a server over HTTP, and by Prefect's own client where that is not enough."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from pipelines import server_api
from pipelines.prefect_settings import PROXIES
from pipelines.server_api import Patient, Plain, Prefects, RefusedError


class Answers(BaseHTTPRequestHandler):
    """Answers with the next of its server's `answers`: a status and text; keeps what it was asked."""

    def _answer(self):
        length = int(self.headers.get("Content-Length", 0))
        self.server.asked.append((self.command, self.path, self.rfile.read(length).decode()))
        status, text = self.server.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())

    do_GET = do_POST = do_PATCH = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture
def web():
    """A web server on loopback."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        server.asked, server.answers = [], []
        server.url = f"http://127.0.0.1:{server.server_port}/api"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_a_request_is_json_and_so_is_its_answer(web):
    web.answers += [(201, '{"id": "a"}'), (204, "")]
    api = Plain(web.url)
    assert api("POST", "/flows/", {"name": "trtforge-build"}) == {"id": "a"}
    assert api("DELETE", "/artifacts/a") is None
    assert [asked[:2] for asked in web.asked] == [("POST", "/api/flows/"), ("DELETE", "/api/artifacts/a")]
    assert json.loads(web.asked[0][2]) == {"name": "trtforge-build"}
    assert web.asked[1][2] == ""


def test_a_server_that_is_busy_is_asked_again(web, monkeypatch):
    monkeypatch.setattr(server_api, "AGAIN_SECONDS", (0.0, 0.0))
    web.answers += [(503, "database is locked"), (429, ""), (200, "[]")]
    assert Plain(web.url)("POST", "/events", []) == []
    web.answers += [(503, "locked"), (503, "locked"), (503, "still locked")]
    with pytest.raises(RefusedError, match="503 still locked") as raised:
        Plain(web.url)("POST", "/events", [])
    assert raised.value.status == 503


def test_what_a_server_will_not_do_is_asked_once_and_told_with_its_reason(web):
    web.answers += [(422, "no such type")]
    with pytest.raises(RefusedError) as raised:
        Plain(web.url)("POST", "/artifacts/", {})
    assert str(raised.value) == f"POST {web.url}/artifacts/: 422 no such type"
    assert len(web.asked) == 1


def test_what_is_no_server_of_prefects_is_told_by_what_it_says(web):
    web.answers += [(200, "<html>It works!</html>")]
    with pytest.raises(RefusedError, match="flows/: 200 <html>It works!</html>"):
        Plain(web.url)("POST", "/flows/", {})


def test_a_server_that_is_away_is_told_by_its_address_and_waited_for_by_who_has_patience(web, monkeypatch):
    away = Plain("http://127.0.0.1:9/api")
    with pytest.raises(ConnectionError, match=r"http://127\.0\.0\.1:9/api does not answer"):
        away("GET", "/health")

    monkeypatch.setattr(server_api, "AWAY_SECONDS", 0.0)
    servers = [away, away, Plain(web.url)]
    web.answers += [(200, "true")]
    assert Patient(lambda *asked: servers.pop(0)(*asked))("GET", "/health") is True
    assert servers == []


@pytest.mark.parametrize(
    ("answer", "plain"),
    [
        ((422, '{"detail":"CSRF protection is disabled."}'), True),
        ((404, ""), True),
        ((200, '{"token": "t"}'), False),
        ((401, '{"exception_message":"Unauthorized"}'), False),
    ],
)
def test_a_server_that_wants_more_than_http_is_asked_by_prefects_client(web, monkeypatch, tmp_path, answer, plain):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv("PREFECT_API_URL", web.url)
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
    web.answers += [answer]
    assert isinstance(server_api.named(), Plain if plain else Prefects)
    assert [asked[:2] for asked in web.asked] == [("GET", "/api/csrf-token?client=trtforge")]
