"""Tells Prefect that published plans are behind what is installed, once for each change.

What was told is kept in the store, `<root>/emitted/<sm_89>/<rtx-1.7.0.98>-<1.7.1.116>.json`; who deletes such a file
has it told again. Prefect is imported only where somebody is to be told.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import NAMESPACE_URL, uuid5

from artifacts import publications
from artifacts.store import Store
from conf.errors import ConfigError
from pipelines.errors import EngineError
from pipelines.prefect_settings import name_server
from pipelines.server_api import Prefects
from stages import backends
from stages.wording import first_line

if TYPE_CHECKING:
    from pipelines.versions import Change

EVENT = "trtforge.tensorrt.version.changed"
RESOURCE = "trtforge.tensorrt"
"""An event's resource is this and the architecture: `trtforge.tensorrt.sm_89`."""


def emit(store: Store, changes: Sequence[Change]) -> list[Change]:
    """Tells Prefect of those of `changes` that it was not told of before.

    Two processes that watch one store tell it once. Who is killed between telling and noting tells it again, under the
    same id, for which Prefect starts nothing a second time.

    Returns:
        Those that were told now.

    Raises:
        ConfigError: No API of Prefect's is configured.
        EngineError: It does not take the event.
        StoreError: The store cannot be written.
    """
    _require_api()
    if not changes:
        return []
    holder = f"watch in process {os.getpid()} on {platform.node()}"
    with store.lock("emitted", holder, lambda waiting: None):
        fresh = [change for change in changes if not _note(store, change).exists()]
        for change in fresh:
            _post(_event(store, change))
            _keep(store, change)
    return fresh


def _note(store: Store, change: Change) -> Path:
    release = f"{backends.find(change.backend).short}-{change.before}"
    return store.root / "emitted" / change.architecture / f"{release}-{change.after}.json"


def _keep(store: Store, change: Change) -> None:
    text = json.dumps({**change.document(), "at": publications.now(), "by": publications.whoever()}, indent=1)
    with store.scratch() as aside:
        try:
            (aside / "fresh").write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise store.cannot_be_written(error) from error
        store.move_in(aside / "fresh", _note(store, change))


def _event(store: Store, change: Change) -> dict[str, Any]:
    """The event, as Prefect's API takes it."""
    told = f"{change.architecture}/{change.backend}/{change.before}/{change.after}"
    return {
        "id": str(uuid5(NAMESPACE_URL, f"{EVENT}/{store.identity}/{told}")),
        "event": EVENT,
        "occurred": publications.now(),
        "resource": {
            "prefect.resource.id": f"{RESOURCE}.{change.architecture}",
            "prefect.resource.name": change.architecture,
        },
        "payload": change.document(),
    }


def _require_api() -> None:
    if not name_server():
        raise ConfigError(
            "--emit: no API of Prefect's is configured, so that there is nobody to tell",
            "name the server: PREFECT_API_URL=http://HOST:4200/api, or leave out --emit",
        )


def _post(event: Mapping[str, Any]) -> None:
    """Hands an event to Prefect's API, which answers when it has it: `emit_event` returns before that."""
    try:
        Prefects()("POST", "/events", [event])
    except Exception as error:  # a server has many ways to fail
        raise EngineError(
            f"Prefect does not take the event {EVENT}: {first_line(error)}",
            "check PREFECT_API_URL and that its server runs",
        ) from error
