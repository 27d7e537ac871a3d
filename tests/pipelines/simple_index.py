"""A package index on loopback: PEP 503's pages, and no packages behind them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def serving(wheels: Mapping[str, Sequence[str]], silent: str = "") -> Iterator[str]:
    """The address of an index that has these versions of these distributions, and never answers about `silent`."""
    over = threading.Event()

    class Pages(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/").rpartition("/")[2]
            if name == silent:
                over.wait()
                return
            versions = wheels.get(name)
            self.send_response(404 if versions is None else 200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            for version in versions or ():
                file = f"{name.replace('-', '_')}-{version}-py3-none-any.whl"
                self.wfile.write(f'<a href="/{file}">{file}</a>\n'.encode())

        def log_message(self, *arguments: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Pages)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/simple"
    finally:
        over.set()
        server.shutdown()
        server.server_close()


def variables(address: str) -> dict[str, str]:
    """What makes pip ask this index alone, whatever this machine's own configuration is."""
    return {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_INDEX_URL": address,
        "PIP_EXTRA_INDEX_URL": "",
        "PIP_FIND_LINKS": "",
        "PIP_NO_INDEX": "",
        "PIP_PROXY": "",
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
