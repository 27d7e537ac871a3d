"""Batches from the user's own Python: `package.module:function`, or a script as Polygraphy takes it.

The function gives an iterable of feeds, `{input: array}` each, or an object with `get_next()`, which gives feeds and
then None (ONNX Runtime's `CalibrationDataReader`). One that has a parameter `files` gets the files of the declared path
as a list of `pathlib.Path`. It is called once for each pass over the data.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import batches
from stages.batches import Header, Input, Limits
from stages.stage import StageError
from stages.users_python import find, imports_from, raised

if TYPE_CHECKING:
    from stages.batches import Array, Batch


@dataclass(frozen=True)
class Feeds:
    """What a function of the user's gives.

    Attributes:
        name: `package.module:function`, or `.py:function` for a script.
        source: The function's modules; of a script, itself first.
        files: The files of the declared path, for it to read.
        inputs: What to take out of each feed.
        limits: What the profiles take.
    """

    name: str
    source: Sequence[Path]
    files: Sequence[Path]
    inputs: Sequence[Input]
    limits: Sequence[Limits] = ()

    def count(self) -> None:
        """Nobody knows how many samples a function will give."""

    def feeds(self) -> Iterator[Batch]:
        """Each feed, as a piece; those without samples are passed over.

        Raises:
            StageError: The function is not there, raises, gives something else than feeds, or one that does not fit.
        """
        script = self.source[0] if self.name.startswith(".py:") else None
        called = f"{script or ''}{self.name}".replace(".py.py:", ".py:")
        places = [script.parent, Path.cwd()] if script else [Path.cwd()]
        with imports_from(*places):
            given = self._call(find(self.name, script), called)
            for number, feed in enumerate(_each(given, called)):
                piece = self._piece(feed, f"feed {number} (counted from 0) of {called}")
                if batches.size(piece):
                    yield piece

    def _call(self, function: Any, called: str) -> Any:
        arguments = {"files": list(self.files)} if _takes_files(function) else {}
        try:
            return function(**arguments)
        except Exception as error:
            raise raised(called, error) from error

    def _piece(self, feed: Any, where: str) -> Batch:
        import numpy as np

        if not isinstance(feed, Mapping):
            raise StageError(f"{where} is {type(feed).__name__}", "give a dict of arrays by the names of the inputs")
        piece: dict[str, Array] = {}
        for wanted in self.inputs:
            if wanted.name in feed:
                try:
                    piece[wanted.name] = np.asarray(feed[wanted.name])
                except Exception as error:  # what another library's array raises: of a GPU, with gradients, ragged
                    raise StageError(
                        f"{where}: {wanted.name!r} cannot be made an array: {type(error).__name__}: "
                        f"{(str(error).splitlines() or [''])[0]}",
                        "give numpy arrays",
                    ) from error
        headers = {**{str(name): _UNREAD for name in feed}, **{name: Header.of(array) for name, array in piece.items()}}
        batches.require_fit(where, headers, self.inputs, self.limits)
        return piece


_UNREAD = Header((), None)  # type: ignore[arg-type]
"""Of an array that is not wanted only the name is known."""


def _takes_files(function: Any) -> bool:
    try:
        return "files" in inspect.signature(function).parameters
    except ValueError:  # a class or function of C, which says nothing
        return False


def _each(given: Any, called: str) -> Iterator[Any]:
    """The feeds of what the function returned."""
    if hasattr(given, "get_next"):
        given = iter(given.get_next, None)
    if isinstance(given, Mapping) or not isinstance(given, Iterable):
        raise StageError(
            f"{called} returned {type(given).__name__}",
            "return an iterable of feeds {input: array}, or an object with get_next()",
        )
    feeds = iter(given)
    while True:
        try:
            feed = next(feeds)
        except StopIteration:
            return
        except Exception as error:
            raise raised(called, error) from error
        yield feed
