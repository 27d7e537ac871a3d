"""What was published under a name, one after the other, and the plans that gates keep from being published.

```
<root>/publications/<name>.json   what the name meant: which key, since when, by whom, why
<root>/refused/<name>.json        the plan that a gate says no to, until one comes that all let pass
```

The name is that of the ref `published/<name>`. It moves in three steps, in this order: the history says so, the link
`published/<name>` leads there, the ref means it. Who finds the ref behind the history finishes the move.

Both files carry a digest of themselves, and neither holds a key in place: without its history a name still means what
it means, and only cannot be rolled back.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

from artifacts import digest
from artifacts.errors import NewerFormatError, StoreError
from artifacts.record import Blob
from artifacts.store import Store

FORMAT = 1

KEPT = 50
"""So many publications of a name are remembered; one is 300 bytes."""

HISTORY, REFUSED = "publications", "refused"


@dataclass(frozen=True)
class Publication:
    """One move of a name.

    Attributes:
        key: The record that it meant from then on.
        how: `publish`, or `rollback`: back to one that it had meant before.
        at: When (ISO, UTC); empty where nobody noted it.
        by: `user@host`; empty likewise.
        reason: Why, in the words of whoever did it; empty where nobody asked.
        gates: What the gates had against it.
    """

    key: str
    how: Literal["publish", "rollback"] = "publish"
    at: str = ""
    by: str = ""
    reason: str = ""
    gates: tuple[str, ...] = ()


@dataclass(frozen=True)
class Refused:
    """A plan that gates say no to.

    Attributes:
        key: The record that made it.
        gates: What they have against it.
        at: When it was first refused (ISO, UTC).
    """

    key: str
    gates: tuple[str, ...]
    at: str


@dataclass(frozen=True)
class History:
    """All moves of a name that are remembered, the oldest first."""

    moves: tuple[Publication, ...] = ()

    @property
    def current(self) -> str | None:
        """The key that the name means; None where nothing was noted."""
        return self.moves[-1].key if self.moves else None

    @property
    def before(self) -> list[str]:
        """The keys that the name can go back to, the latest first."""
        return self._stack()[-2::-1]

    @property
    def withdrawn(self) -> set[str]:
        """The keys that were rolled back and not published again since: no build publishes them by itself."""
        return {move.key for move in self.moves} - set(self._stack())

    @property
    def superseded(self) -> dict[str, str]:
        """When each key that the name meant once ceased to be meant."""
        ends = {move.key: after.at for move, after in zip(self.moves, self.moves[1:], strict=False)}
        return {key: at for key, at in ends.items() if key != self.current}

    def _stack(self) -> list[str]:
        stack: list[str] = []
        for move in self.moves:
            if move.how == "rollback" and move.key in stack:
                del stack[stack.index(move.key) + 1 :]
            else:
                stack = [key for key in stack if key != move.key] + [move.key]
        return stack


def now() -> str:
    """The time, as histories hold it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def whoever() -> str:
    """Who this process works for: `user@host`."""
    import getpass  # 2 ms, which a build with nothing to do need not spend

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user that has no name
        user = f"uid {os.getuid()}"
    return f"{user}@{platform.node()}"


def history(store: Store, name: str) -> History:
    """What `name` meant, one after the other; empty where nothing was noted.

    Raises:
        StoreError: The file is damaged, or of a newer format.
    """
    content = _read(store.root / HISTORY / f"{name}.json")
    return History(() if content is None else tuple(_publication(each) for each in content["moves"]))


def move(store: Store, name: str, files: Mapping[str, Blob], publication: Publication) -> Path:
    """Lets `published/<name>` be the record of `publication`, and notes it; nothing is noted twice.

    Args:
        store: The store.
        name: `digits/sm_89/rtx-1.7.1.116/int8`.
        files: The record's outputs by the names of the files.
        publication: What is to be noted.

    Returns:
        The published directory.

    Raises:
        StoreError: The history or an object is damaged, or the store cannot be written.
    """
    with store.lock("publications", f"publishing {name}", lambda holder: None):
        known = history(store, name)
        moves = known.moves
        if not moves and (key := store.ref(f"published/{name}")) and key != publication.key:
            moves = (Publication(key),)  # published before there were histories, or fetched from a remote
        if known.current != publication.key:
            moves = (*moves, publication)[-KEPT:]
            _write(store, HISTORY, name, {"moves": [asdict(each) for each in moves]})
        directory = store.publish(name, publication.key, files)
        store.set_ref(f"published/{name}", publication.key)
    return directory


def refuse(store: Store, name: str, key: str, gates: Sequence[str]) -> None:
    """Marks the plan of `key`, which `name` would mean if the gates let it.

    Raises:
        StoreError: The store cannot be written.
    """
    with suppress(StoreError):  # a damaged mark is written anew
        known = refusal(store, name)
        if known and (known.key, known.gates) == (key, tuple(gates)):
            return
    _write(store, REFUSED, name, asdict(Refused(key, tuple(gates), now())))


def let_pass(store: Store, name: str) -> None:
    """Takes the mark off: the plan that `name` would mean passes all gates.

    Raises:
        StoreError: The store cannot be written.
    """
    path = store.root / REFUSED / f"{name}.json"
    if path.exists():
        store.delete(path)


def refusal(store: Store, name: str) -> Refused | None:
    """The mark of the plan that `name` would mean; None where it has none.

    Raises:
        StoreError: The file is damaged, or of a newer format.
    """
    content = _read(store.root / REFUSED / f"{name}.json")
    return None if content is None else Refused(content["key"], tuple(content["gates"]), content["at"])


def histories(store: Store) -> Iterator[History]:
    """Every history of the store.

    Raises:
        StoreError: One is damaged, or of a newer format.
    """
    for path in files(store):
        if path.is_relative_to(store.root / HISTORY):
            yield history(store, path.relative_to(store.root / HISTORY).as_posix().removesuffix(".json"))


def files(store: Store) -> list[Path]:
    """All files of histories and marks."""
    return sorted(path for kind in (HISTORY, REFUSED) for path in (store.root / kind).rglob("*") if path.is_file())


def problem(path: Path) -> str:
    """What is wrong with the file of a history or a mark; empty if nothing is."""
    try:
        _read(path)
    except NewerFormatError:
        pass  # a newer trtforge knows what it says
    except StoreError as error:
        return error.what
    return ""


def _publication(content: Mapping[str, Any]) -> Publication:
    return Publication(**{**content, "gates": tuple(content["gates"])})


def _write(store: Store, kind: str, name: str, content: Mapping[str, Any]) -> None:
    body = json.loads(json.dumps({"format": FORMAT, **content}))
    text = json.dumps({**body, "seal": digest.of_json(body)}, indent=1, ensure_ascii=False) + "\n"
    with store.scratch() as aside:
        try:
            (aside / "fresh").write_text(text, encoding="utf-8")
        except OSError as error:
            raise store.cannot_be_written(error) from error
        store.move_in(aside / "fresh", store.root / kind / f"{name}.json")


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        seal, newer = content.pop("seal"), content["format"] > FORMAT
        whole = seal == digest.of_json(content)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _damaged(path, repr(error)) from error
    if not whole:
        raise _damaged(path, "its seal does not match its content")
    if newer:
        raise NewerFormatError(f"{path} was written by a newer trtforge", "upgrade trtforge")
    return content


def _damaged(path: Path, why: str) -> StoreError:
    return StoreError(f"{path} is damaged: {why}", "run `trtforge verify --repair`: only going back is lost with it")
