"""What `prefect.yaml` says: written once, and then the user's own to edit and to keep in git.

The file is Prefect's: `prefect deploy --all` reads its deployments, too. What Prefect has no words for, the pool's
queues and the limits, stands under `definitions.trtforge`. What is not understood is refused with its line.
No Prefect here: `pipelines.deploying` applies it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yaml import SafeLoader, YAMLError, safe_dump  # type: ignore[import-untyped]

from conf.errors import ConfigError, suggest

POOL = "trtforge"
CPU = "cpu"
"""The queue of what any machine can do."""

GPU_QUEUES = tuple(f"sm_{number}" for number in (75, 80, 86, 87, 89, 90, 100, 103, 110, 120, 121))
"""A queue per architecture that TensorRT from 10.13 on, or TensorRT-RTX, builds for."""

VERSION_CHANGED = "trtforge.tensorrt.version.changed"
"""The event that `trtforge watch` emits."""

HEARTBEAT_SECONDS = 30
"""How often a run says that it lives: the least that Prefect takes, where its default is 180 s."""

CRASHED_AFTER_SECONDS = 90
"""A run silent for three heartbeats is taken for dead."""

BUILDS_AT_ONCE = 16
"""Runs of the deployment `build`, over all queues; what its workers take at once is less, as a rule."""

NIGHTLY = "0 2 * * *"
WATCHED = "0 * * * *"
TIMEZONE = "UTC"

FLOWS = {"build": "build", "rebuild-nightly": "rebuild", "watch-versions": "watch", "target": "target"}
"""Deployment -> function of `pipelines.flows`."""

TARGET = f"{POOL}-target/target"
"""The deployment by which a run sends the steps of a target to a queue."""

_SCHEDULE = {"cron": str, "interval": int, "rrule": str}
_SHAPE: Mapping[str, Any] = {
    "name": str,
    "prefect-version": str,
    "pull": list,
    "definitions": {
        "trtforge": {
            "work_pool": {"name": str, "type": str},
            "work_queues": dict,
            "global_concurrency_limits": dict,
            "crashed_after_seconds": int,
        },
        # Prefect leaves `definitions` to the user, for anchors.
        ...: object,
    },
    "deployments": [
        {
            "name": str,
            "description": str,
            "entrypoint": str,
            "tags": [str],
            "parameters": dict,
            "schedules": [{**_SCHEDULE, "timezone": str, "active": bool, "slug": str, "parameters": dict}],
            "concurrency_limit": {"limit": int, "collision_strategy": str, "grace_period_seconds": int},
            "work_pool": {"name": str, "work_queue_name": str, "job_variables": dict},
            "triggers": list,
        }
    ],
}
"""What the file may hold: a type, a mapping by its keys, a list of one kind. What `dict` holds Prefect checks."""

_TYPES = {str: "text", int: "a whole number", bool: "true or false", list: "a list", dict: "a mapping"}

Where = tuple[str | int, ...]


@dataclass(frozen=True)
class Deployment:
    """One of the file's deployments.

    Attributes:
        line: Where it stands in the file, from 1.
        said: As it stands there.
        queue: Its work queue.
    """

    name: str
    line: int
    entrypoint: str
    queue: str
    said: Mapping[str, Any]


@dataclass(frozen=True)
class Deployments:
    """What `prefect.yaml` asks for.

    Attributes:
        path: The file.
        pool: The work pool's name.
        pool_type: Such as `process`, `docker` or `kubernetes`.
        queues: Work queue -> how many of its runs may be active at once; None is no limit.
        limits: Global concurrency limit -> its slots.
        crashed_after_seconds: How long a run may send no heartbeat; None leaves such runs alone.
        pull: Prefect's steps that fetch the flows' code; none are needed where trtforge is installed.
    """

    path: Path
    pool: str
    pool_type: str
    queues: Mapping[str, int | None]
    limits: Mapping[str, int]
    crashed_after_seconds: int | None
    pull: Sequence[Mapping[str, Any]]
    deployments: Sequence[Deployment]

    def wrong(self, deployment: Deployment, what: str) -> ConfigError:
        """The error that says what is wrong with a deployment, with its line."""
        return ConfigError(f"{self.path}:{deployment.line}: deployment {deployment.name}: {what}", f"edit {self.path}")


def written(
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    tags: Sequence[str],
    models: Sequence[str] | None = None,
    cron: str = NIGHTLY,
    timezone: str = TIMEZONE,
    flows: Sequence[str] = tuple(FLOWS.values()),
) -> str:
    """The text of a new `prefect.yaml`.

    Args:
        overrides: Of every deployment.
        config_dirs: Directories of own config groups, as the workers see them.
        tags: Of every deployment, beside `trtforge`.
        models: What `rebuild-nightly` rebuilds; None for all of the own config groups.
        cron: When `rebuild-nightly` runs.
        timezone: Of its schedule, such as `Europe/Berlin`.
        flows: The functions of `pipelines.flows` that there are.
    """
    queues = "\n".join(f"      {name}: {{concurrency_limit: null}}" for name in (CPU, *GPU_QUEUES))
    limits = "\n".join(f"      {POOL}-{name}: 1" for name in GPU_QUEUES)
    parameters: dict[str, Any] = {"overrides": list(overrides)}
    if config_dirs:
        parameters["config_dirs"] = [str(path) for path in config_dirs]
    schedules = {"rebuild-nightly": (cron, timezone), "watch-versions": (WATCHED, TIMEZONE)}
    # A catalog has many models: the one of the build is not for the others.
    catalog = {**parameters, "overrides": [each for each in overrides if each.partition("=")[0] != "model"]}
    of_flow = {
        "build": parameters,
        "watch": catalog,
        "rebuild": {**catalog, **({"models": list(models)} if models else {})},
        "target": {},  # whoever sends it says what, and to which queue
    }
    told = "\n".join(
        _deployment(name, flow, [POOL, *tags], of_flow[flow], schedules.get(name))
        for name, flow in FLOWS.items()
        if flow in flows
    )
    return f"""\
