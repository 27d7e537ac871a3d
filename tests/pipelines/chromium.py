"""Chromium, driven through its DevTools protocol: pages that draw themselves from a server's answers, as they look."""

from __future__ import annotations

import base64
import itertools
import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

from tests.pipelines.report.test_browser import CHROMIUM, FLAGS

SIZE = (1440, 1000)

# Fonts and pictures of other hosts are no part of a page of ours: nobody leaves this machine.
_LOOPBACK_ALONE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


class Page:
    """The browser's one tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        width, height = SIZE
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def open(self, address: str, until: str, limit_s: float = 60) -> str:
        """Goes to `address` and waits until `until` is among what can be read on it, which is returned."""
        self._ask("Page.navigate", url=address)
        return self.wait(until, limit_s)

    def wait(self, until: str, limit_s: float = 60) -> str:
        """What can be read, once `until` is part of it."""
        deadline = time.monotonic() + limit_s
        while until not in (text := self.text()):
            assert time.monotonic() < deadline, f"no {until!r} in:\n{text}"
            time.sleep(0.2)
        return text

    def click(self, text: str) -> None:
        """Presses the innermost thing that says just `text`."""
        every = "[...document.querySelectorAll('a, button, li, span')]"
        self.run(f"{every}.filter(each => each.innerText === {json.dumps(text)}).at(-1).click()")

    def text(self) -> str:
        """What a reader sees, without what is hidden."""
        return str(self.run("document.body ? document.body.innerText : ''"))

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self, path: Path) -> None:
        """Keeps what the window shows, once it has stood still for a moment."""
        time.sleep(1.0)  # charts and bars move into their places
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(self._ask("Page.captureScreenshot", format="png")["data"]))

    def _ask(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        self._connection.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv(timeout=60))
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return answer["result"]


@contextmanager
def page(profile: Path) -> Iterator[Page]:
    """A browser with an empty profile, for as long as the block runs."""
    told = profile / "DevToolsActivePort"
    command = [str(CHROMIUM), *FLAGS, _LOOPBACK_ALONE, "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "HOME": str(profile)}
    with subprocess.Popen([*command, "about:blank"], env=environment, **quiet) as process:
        try:
            deadline = time.monotonic() + 60
            while not (told.is_file() and told.read_text().count("\n")):
                assert process.poll() is None and time.monotonic() < deadline, "Chromium does not start"
                time.sleep(0.1)
            yield from _tab(told.read_text().split()[0])
        finally:
            process.terminate()


def _tab(port: str) -> Iterator[Page]:
    import urllib.request

    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
        address = next(each["webSocketDebuggerUrl"] for each in json.load(answer) if each["type"] == "page")
    with connect(address, max_size=None) as connection:
        yield Page(connection)
