"""What Prefect's settings say of a server, as far as can be told without Prefect, and as Prefect itself reads them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from pipelines import prefect_settings

OFFICE = "http://prefect:4200/api"
PROFILE = f'active = "office"\n[profiles.office]\nPREFECT_API_URL = "{OFFICE}"\n'


@pytest.fixture
def nobody_named_one(tmp_path, monkeypatch):
    """A working directory and a home of Prefect in which nothing names a server."""
    monkeypatch.chdir(tmp_path)
    for name in (
        "PREFECT_API_URL",
        "PREFECT_API_KEY",
        "PREFECT_PROFILE",
        "PREFECT_PROFILES_PATH",
        *prefect_settings.PROXIES,
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "pyproject.toml").write_text("[tool.ruff]\n")
    return tmp_path


def test_where_no_file_and_no_variable_names_a_server_prefect_need_not_be_asked(nobody_named_one):
    assert not prefect_settings.may_name_server()


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
    assert prefect_settings.may_name_server()


def test_a_variable_names_one(nobody_named_one, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", "http://prefect:4200/api")
    assert prefect_settings.may_name_server()


def test_prefects_settings_for_telemetry_are_off_unless_the_user_has_set_them():
    assert os.environ["DO_NOT_TRACK"] == "1"
    assert os.environ["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"


@pytest.mark.parametrize(
    ("variables", "profiles", "url"),
    [
        ({"PREFECT_API_URL": OFFICE}, None, OFFICE),
        ({}, PROFILE, OFFICE),
        ({"PREFECT_API_URL": "http://other/api"}, PROFILE, "http://other/api"),
        (
            {"PREFECT_PROFILE": "home"},
            PROFILE + '[profiles.home]\nPREFECT_API_URL = "http://house/api"\n',
            "http://house/api",
        ),
        ({"PREFECT_API_KEY": ""}, PROFILE, OFFICE),
        ({"PREFECT_LOGGING_LEVEL": "DEBUG"}, PROFILE + 'PREFECT_DEFAULT_WORK_POOL_NAME = "mine"\n', OFFICE),
    ],
)
def test_an_address_alone_is_read_as_prefect_reads_it(nobody_named_one, monkeypatch, variables, profiles, url):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if profiles:
        (nobody_named_one / "home/profiles.toml").write_text(profiles)
    assert prefect_settings.plain_url() == url
    code = "from prefect.settings.context import get_current_settings\nprint(get_current_settings().api.url)"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == url


@pytest.mark.parametrize(
    ("variables", "files"),
    [
        ({}, {}),
        ({"PREFECT_API_URL": "https://prefect/api"}, {}),
        ({"PREFECT_API_URL": OFFICE, "PREFECT_API_KEY": "pnu_1"}, {}),
        ({"PREFECT_API_URL": OFFICE, "PREFECT_API_AUTH_STRING": "admin:pass"}, {}),
        ({"PREFECT_API_URL": OFFICE, "PREFECT_CLIENT_CUSTOM_HEADERS": "{}"}, {}),
        ({"PREFECT_API_URL": OFFICE, "HTTP_PROXY": "http://proxy:3128"}, {}),
        ({"PREFECT_API_URL": OFFICE}, {".env": "PREFECT_API_KEY=pnu_1\n"}),
        ({"PREFECT_API_URL": OFFICE}, {"prefect.toml": '[api]\nkey = "pnu_1"\n'}),
        ({"PREFECT_API_URL": OFFICE}, {"pyproject.toml": "[tool.prefect.client]\nmax_retries = 2\n"}),
        ({}, {"home/profiles.toml": PROFILE + 'PREFECT_API_KEY = "pnu_1"\n'}),
        ({}, {"home/profiles.toml": "active = 1\n[profiles"}),
        ({"PREFECT_PROFILE": "local"}, {"home/profiles.toml": PROFILE}),
        ({"PREFECT_PROFILE": "local", "PREFECT_API_URL": OFFICE}, {}),
    ],
)
def test_what_may_say_more_than_an_address_is_left_to_prefect(nobody_named_one, monkeypatch, variables, files):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    for name, text in files.items():
        (nobody_named_one / name).write_text(text)
    assert prefect_settings.plain_url() is None


@pytest.mark.parametrize(("said", "seconds"), [("30", 30), ("45", 45), ("1", 30), ("", 30), ("often", 30)])
def test_heartbeats_come_every_thirty_seconds_or_less_often_as_the_user_says(monkeypatch, said, seconds):
    monkeypatch.setenv(prefect_settings.HEARTBEAT_FREQUENCY, said)
    assert prefect_settings.heartbeat_seconds() == seconds
