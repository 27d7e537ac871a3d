"""The REST interface of a Prefect server.

A server that wants nothing but plain HTTP is asked without Prefect, whose import takes 1.3 s of processor time; every
other one (a key, a token, a certificate, a proxy, Prefect Cloud) by Prefect's own client.
"""

from __future__ import annotations

import http.client
import json
import time
from contextlib import closing, suppress
from typing import Any, Protocol
from urllib.parse import urlsplit

from pipelines import prefect_settings

REQUEST_SECONDS = 30.0
"""How long a request may take; as a rule it is 5 to 20 ms."""

AGAIN_SECONDS = (0.2, 0.5, 1.0, 2.0, 4.0)
"""After these a server that is busy is asked again: SQLite's database is locked for a moment, and it answers 503."""

AWAY_SECONDS = 1.0
"""How often a server that is away is asked whether it is back."""

_BUSY = (408, 429, 502, 503)

_MOST_TOLD = 1000
"""Characters of a server's answer; that to a large request has all of the request in it."""


class Api(Protocol):
    """Asks a server, from any thread, and gives its answer.

    Raises:
        ConnectionError: It does not answer.
        RefusedError: It answers that it will not.
    """

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        """The answer to such as `POST /flow_runs/`, as JSON; None for an empty one."""


class RefusedError(Exception):
    """A server does not do what it was asked.

    Attributes:
        status: That of HTTP.
    """

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


class Plain:
    """A server that is asked over HTTP, a connection for each request.

    Args:
        url: The address of its API, such as `http://127.0.0.1:4200/api`.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.url = url.rstrip("/")
        self._host, self._port, self._path = parts.hostname or "", parts.port, parts.path.rstrip("/")

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        """As `Api` has it; one that is busy is asked again a few times."""
        for seconds in (*AGAIN_SECONDS, None):
            try:
                status, said = self.answer(method, path, body)
            except (OSError, http.client.HTTPException) as error:
                raise ConnectionError(f"{self.url} does not answer: {error}") from error
            if status not in _BUSY or seconds is None:
                break
            time.sleep(seconds)
        if status < http.HTTPStatus.BAD_REQUEST:
            with suppress(ValueError):  # something else than Prefect answers there
                return json.loads(said) if said else None
        told = said.decode(errors="replace").strip()
        raise RefusedError(status, f"{method} {self.url}{path}: {status} {told[:_MOST_TOLD]}")

    def answer(
        self, method: str, path: str, body: object = None, seconds: float = REQUEST_SECONDS
    ) -> tuple[int, bytes]:
        """Its status and what it says, within so many seconds.

        Raises:
            OSError: It does not answer.
            HTTPException: What it answers is no HTTP.
        """
        sent = None if body is None else json.dumps(body).encode()
        with closing(http.client.HTTPConnection(self._host, self._port, timeout=seconds)) as connection:
            connection.request(method, self._path + path, sent, {"Content-Type": "application/json"} if sent else {})
            answer = connection.getresponse()
            return answer.status, answer.read()


class Prefects:
    """The server that Prefect's settings name, asked by Prefect's own client."""

    def __init__(self) -> None:
        from prefect.client.orchestration import get_client

        self._client = get_client(sync_client=True)  # which asks a busy server again by itself

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        """As `Api` has it."""
        from httpx import HTTPStatusError, TransportError

        try:
            # Its signature knows the paths of its own requests alone.
            answer = self._client.request(method, path, json=body)  # type: ignore[arg-type]
        except TransportError as error:
            raise ConnectionError(str(error) or type(error).__name__) from error
        except HTTPStatusError as error:
            raise RefusedError(error.response.status_code, str(error)) from error
        return answer.json() if answer.content else None


class Patient:
    """Waits for a server that is away until it is back, for as long as its process lives."""

    def __init__(self, api: Api) -> None:
        self._api = api

    def __call__(self, method: str, path: str, body: object = None) -> Any:
        """As `Api` has it, but for `ConnectionError`."""
        while True:
            try:
                return self._api(method, path, body)
            except ConnectionError:
                time.sleep(AWAY_SECONDS)


def named() -> Api | None:
    """That of the server that Prefect's settings name; None where they name none after all.

    Raises:
        ConnectionError: It does not answer.
        Exception: Prefect cannot be set up; it has many ways to fail.
    """
    url = prefect_settings.plain_url()
    if url is not None and _is_open(Plain(url)):
        return Plain(url)
    return Prefects() if prefect_settings.name_server() else None


def _is_open(api: Plain) -> bool:
    """Whether it wants neither a password nor Prefect's token against forged requests, which it gives to who asks."""
    try:
        api("GET", "/csrf-token?client=trtforge")
    except RefusedError as error:
        return error.status in (http.HTTPStatus.UNPROCESSABLE_ENTITY, http.HTTPStatus.NOT_FOUND)
    return False
