"""A real S3 server on loopback, and a proxy before it that misbehaves."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit
from uuid import uuid4

BUCKET = "trtforge"


@dataclass
class S3:
    """A running S3 server and how to reach it."""

    process: subprocess.Popen[bytes]
    environment: Mapping[str, str]

    @property
    def url(self) -> str:
        """A prefix that nobody has used."""
        return f"s3://{BUCKET}/{uuid4().hex}/models"


def free_port() -> int:
    """A port of loopback that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def aws(port: int) -> dict[str, str]:
    """The variables by which S3's own libraries find the server at `port`."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "AKIANOTTOBETOLD",
        "AWS_SECRET_ACCESS_KEY": "secret/not+to+be+told",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def wait_for(port: int) -> None:
    """Returns when somebody listens at `port`."""
    deadline = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", port)).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"nobody listens at {port}"
            time.sleep(0.05)


@contextmanager
def answering(
    status: int, body: bytes, then: S3, times: int = 10**9, methods: Collection[str] = ("GET", "PUT", "HEAD", "DELETE")
) -> Iterator[int]:
    """A server that answers so many requests with `status` and hands all others on to the real server; its port."""
    left = threading.Semaphore(times)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            sent = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if self.command in methods and left.acquire(blocking=False):
                self.reply(status, {}, body)
                return
            real = HTTPConnection(urlsplit(then.environment["AWS_ENDPOINT_URL"]).netloc)
            real.request(self.command, self.path, sent, dict(self.headers))
            answer = real.getresponse()
            self.reply(answer.status, dict(answer.headers), answer.read())

        def reply(self, code: int, headers: Mapping[str, str], content: bytes) -> None:
            self.send_response(code)
            for name, value in headers.items():
                if name.lower() not in ("content-length", "connection", "date", "server"):
                    self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = answer  # noqa: N815 - the names of http.server

        def log_message(self, *arguments: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
