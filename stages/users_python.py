"""The user's own Python, found and imported as if it was started from the working directory."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from stages.stage import StageError

SCRIPT = "trtforge_users_script"
"""What a script is called among the imported modules."""

_STANDARD = str(Path(os.__file__).parent)


@contextmanager
def imports_from(*places: Path) -> Iterator[None]:
    """Lets modules be found in `places`, and forgets afterwards what was imported from there.

    A process that stays (`trtforge serve`) would otherwise run yesterday's code under today's key. No bytecode is
    written: Python takes it for that of any file of the same size and second.
    """
    known, wrote_none = {name.partition(".")[0] for name in sys.modules}, sys.dont_write_bytecode
    here = [str(place) for place in places]
    sys.path[:0] = here
    sys.dont_write_bytecode = True
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.dont_write_bytecode = wrote_none
        for place in here:
            sys.path.remove(place)
        imported = [name for name in sys.modules if name.partition(".")[0] not in known]
        # All are looked at before one goes: a directory without __init__.py asks its parent where it lies.
        for name in [name for name in imported if any(_lies_in(sys.modules[name], place) for place in here)]:
            del sys.modules[name]


def _lies_in(module: ModuleType, place: str) -> bool:
    # A directory without __init__.py has no file, but a path.
    found = [getattr(module, "__file__", None) or "", *getattr(module, "__path__", ())]
    return any(path.startswith(f"{place}/") and "site-packages" not in path for path in found)


def find(
    name: str,
    script: Path | None = None,
    *,
    called: str = "",
    next_step: str = "import it by itself in Python, from the directory in which trtforge is run",
) -> Callable[..., Any]:
    """The function `package.module:function`, or that of a script.

    Args:
        name: Both, with a colon; of a script only what comes after the colon counts.
        script: The script; None: it is a module.
        called: What errors call it; by default its name.
        next_step: What to do where it cannot be imported.

    Raises:
        StageError: It cannot be imported, has no such function, or that is none.
    """
    module, _, function = name.partition(":")
    called = called or (f"{script}:{function}" if script else name)
    try:
        found = getattr(_run(script) if script else importlib.import_module(module), function)
    except Exception as error:  # whatever the module's own code raises
        raise StageError(
            f"{called} cannot be imported: {type(error).__name__}: {error}".splitlines()[0], next_step
        ) from error
    if not callable(found):
        raise StageError(f"{called} is no function: it is {type(found).__name__}", "name a function")
    return found  # type: ignore[no-any-return]


def _run(script: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(SCRIPT, script)
    if spec is None or spec.loader is None:
        raise ImportError(f"{script} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[SCRIPT] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def place_of(error: BaseException) -> str:
    """Where in the user's files `error` was raised, as ` (FILE:LINE)`; empty where nothing of it is theirs.

    Of several frames the innermost that no package was installed with: a mistake inside NumPy is that of who calls it.
    """
    own = str(Path(__file__).parent)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(own)]
    users = [frame for frame in frames if not _is_installed(frame.filename)] or frames[:1]
    return f" ({users[-1].filename}:{users[-1].lineno})" if users else ""


def raised(called: str, error: BaseException) -> StageError:
    """What a person is told when a function of theirs raises: which, what, and the line of their own file."""
    first = (str(error).strip().splitlines() or [""])[0]
    return StageError(
        f"{called} raised {type(error).__name__}: {first}{place_of(error)}",
        "call it by itself in Python, from the directory in which trtforge is run",
    )


def _is_installed(file: str) -> bool:
    return file.startswith((_STANDARD, "<")) or "site-packages" in file
