"""The passes that a config lists: each a name, or a mapping of the name and its options, checked before anything runs.

`fold`, `{pass: fold, max_bytes: 4096}` and, of the user's own, `{pass: package.module.callable, threshold: 0.5}`.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, get_args, get_origin, get_type_hints

from stages.allowed import NotAllowedError
from stages.passes import PASSES, named
from stages.passes.contract import Pass

CHANGES_RESULTS = "changes_results"
"""The one option that every pass has: what comes after it is compared with what it made, not with what it was given."""

_OWN = re.compile(r"[A-Za-z_]\w*([.:][A-Za-z_]\w*)+")

Entry = dict[str, Any]
"""`{"pass": name, option: value, …}`, every option given."""


@dataclass(frozen=True)
class Listed:
    """A pass as a config lists it.

    Attributes:
        name: As the config has it; of the user's own pass `package.module.callable`.
        declared: None for the user's own.
        options: The options; of the user's own pass the keyword arguments.
        keeps_results: Whether the model is expected to compute the same afterwards.
    """

    name: str
    declared: Pass[Any] | None
    options: Any
    keeps_results: bool


def is_own(name: str) -> bool:
    """Whether a pass of this name is the user's own: names of ours have no dot."""
    return bool(_OWN.fullmatch(name))


def checked(given: Sequence[object], key: str) -> list[Entry]:
    """The entries of the list `key` in full: every option of every pass, those that were left out at their defaults.

    Raises:
        NotAllowedError: There is no such pass or option, or an option may not be that.
    """
    return [_checked(entry, f"{key}[{position}]") for position, entry in enumerate(given)]


def listed(entries: Sequence[Entry]) -> list[Listed]:
    """The passes of entries that `checked` gave."""
    return [_listed(entry) for entry in entries]


def _listed(entry: Entry) -> Listed:
    rest = {name: value for name, value in entry.items() if name not in ("pass", CHANGES_RESULTS)}
    declared = None if is_own(entry["pass"]) else named(entry["pass"])
    keeps = not entry[CHANGES_RESULTS] and (declared is None or declared.keeps_results)
    return Listed(entry["pass"], declared, declared.options(**rest) if declared else rest, keeps)


def _checked(entry: object, where: str) -> Entry:
    if isinstance(entry, str):
        entry = {"pass": entry}
    if not isinstance(entry, Mapping) or not isinstance(entry.get("pass"), str):
        raise NotAllowedError(where, entry, "the name of a pass, or {pass: NAME, OPTION: VALUE, …}")
    name = str(entry["pass"])
    rest = {str(option): value for option, value in entry.items() if option not in ("pass", CHANGES_RESULTS)}
    changes = entry.get(CHANGES_RESULTS, False)
    if not isinstance(changes, bool):
        raise NotAllowedError(f"{where}.{CHANGES_RESULTS}", changes, "true, false")
    if not is_own(name):
        rest = _options(name, rest, where)
    return {"pass": name, **rest, CHANGES_RESULTS: changes}


def _options(name: str, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    if name not in PASSES:
        own = "or your own: package.module.callable"
        raise NotAllowedError(where, name, f"{_closest(name, PASSES)}{', '.join(PASSES)}, {own}")
    schema = named(name).options
    known = {field.name: field for field in fields(schema)}
    types = get_type_hints(schema)
    for option, value in given.items():
        if option not in known:
            allowed = ", ".join((*known, CHANGES_RESULTS))
            raise NotAllowedError(f"{where}.{option}", value, f"{_closest(option, known)}options of {name}: {allowed}")
        if not _fits(value, types[option]):
            raise NotAllowedError(f"{where}.{option}", value, _spelled(types[option]))
    for option, field in known.items():
        if option not in given and field.default is MISSING and field.default_factory is MISSING:
            raise NotAllowedError(f"{where}.{option}", None, f"{_spelled(types[option])}; {name} needs it")
    try:
        return asdict(schema(**given))
    except NotAllowedError as error:
        raise NotAllowedError(f"{where}.{error.key}", error.got, error.allowed) from error


def _closest(wrong: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(wrong, known, n=1)
    return f"did you mean {near[0]}? " if near else ""


def _fits(value: object, wanted: Any) -> bool:
    if wanted is Any:
        return True
    inner = get_args(wanted)
    if get_origin(wanted) is list:
        return isinstance(value, list) and all(_fits(each, inner[0]) for each in value)
    if get_origin(wanted) is dict:
        return isinstance(value, Mapping) and all(
            isinstance(name, str) and _fits(each, inner[1]) for name, each in value.items()
        )
    if inner:  # a union
        return any(_fits(value, each) for each in inner)
    if wanted is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, wanted) and isinstance(value, bool) == (wanted is bool)


def _spelled(wanted: Any) -> str:
    inner = get_args(wanted)
    if get_origin(wanted) is list:
        return f"a list of {_spelled(inner[0])}"
    if get_origin(wanted) is dict:
        return f"a mapping of names to {_spelled(inner[1])}"
    if inner:
        return " or ".join(map(_spelled, inner))
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", type(None): "null"}
    return words.get(wanted, "any value")
