"""The page: one file, no script, names that cannot become markup."""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser

import pytest

from pipelines.report import charts, page
from pipelines.report.blocks import Cell, Chart, Column, Facts, Report, Section, Sentence, Table
from pipelines.report.charts import Bar
from stages.stage import StageError

EVIL = "<script>alert('x')</script>\"'&"


class Elements(HTMLParser):
    """Every element with its attributes, and all text."""

    def __init__(self, text):
        super().__init__()
        self.found, self.texts = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.texts.append(data)

    def of(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def evil():
    bars = [Bar(EVIL, 1.0)]
    table = Table(
        EVIL, [Column(EVIL, is_code=True), Column("time", "ms", is_number=True)], [[Cell(EVIL, EVIL), Cell("1")]]
    )
    chart = Chart(EVIL, EVIL, lambda: charts.bars(bars, "time (s)"))
    section = Section(EVIL, [Sentence(f"`{EVIL}`", "bad"), Facts({EVIL: Cell(EVIL)}), table, chart, chart])
    return page.html(Report(EVIL, [Sentence(EVIL)], [section]))


def test_nothing_of_a_name_becomes_markup(evil):
    elements = Elements(evil)
    assert not elements.of("script")
    assert "".join(elements.texts).count("alert('x')") >= 8
    assert EVIL in [attributes.get("title") for attributes in elements.of("span")]


def test_ids_are_the_pages_own_and_lead_somewhere(evil):
    elements = Elements(evil)
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    meant = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', evil))
    assert {first or second for first, second in meant} <= set(ids)
    labels = {attributes[key] for attributes in elements.of("svg") for key in ("aria-labelledby", "aria-describedby")}
    assert labels <= set(ids)
    assert len(labels) == 4


def test_the_page_fetches_nothing(evil):
    elements = Elements(evil)
    leads = [
        value for _, found in elements.found for key, value in found.items() if key in ("src", "href", "xlink:href")
    ]
    assert leads
    assert all(value.startswith("#") for value in leads)
    assert set(re.findall(r'(\S+)="https?:', evil)) <= {"xmlns", "xmlns:xlink"}
    assert not re.search(r"@import|url\((?!#)|<(?:link|iframe|img|object)\b", evil)


def test_numbers_end_flush_and_headings_say_their_unit(evil):
    elements = Elements(evil)
    assert {"scope": "col", "class": "number"} in elements.of("th")
    assert "time (ms)" in elements.texts
    assert {"class": "number"} in elements.of("td")


def test_words_in_backticks_are_code(evil):
    assert page.html(Report("t", [Sentence("run `trtforge bench`")])).count("<code>trtforge bench</code>") == 1


def test_without_matplotlib_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    chart = Chart("t", "d", lambda: charts.bars([Bar("a", 1.0)], "time (s)"))
    with pytest.raises(StageError, match="needs matplotlib") as caught:
        page.html(Report("t", [], [Section("s", [chart])]))
    assert "trtforge[report]" in caught.value.next_step
