"""A page as Chromium shows it, at the width of a desk and of a phone, and printed; `make test-browser`.

What was seen is kept in `build/screenshots`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
from functools import partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event

import pytest

from artifacts.store import Store
from pipelines.report import verb
from tests.pipelines.report.conftest import keep_times

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
SCREENSHOTS = Path(__file__).parents[3] / "build/screenshots"
WIDTHS = {"desk": 1280, "phone": 390}
PAPER = 680
"""What A4 leaves between margins of 15 mm, in CSS pixels."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt-get install chromium"),
]

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)

LOOKS = """<!DOCTYPE html><pre id="found"></pre><script>
const found = {};
function looked(name, file, width) {
  const frame = document.createElement("iframe");
  frame.width = width; frame.height = 900; frame.src = file;
  frame.onload = () => {
    const page = frame.contentDocument, root = page.scrollingElement;
    const beyond = [...page.querySelectorAll("svg")].flatMap(svg => {
      const box = svg.getBoundingClientRect();
      return [...svg.querySelectorAll("text")].filter(text => {
        const own = text.getBoundingClientRect();
        return own.left < box.left - 1 || own.right > box.right + 1 || own.bottom > box.bottom + 1;
      }).map(text => text.textContent);
    });
    const wide = [...page.querySelectorAll("main > section > :not(.scroll, figure), header > *")].filter(
      each => each.getBoundingClientRect().right > width + 1).map(each => each.textContent);
    const cut = [...page.querySelectorAll(".scroll, figure")].filter(
      each => each.scrollWidth > each.clientWidth + 1 || each.scrollHeight > each.clientHeight + 1).map(
      each => each.firstElementChild.textContent.slice(0, 60));
    const text = page.querySelector("figure svg text").getBoundingClientRect().height;
    found[name] = {scrollWidth: root.scrollWidth, clientWidth: root.clientWidth, beyond, wide, cut, text,
                    charts: page.querySelectorAll("figure svg").length};
    document.getElementById("found").textContent = JSON.stringify(found);
  };
  document.body.append(frame);
}
FRAMES.forEach(each => looked(...each));
</script>"""


def chromium(profile, *arguments):
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *arguments]
    environment = {**os.environ, "HOME": str(profile)}
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment).stdout


@pytest.fixture(scope="module")
def shown(root, subject, tmp_path_factory):
    """A directory with the page of a plan that was timed, and the address where a server has it."""
    store = Store(root)
    for month, digest in enumerate(("a" * 64, "b" * 64, None), 1):
        keep_times(store, subject, f"2026-0{month}-01T10:00:00+00:00", 1 + 0.2 * month, digest)
    folder = tmp_path_factory.mktemp("shown")
    (written,) = verb.write([f"store.root='{root}'", "targets=[l4]"], [], folder, Event()).written
    written.path.rename(folder / "report.html")
    # Rules of paper hold on this screen.
    printed = (folder / "report.html").read_text(encoding="utf-8").replace("@media print", "@media all")
    (folder / "printed.html").write_text(printed, encoding="utf-8")
    frames = [*([name, "report.html", width] for name, width in WIDTHS.items()), ["paper", "printed.html", PAPER]]
    (folder / "look.html").write_text(LOOKS.replace("FRAMES", json.dumps(frames)))
    handler = partial(type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None}), directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def looked(shown, tmp_path_factory):
    """What the browser measured, at each width."""
    _, address = shown
    dom = chromium(
        tmp_path_factory.mktemp("profile"), "--virtual-time-budget=10000", "--dump-dom", f"{address}/look.html"
    )
    return json.loads(unescape(re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1]))


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(looked, width):
    assert looked[width]["charts"] >= 6
    assert looked[width]["wide"] == []
    assert looked[width]["scrollWidth"] <= looked[width]["clientWidth"] == WIDTHS[width]


@pytest.mark.parametrize("width", WIDTHS)
def test_no_word_of_a_chart_is_cut_or_too_small_to_read(looked, width):
    assert looked[width]["beyond"] == []
    assert looked[width]["text"] >= 10  # CSS pixels


@pytest.mark.parametrize(("name", "width"), WIDTHS.items())
def test_it_can_be_looked_at(shown, tmp_path, name, width):
    folder, _ = shown
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    picture = SCREENSHOTS / f"report-{name}.png"
    picture.unlink(missing_ok=True)
    address = (folder / "report.html").as_uri()
    chromium(tmp_path, f"--screenshot={picture}", f"--window-size={width},4000", address)
    from PIL import Image

    with Image.open(picture) as seen:
        assert seen.size == (width, 4000)
        assert len(seen.convert("RGB").getcolors(1 << 24)) > 50  # text, lines and colours of charts


def test_on_paper_nothing_is_left_to_scroll_to(looked):
    assert looked["paper"]["cut"] == []
    assert looked["paper"]["beyond"] == []
    assert looked["phone"]["cut"]  # there it is


def test_it_can_be_printed(shown, tmp_path):
    folder, _ = shown
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    printed = SCREENSHOTS / "report.pdf"
    printed.unlink(missing_ok=True)
    chromium(tmp_path, f"--print-to-pdf={printed}", "--no-pdf-header-footer", (folder / "report.html").as_uri())
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", printed.read_bytes())) >= 5