# `trtforge deploy` wrote this and applies it. It is yours from here on: edit it, and deploy again.
name: {POOL}
# The flows are installed with trtforge. Without a step Prefect copies the worker's directory, the store in it too.
pull:
- prefect.deployments.steps.set_working_directory: {{directory: .}}

definitions:
  trtforge:
    work_pool: {{name: {POOL}, type: process}}
    work_queues:
{queues}
    # Builds at once on the GPUs of an architecture, over all hosts.
    global_concurrency_limits:
{limits}
    crashed_after_seconds: {CRASHED_AFTER_SECONDS}  # a run that sends no heartbeat for so long is Crashed

deployments:
{told}"""


def _deployment(
    name: str, flow: str, tags: Sequence[str], parameters: Mapping[str, Any], schedule: tuple[str, str] | None
) -> str:
    lines = [
        f"- name: {name}",
        f"  entrypoint: pipelines.flows.{flow}",
        f"  tags: {_inline(list(tags))}",
        f"  parameters: {_inline(dict(parameters))}",
    ]
    if schedule:
        cron, timezone = schedule
        lines += ["  schedules:", f"  - {_inline({'cron': cron, 'timezone': timezone, 'active': True})}"]
    at_once = BUILDS_AT_ONCE if flow in ("build", "target") else 1
    lines += [
        f"  concurrency_limit: {{limit: {at_once}, collision_strategy: ENQUEUE}}",
        "  work_pool:",
        f"    name: {POOL}",
        f"    work_queue_name: {CPU}",
        "    job_variables:",
        '      working_dir: "."  # the directory that the worker was started in',
        f'      env: {{PREFECT_FLOWS_HEARTBEAT_FREQUENCY: "{HEARTBEAT_SECONDS}"}}',
    ]
    if flow == "rebuild":
        lines += [
            "  triggers:",
            "  - type: event",
            "    match: {prefect.resource.id: trtforge.tensorrt.*}",
            f"    expect: [{VERSION_CHANGED}]",
            '    parameters: {architecture: "{{ event.resource.name }}"}',
        ]
    return "".join(f"{line}\n" for line in lines)


def _inline(value: Any) -> str:
    """As YAML on one line. JSON would nearly do: YAML reads its surrogate pairs as two characters."""
    text: str = safe_dump(value, default_flow_style=True, sort_keys=False, width=sys.maxsize)
    return text.strip()


def read(path: Path) -> Deployments:
    """What `path` asks for.

    Raises:
        ConfigError: It cannot be read, or says something that is not understood; with the line.
    """
    try:
        return parsed(path.read_text(), path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "delete it to have it written anew") from error


def parsed(text: str, path: Path) -> Deployments:
    """What the text of a `prefect.yaml` asks for; `path` is for messages. Raises as `read` does."""
    document, lines = _loaded(text, path)
    for where, what, next_step in _complaints(document, _SHAPE, ()):
        raise ConfigError(f"{path}:{_line(lines, where)}: {what}", next_step)
    ours = (document.get("definitions") or {}).get("trtforge") or {}
    pool = ours.get("work_pool") or {}
    found = Deployments(
        path=path,
        pool=pool.get("name", POOL),
        pool_type=pool.get("type", "process"),
        queues=_queues(ours.get("work_queues") or {}, path, lines),
        limits=_limits(ours.get("global_concurrency_limits") or {}, path, lines),
        crashed_after_seconds=ours.get("crashed_after_seconds"),
        pull=document.get("pull") or [],
        deployments=[
            _read_deployment(said, _line(lines, ("deployments", number)), path)
            for number, said in enumerate(document.get("deployments") or [])
        ],
    )
    _check(found)
    return found


def _loaded(text: str, path: Path) -> tuple[dict[str, Any], dict[Where, int]]:
    """The document, and the line of each key and entry in it, from 1."""
    try:
        loader = SafeLoader(text)
        node = loader.get_single_node()
        document = loader.construct_document(node) if node is not None else None
        lines = dict(_lines(node, (), ())) if node is not None else {}
    except (YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        at = f"{path}:{mark.line + 1}" if mark else str(path)
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ConfigError(f"{at}: this is no YAML: {what}", f"edit {path}") from error
    if not isinstance(document, dict):
        raise ConfigError(f"{path}:1: holds no mapping", "delete it to have it written anew")
    return document, lines


def _lines(node: Any, where: Where, above: tuple[int, ...]) -> Iterator[tuple[Where, int]]:
    yield where, node.start_mark.line + 1
    if id(node) in above:  # an alias of what it is part of
        raise ValueError(f"line {node.start_mark.line + 1} contains itself")
    above = (*above, id(node))
    if node.id == "sequence":
        for index, entry in enumerate(node.value):
            yield from _lines(entry, (*where, index), above)
    elif node.id == "mapping":
        for key, value in node.value:
            yield from _lines(value, (*where, key.value), above)
            yield (*where, key.value), key.start_mark.line + 1


def _line(lines: Mapping[Where, int], where: Where) -> int:
    while where not in lines:
        where = where[:-1]
    return lines[where]


def _complaints(value: Any, shape: Any, where: Where) -> Iterator[tuple[Where, str, str]]:
    """Where the value is not of the shape: place, what is wrong, next step."""
    spelled = ".".join(map(str, where))
    if isinstance(value, str) and "{{" in value and "triggers" not in where:
        yield where, f"{spelled} holds {{{{ … }}}}, which is not expanded", "write the value itself"
    elif shape is object or (value is None and where):
        return
    elif isinstance(shape, (dict, list)):
        kind = type(shape)
        if not isinstance(value, kind):
            yield where, f"{spelled} must be {_TYPES[kind]}, not {value!r}", "write it as docs/deployments.md does"
        elif isinstance(value, list):
            for index, entry in enumerate(value):
                yield from _complaints(entry, shape[0], (*where, index))
        elif isinstance(shape, dict):
            yield from _complaints_of_mapping(value, shape, where)
    elif not isinstance(value, shape) or (shape is int and isinstance(value, bool)):
        yield where, f"{spelled} must be {_TYPES[shape]}, not {value!r}", "write it as docs/deployments.md does"
    elif shape in (dict, list):
        entries = value.items() if shape is dict else enumerate(value)
        for key, entry in entries:
            yield from _complaints(entry, type(entry) if isinstance(entry, (dict, list)) else object, (*where, key))


def _complaints_of_mapping(
    value: Mapping[Any, Any], shape: Mapping[Any, Any], where: Where
) -> Iterator[tuple[Where, str, str]]:
    for key, entry in value.items():
        if key in shape:
            yield from _complaints(entry, shape[key], (*where, key))
        elif ... not in shape:
            place = f" in {'.'.join(map(str, where))}" if where else ""
            yield (*where, key), f"{key!r}{place} is not understood", suggest(str(key), shape)


def _queues(said: Mapping[Any, Any], path: Path, lines: Mapping[Where, int]) -> dict[str, int | None]:
    known = {CPU, *GPU_QUEUES}
    found: dict[str, int | None] = {}
    for name, options in said.items():
        where = ("definitions", "trtforge", "work_queues", name)
        at = f"{path}:{_line(lines, where)}"
        if name not in known:
            raise ConfigError(f"{at}: there is no queue {name!r}", suggest(str(name), known))
        options = options or {}
        if not isinstance(options, dict) or set(options) - {"concurrency_limit"}:
            raise ConfigError(f"{at}: queue {name} takes concurrency_limit alone, not {options!r}", f"edit {path}")
        found[name] = _number(options.get("concurrency_limit"), f"{at}: concurrency_limit of queue {name}", 0)
    return found


def _limits(said: Mapping[Any, Any], path: Path, lines: Mapping[Where, int]) -> dict[str, int]:
    found = {}
    for name, slots in said.items():
        at = f"{path}:{_line(lines, ('definitions', 'trtforge', 'global_concurrency_limits', name))}"
        number = _number(slots, f"{at}: the limit {name}", 1)
        if number is None:
            raise ConfigError(f"{at}: the limit {name} has no number", f"edit {path}")
        found[str(name)] = number
    return found


def _number(value: Any, what: str, least: int) -> int | None:
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
        raise ConfigError(f"{what} must be a whole number from {least}, not {value!r}", "or null for no limit")
    return value


def _read_deployment(said: Mapping[str, Any], line: int, path: Path) -> Deployment:
    for key in ("name", "entrypoint"):
        if not said.get(key):
            raise ConfigError(f"{path}:{line}: a deployment has no {key}", f"edit {path}")
    queue = (said.get("work_pool") or {}).get("work_queue_name") or CPU
    return Deployment(said["name"], line, said["entrypoint"], queue, said)


def _check(found: Deployments) -> None:
    if found.crashed_after_seconds is not None and found.crashed_after_seconds <= HEARTBEAT_SECONDS:
        raise ConfigError(
            f"{found.path}: crashed_after_seconds is {found.crashed_after_seconds}, and heartbeats come every "
            f"{HEARTBEAT_SECONDS} s",
            f"write {CRASHED_AFTER_SECONDS}, or null for none",
        )
    seen = set()
    for deployment in found.deployments:
        pool = (deployment.said.get("work_pool") or {}).get("name") or found.pool
        if pool != found.pool:
            raise found.wrong(deployment, f"its work pool is {pool!r}, and the file's is {found.pool!r}")
        if deployment.queue not in found.queues:
            raise found.wrong(deployment, f"its queue {deployment.queue!r} is none of the file's work_queues")
        if deployment.name in seen:
            raise found.wrong(deployment, "the name is taken")
        seen.add(deployment.name)
