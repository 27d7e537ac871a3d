"""What a worker says of itself to those that send steps to its queue, in the remote that they share.

```
<url>/workers/<digest of its name>.json
```

That the file is there shows that the worker reaches the remote. Whether the worker lives Prefect knows, by heartbeats.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from stages import STAGES, backends, installed, machine
from stages.gpus import Gpu, Gpus

if TYPE_CHECKING:
    from artifacts.remote import Remote

_PLACE = "workers"


@dataclass(frozen=True)
class Announcement:
    """A worker, as far as a target's facts and the keys of its steps depend on it.

    Attributes:
        worker: Its name on the Prefect server.
        host: Its machine.
        queue: The work queue that it serves.
        gpu: The GPU that its runs see; None where they see none.
        platform: As the fact of that name: `linux_x86_64`.
        cpu: The CPU's model.
        cores: How many cores its runs may use.
        versions: Backend -> installed version.
        tools: Distribution -> installed version, of all that a stage names.
    """

    worker: str
    host: str
    queue: str
    gpu: Gpu | None
    platform: str
    cpu: str
    cores: int
    versions: Mapping[str, str]
    tools: Mapping[str, str]

    @property
    def gpus(self) -> Gpus:
        """The GPUs that its runs see."""
        return Gpus((self.gpu,)) if self.gpu else Gpus((), f"none that the queue {self.queue} on {self.host} sees")


def own(worker: str, queue: str, gpu: Gpu | None) -> Announcement:
    """What a worker on this machine says of itself."""
    return Announcement(
        worker, socket.gethostname(), queue, gpu, machine.platform_name(), machine.cpu(), machine.cores(),
        _installed(backends.BACKENDS, backends.installed_version), tools_here(all_tools()),
    )  # fmt: skip


def all_tools() -> set[str]:
    """The distributions that any stage names as its tools."""
    return {tool for stage in STAGES.values() for tool in stage.tools}


def tools_here(names: Collection[str]) -> dict[str, str]:
    """The installed versions of those of `names` that are installed."""
    return _installed(sorted(names), installed.version)


def serves(worker: str, queue: str) -> bool:
    """Whether a worker of this name (`pipelines.worker.Place.name`) serves this queue."""
    return f" {queue} " in f"{worker} "


def announce(remote: Remote, announcement: Announcement) -> None:
    """Lets others know of a worker.

    Raises:
        RemoteError: The remote cannot be used.
    """
    remote.write(_name(announcement.worker), json.dumps(asdict(announcement), indent=1).encode())


def withdraw(remote: Remote, worker: str) -> None:
    """Says that the worker has ended, which the server takes 90 s to find out.

    Raises:
        RemoteError: The remote cannot be used.
    """
    remote.write(_name(worker), json.dumps({"worker": worker, "ended": True}).encode())


def known(remote: Remote) -> tuple[list[Announcement], set[str]]:
    """The workers that have announced themselves here, some of which may be dead, and the names of those that ended.

    Raises:
        RemoteError: The remote cannot be used.
    """
    found: list[Announcement] = []
    ended: set[str] = set()
    for content in remote.read_all(remote.names(_PLACE)):
        try:
            said: dict[str, Any] = json.loads(content or b"")
            if said.get("ended"):
                ended.add(said["worker"])
            else:
                found.append(Announcement(**{**said, "gpu": Gpu(**said["gpu"]) if said["gpu"] else None}))
        except (ValueError, TypeError, KeyError):
            continue  # another release of trtforge says it otherwise
    return found, ended


def _name(worker: str) -> str:
    return f"{_PLACE}/{hashlib.sha256(worker.encode()).hexdigest()}.json"


def _installed(names: Collection[str], version: Any) -> dict[str, str]:
    return {name: found for name in names if (found := version(name))}
