"""`trtforge report`."""

from __future__ import annotations

import json
from pathlib import Path


def tree(directory):
    """Every file below, with its inode and time of change."""
    return {
        path.relative_to(directory): (path.lstat().st_ino, path.lstat().st_mtime_ns)
        for path in sorted(directory.rglob("*"))
    }


def test_every_plan_gets_a_page_which_is_the_same_the_next_time(built):
    published = tree(built.store / "published")
    ran = built("report", "--json")
    assert ran.code == 0, ran.err
    names = [Path(each["path"]).name for each in ran.document["reports"]]
    assert names == [f"digits-{target}-int8.html" for target in ("a10", "l4", "rtx5090")]
    pages = [Path(each["path"]).read_bytes() for each in ran.document["reports"]]
    assert all(b"digits on" in page for page in pages)
    assert tree(built.store / "published") == published
    again = built("report", "--out", "elsewhere", "targets=[l4]")
    assert again.code == 0, again.err
    assert again.out == "elsewhere/digits-l4-int8.html\n"
    assert (built.home / "elsewhere/digits-l4-int8.html").read_bytes() == pages[1]
    assert sorted(path.name for path in (built.store / "reports").iterdir()) == names  # nothing is left aside
    health = built("verify", "--json")
    assert health.code == 0, json.dumps(health.document["damaged"])


def test_what_is_not_built_is_one_line_that_says_how(forge):
    ran = forge("report", "flow=fp32", "targets=[l4]")
    assert ran.code == 2
    assert ran.err.splitlines() == [
        "error: a report is of what is built: export is missing",
        "next: build it first: trtforge build flow=fp32 targets=[l4]",
    ]


def test_a_target_that_is_not_built_is_named_beside_those_that_are(built):
    ran = built("report", "--json", "targets=[l4,a100]")
    assert ran.code == 0
    assert [each["target"] for each in ran.document["reports"]] == ["l4"]
    assert ran.document["missing"] == {"a100": "build[a100] is missing"}
    assert "no report of a100" in ran.err


def test_a_flow_without_plans_has_none_to_report_on(forge):
    ran = forge("report", "--json", "flow=export")
    assert ran.code == 2
    assert "flow export makes no plan" in ran.document["error"]


def test_open_shows_them_in_the_users_browser(built):
    browser, seen = built.home / "browser", built.home / "seen"
    browser.write_text(f'#!/bin/sh\nprintf "%s\\n" "$1" >> {seen}\n')
    browser.chmod(0o755)
    built.environment = {"BROWSER": f"{browser} %s"}
    ran = built("report", "--open", "targets=[l4]")
    assert ran.code == 0, ran.err
    assert seen.read_text() == f"{(built.store / 'reports/digits-l4-int8.html').as_uri()}\n"


def test_without_a_browser_the_page_is_written_and_its_place_named(built):
    built.environment = {"BROWSER": "/nothing/here %s", "PATH": str(built.home)}
    ran = built("report", "--open", "--json", "targets=[l4]")
    assert ran.code == 1
    assert ran.document["ok"] is False  # one document
    assert "open it yourself" in ran.err
    assert (built.store / "reports/digits-l4-int8.html").exists()
