"""Prefect's settings: ours, which every module sets that imports Prefect, and what the user's say of a server.

Nothing here imports Prefect, which takes 1.3 s of processor time, beside steps that use every core.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.deployments import HEARTBEAT_SECONDS

STARTUP_LIMIT = "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"

HEARTBEAT_FREQUENCY = "PREFECT_FLOWS_HEARTBEAT_FREQUENCY"

OFFLINE = {
    # Client and server each have a switch of their own: DO_NOT_TRACK alone does not stop the server.
    "DO_NOT_TRACK": "1",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    # The temporary server took 13.8 to 18.2 s on a fresh database; Prefect gives up after 20 s by default.
    STARTUP_LIMIT: "120",
    # Steps are told on stderr by `pipelines.reporting`; Prefect's own lines go to its API.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    # Each event that a dead server does not take is a page; `pipelines.recording` says it in one line.
    "PREFECT_LOGGING_INTERNAL_LEVEL": "CRITICAL",
    "PREFECT_CLI_PROMPT": "false",
    # The least that Prefect takes. With its own 180 s a run is known to be dead after minutes.
    HEARTBEAT_FREQUENCY: str(HEARTBEAT_SECONDS),
}
"""Defaults for Prefect's settings; a variable that the user has set wins."""

for _name, _value in OFFLINE.items():
    os.environ.setdefault(_name, _value)

_CLIENTS = ("PREFECT_API_", "PREFECT_CLIENT_", "PREFECT_CLOUD_")
"""How the settings begin that say how a server is asked."""

PROXIES = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY")

_FILES = {
    Path(".env"): ("PREFECT_",),
    Path("prefect.toml"): ("api", "client", "cloud"),
    Path("pyproject.toml"): ("tool.prefect",),
}
"""Where Prefect reads settings beside its profiles, and a word of what may name a server, or say how it is asked."""


def may_name_server() -> bool:
    """Whether they may name a server, as far as can be told without Prefect."""
    if os.environ.get("PREFECT_API_URL"):
        return True
    return any(_holds(path, words) for path, words in ((_profiles(), ("PREFECT_API_URL",)), *_FILES.items()))


def heartbeat_seconds() -> float:
    """How often a run says that it lives."""
    try:
        return max(float(os.environ[HEARTBEAT_FREQUENCY]), HEARTBEAT_SECONDS)
    except ValueError:
        return HEARTBEAT_SECONDS


def name_server() -> bool:
    """Whether they name one; Prefect is imported where only it can tell."""
    if plain_url() is not None:
        return True
    if not may_name_server():
        return False
    from prefect.settings.context import get_current_settings

    return bool(get_current_settings().api.url)


def plain_url() -> str | None:
    """The address of the server's API, where that is all that they say of how it is asked; None where it may be more.

    A variable counts for more than a file, and every file for more than the profile.
    """
    if any(os.environ.get(name) for name in PROXIES) or any(_holds(path, words) for path, words in _FILES.items()):
        return None
    profile = _active_profile()
    if profile is None:
        return None
    said = {name: value for name, value in {**profile, **os.environ}.items() if name.startswith(_CLIENTS) and value}
    url = said.pop("PREFECT_API_URL", None)
    return url if isinstance(url, str) and url.startswith("http://") and not said else None


def _holds(path: Path, words: tuple[str, ...]) -> bool:
    if not path.is_file():
        return False
    text = path.read_text(errors="replace")
    return any(word in text for word in words)


def _profiles() -> Path:
    home = Path(os.environ.get("PREFECT_HOME") or "~/.prefect").expanduser()
    return Path(os.environ.get("PREFECT_PROFILES_PATH") or home / "profiles.toml").expanduser()


def _active_profile() -> Mapping[str, Any] | None:
    """The settings of the active profile; None where only Prefect can read them."""
    wanted = os.environ.get("PREFECT_PROFILE")
    if not _profiles().is_file():
        return {} if wanted is None else None
    if sys.version_info < (3, 11):
        return None
    import tomllib

    try:
        found = tomllib.loads(_profiles().read_text())
    except (ValueError, OSError):
        return None
    profile = found.get("profiles", {}).get(wanted or found.get("active"))
    return profile if isinstance(profile, dict) else None
