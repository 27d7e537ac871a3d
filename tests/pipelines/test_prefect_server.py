"""Whether somebody has named a Prefect server, and the temporary one."""

from __future__ import annotations

import os
import time

import pytest

from pipelines import prefect_server
from pipelines.errors import EngineError


@pytest.fixture
def nobody_named_one(tmp_path, monkeypatch):
    """A working directory and a home of Prefect in which nothing names a server."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("PREFECT_PROFILES_PATH", raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.ruff]\n")
    return tmp_path


def test_where_no_file_and_no_variable_names_a_server_prefect_need_not_be_asked(nobody_named_one):
    assert not prefect_server.may_be_named()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("home/profiles.toml", 'active = "office"\n[profiles.office]\nPREFECT_API_URL = "http://prefect:4200/api"\n'),
        (".env", "PREFECT_API_URL=http://prefect:4200/api\n"),
        ("prefect.toml", '[api]\nurl = "http://prefect:4200/api"\n'),
        ("pyproject.toml", '[tool.prefect.api]\nurl = "http://prefect:4200/api"\n'),
    ],
)
def test_a_file_of_prefects_settings_may_name_one(nobody_named_one, path, text):
    (nobody_named_one / path).write_text(text)
    assert prefect_server.may_be_named()


def test_a_variable_names_one(nobody_named_one, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    assert prefect_server.may_be_named()


def test_prefects_settings_for_telemetry_are_off_unless_the_user_has_set_them():
    assert os.environ["DO_NOT_TRACK"] == "1"
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


def test_a_server_that_ends_before_it_answers_says_why_at_once(nobody_named_one, monkeypatch):
    monkeypatch.setattr(prefect_server.sys, "executable", "/bin/false")
    server = prefect_server.TemporaryServer()
    with pytest.raises(EngineError) as raised:
        server.wait()
    assert raised.value.what == "the temporary Prefect server does not start: exit code 1"
    assert not server.alive
    asked = time.monotonic()
    assert not server.has_recorded(["00000000-0000-0000-0000-000000000000"], 10.0)
    assert time.monotonic() - asked < 5
