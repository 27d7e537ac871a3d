"""Published plans beside the versions there are: the verbs `watch` and `status --versions`. Nothing is built.

A plan is published under the release that built it, so one of another release stands beside it and never replaces it.
Of the plans of one model, architecture, backend and flow that of the installed release counts, else that of the highest
version; those below it are `superseded`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from pathlib import Path
from typing import Any

from artifacts import publications
from artifacts.errors import StoreError
from artifacts.store import Store
from conf.compose import compose
from conf.schema import LOCAL, Config
from pipelines import made_with, package_index
from pipelines.builders import Builders
from pipelines.document import bare_table, console
from pipelines.made_with import Lineage
from pipelines.package_index import Answer
from pipelines.targets import gpus_here
from stages import backends, installed
from stages.gpus import architecture

ONNXRUNTIME = "onnxruntime"
"""Besides the backends: what runs the references, and calibrates."""

CURRENT, BEHIND, AHEAD, UNKNOWN, SUPERSEDED = "current", "behind", "ahead", "unknown", "superseded"
"""How a plan stands to what would build it now; `unknown`: its backend is nowhere known to be installed."""


@dataclass(frozen=True)
class Published:
    """A published plan, as its name tells it.

    Attributes:
        name: `digits/sm_89/rtx-1.7.1.116/int8`.
        key: The record that it means.
        model: `digits`.
        architecture: `sm_89`; `sm_80_86_89` where one plan is for several.
        release: `rtx-1.7.1.116`.
        flow: `int8`.
        target: The GPU's target where the plan is for that GPU only; else None.
        backend: `tensorrt_rtx`.
        version: What built it, whole: `1.7.1.116`.
    """

    name: str
    key: str
    model: str
    architecture: str
    release: str
    flow: str
    target: str | None
    backend: str
    version: str

    @property
    def place(self) -> tuple[str, ...]:
        """What plans of several releases share that replace each other."""
        return (self.model, self.architecture, self.backend, self.flow, self.target or "")

    @property
    def title(self) -> str:
        """`int8`, or `int8@l4` where the plan is for that GPU only."""
        return f"{self.flow}@{self.target}" if self.target else self.flow


@dataclass(frozen=True)
class Change:
    """What an upgrade means for one architecture.

    Attributes:
        backend: `tensorrt_rtx`.
        before: The version that its plans were built with.
        after: The version that would build them now.
        architecture: `sm_89`.
        models: Those whose published plans a rebuild would replace, sorted.
    """

    backend: str
    before: str
    after: str
    architecture: str
    models: tuple[str, ...]

    def document(self) -> dict[str, Any]:
        """As `--json` prints it, and as the event's payload has it."""
        return {
            "backend": self.backend,
            "from": self.before,
            "to": self.after,
            "architecture": self.architecture,
            "models": list(self.models),
        }


@dataclass(frozen=True)
class Package:
    """A package whose version plans depend on.

    Attributes:
        installed: Its version here; None where it is not installed.
        available: The newest that the package index has and trtforge takes; None where nobody knows.
        newest: The newest of all that the index has; likewise.
        reason: Why nobody knows; empty where it is known.
    """

    installed: str | None
    available: str | None = None
    newest: str | None = None
    reason: str = ""

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        return {**vars(self), "reason": self.reason or None}

    def line(self) -> str:
        """For people, without the name."""
        beyond = f", and {self.newest}, which trtforge does not take" if self.newest != self.available else ""
        return f"installed {self.installed or 'no'}, available {self.available or f'unknown: {self.reason}'}{beyond}"


@dataclass(frozen=True)
class Watched:
    """What `watch` found.

    Attributes:
        packages: What is installed and available, by the name of the backend or distribution.
        plans: One document for each published plan.
        changes: What a rebuild is due for.
        emitted: Those of them that were told to Prefect now; None where nobody asked.
    """

    packages: Mapping[str, Package]
    plans: Sequence[Mapping[str, Any]]
    changes: Sequence[Change]
    emitted: Sequence[Change] | None = None

    def document(self) -> dict[str, Any]:
        """As `--json` prints it."""
        told = None if self.emitted is None else [change.document() for change in self.emitted]
        return {
            "ok": True,
            "packages": {name: package.document() for name, package in self.packages.items()},
            "plans": list(self.plans),
            "changes": [change.document() for change in self.changes],
            "emitted": told,
        }


def watch(
    overrides: Sequence[str],
    config_dirs: Sequence[Path],
    emit: bool = False,
) -> Watched:
    """Compares what is installed, and what the package index has, with what the published plans were built with.

    Args:
        overrides: Hydra overrides; those of `model`, `flow`, `targets` and `backend` choose among the plans.
        config_dirs: The user's own config directories.
        emit: Whether Prefect is told of each change that it was not told of before.

    Raises:
        ConfigError: The config is wrong, or Prefect is to be told and no API of its is configured.
        EngineError: Prefect's API does not take the event.
        StoreError: The store cannot be read, or what was told cannot be noted.
    """
    config = compose(overrides, config_dirs)
    store = Store(Path(config.store.root))
    plans = published(store, config, overrides)
    packages, builders = _packages(plans, config), Builders(config.store)
    told, found = described(plans, store, packages, builders), changes(plans, builders)
    if not emit:
        return Watched(packages, told, found)
    from pipelines import version_events

    return Watched(packages, told, found, version_events.emit(store, found))


def status(overrides: Sequence[str], config_dirs: Sequence[Path]) -> dict[str, Any]:
    """The published plans by model, target and version, each with how it stands to what is installed.

    Args:
        overrides: As for `watch`.
        config_dirs: The user's own config directories.

    Returns:
        dict: As `status --versions --json` prints it.

    Raises:
        ConfigError: The config is wrong.
    """
    config = compose(overrides, config_dirs)
    store = Store(Path(config.store.root))
    plans = published(store, config, overrides)
    builders = Builders(config.store)
    found = standings(plans, builders)
    known = {plan.backend: backends.installed_version(plan.backend) for plan in plans}
    return {
        "ok": True,
        "installed": {name: known[name] for name in sorted(known)},
        "workers": _workers(plans, builders),
        "plans": [_entry(plan, found[plan.name]) | _moved(store, plan) for plan in plans],
    }


def published(store: Store, config: Config, overrides: Sequence[str]) -> list[Published]:
    """The published plans that the overrides of `model`, `flow`, `targets` and `backend` choose; without any, all."""
    found = [_named(name, key) for name, key in store.refs("published").items()]
    chosen = _chooser(config, overrides)
    return [plan for plan in found if plan is not None and chosen(plan)]


def described(
    plans: Sequence[Published], store: Store, packages: Mapping[str, Package], builders: Builders
) -> list[dict[str, Any]]:
    """What `watch` says of each of `plans`, as `--json` prints it."""
    found, counts = standings(plans, builders), _counted(plans, builders)
    lineage = Lineage.of(store) if plans else Lineage(store)
    return [
        _watched(
            plan, found[plan.name], packages[plan.backend], builders, lineage if counts[plan.place] == plan else None
        )
        for plan in plans
    ]


def standings(plans: Sequence[Published], builders: Builders) -> dict[str, str]:
    """How each plan stands to what would build it now, by name; those below the one that counts are superseded."""
    counts = _counted(plans, builders)
    return {
        plan.name: SUPERSEDED
        if backends.is_before(plan.version, counts[plan.place].version)
        else _standing(plan.version, builders.version(plan.backend, plan.architecture))
        for plan in plans
    }


def changes(plans: Sequence[Published], builders: Builders) -> list[Change]:
    """What upgrades mean for those of `plans` that are behind, one for each architecture and version."""
    found = standings(plans, builders)
    models: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for plan in plans:
        if found[plan.name] == BEHIND:
            models[plan.architecture, plan.backend, plan.version].add(plan.model)
    return [
        Change(backend, version, builders.version(backend, arch) or "", arch, tuple(sorted(own)))
        for (arch, backend, version), own in sorted(models.items())
    ]


def print_watched(found: Watched) -> None:
    """Prints what `watch` found, for people."""
    screen = console()

    def say(text: str) -> None:
        screen.print(text, markup=False, highlight=False, soft_wrap=True)

    for name, package in found.packages.items():
        say(f"{name}: {package.line()}")
    if not found.plans:
        say("no such plan is published")
        return
    columns = ("model", "flow", "target", "built with", "standing", "a rebuild")
    table = bare_table(*columns)
    for plan in found.plans:
        built = f"{plan['backend']} {plan['backend_version']}"
        table.add_row(plan["model"], plan["flow"], plan["architecture"], built, plan["standing"], _would(plan))
    screen.print(table)
    for change in found.changes:
        models = ", ".join(change.models)
        say(f"{change.architecture}: {change.backend} {change.before} -> {change.after}: rebuild {models}")
    if found.emitted is not None:
        say(f"told to Prefect: {len(found.emitted)} of {len(found.changes)} changes; the others were told before")


def print_status(found: Mapping[str, Any]) -> None:
    """Prints what `status` found: a row for each model, flow and target, a column for each release."""
    screen = console()
    if not found["plans"]:
        screen.print("no such plan is published", highlight=False)
        return
    releases = list(dict.fromkeys(plan["release"] for plan in _by_release(found["plans"])))
    rows: dict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for plan in found["plans"]:
        told = f"{plan['standing']}, {(plan['published'] or 'time unknown')[:10]}"
        rows[plan["model"], plan["flow"], plan["architecture"]][plan["release"]] = told
    table = bare_table("model", "flow", "target", *releases)
    for row, cells in rows.items():
        table.add_row(*row, *(cells.get(release, "-") for release in releases))
    screen.print(table)
    here = ", ".join(f"{name} {version or '(not installed)'}" for name, version in found["installed"].items())
    screen.print(f"installed here: {here}", markup=False, highlight=False)
    for queue, versions in found["workers"].items():
        told = ", ".join(f"{name} {version}" for name, version in versions.items())
        screen.print(f"workers of {queue}: {told}", markup=False, highlight=False)


def _would(plan: Mapping[str, Any]) -> str:
    """What a rebuild would do, in words."""
    steps = dict.fromkeys(each["step"] for each in plan["reruns"])
    if not steps and plan["rebuild_due"]:
        return "makes it anew: its record is gone"
    return f"runs {', '.join(steps)}" if steps else "changes nothing"


def _named(name: str, key: str) -> Published | None:
    """The plan of a published name; None where it is no plan: `published/digits/export` is an ONNX file."""
    parts = name.removeprefix("published/").split("/")
    if len(parts) != 4:
        return None
    model, arch, release, title = parts
    short, _, version = release.partition("-")
    backend = next((each.name for each in backends.BACKENDS.values() if each.short == short), None)
    if backend is None:
        return None
    flow, _, target = title.partition("@")
    return Published("/".join(parts), key, model, arch, release, flow, target or None, backend, version)


def _chooser(config: Config, overrides: Sequence[str]) -> Callable[[Published], bool]:
    """What the overrides choose; those of other keys, such as `store.root`, choose nothing."""
    said = {override.lstrip("+~").partition("=")[0].partition(".")[0] for override in overrides}
    wanted: list[Callable[[Published], bool]] = []
    if "model" in said:
        wanted.append(lambda plan: plan.model == config.model.name)
    if "flow" in said:
        wanted.append(lambda plan: plan.flow == config.flow)
    if "targets" in said:
        architectures = set(_architectures(config))
        wanted.append(lambda plan: plan.architecture in architectures and plan.target in (None, *config.targets))
    if "backend" in said:
        wanted.append(lambda plan: plan.backend == config.backend.name)
    return lambda plan: all(fits(plan) for fits in wanted)


def _architectures(config: Config) -> Iterator[str]:
    for target in config.targets.values():
        if target.compute_capability == LOCAL:
            yield from (architecture(gpu.compute_capability) for gpu in gpus_here().found)
        else:
            yield architecture(target.compute_capability)


def _counted(plans: Sequence[Published], builders: Builders) -> dict[tuple[str, ...], Published]:
    """The plan of each place that counts: that of the installed release, else that of the highest version."""
    found: dict[tuple[str, ...], Published] = {}
    for plan in sorted(plans, key=lambda plan: _order(plan.version)):
        before = found.get(plan.place)
        if before is None or before.version != builders.version(plan.backend, plan.architecture):
            found[plan.place] = plan
    return found


def _workers(plans: Sequence[Published], builders: Builders) -> dict[str, dict[str, str]]:
    """Queue -> backend -> version, where workers build what is published, and not this machine."""
    found: dict[str, dict[str, str]] = defaultdict(dict)
    for plan in plans:
        version = builders.version(plan.backend, plan.architecture)
        if version is not None and version != backends.installed_version(plan.backend):
            found[plan.architecture][plan.backend] = version
    return dict(found)


def _standing(built_with: str, here: str | None) -> str:
    if here is None:
        return UNKNOWN
    if built_with == here:
        return CURRENT
    return AHEAD if backends.is_before(here, built_with) else BEHIND


def _compare(one: str, other: str) -> int:
    return backends.is_before(other, one) - backends.is_before(one, other)


_order = cmp_to_key(_compare)


def _by_release(entries: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(entries, key=lambda entry: (entry["backend"], _order(entry["backend_version"])))


def _entry(plan: Published, standing: str) -> dict[str, Any]:
    return {
        "name": plan.name,
        "key": plan.key,
        "model": plan.model,
        "flow": plan.title,
        "architecture": plan.architecture,
        "backend": plan.backend,
        "backend_version": plan.version,
        "release": plan.release,
        "standing": standing,
    }


def _moved(store: Store, plan: Published) -> dict[str, str | None]:
    """When the name came to mean what it means, and who saw to it; nobody noted it of what came from a remote."""
    try:
        moves = publications.history(store, plan.name).moves
    except StoreError:  # `verify` reports it; the name means what it means
        moves = ()
    last = moves[-1] if moves and moves[-1].key == plan.key else None
    return {"published": (last and last.at) or None, "by": (last and last.by) or None}


def _packages(plans: Sequence[Published], config: Config) -> dict[str, Package]:
    """The backends that plans or the config name, or that are installed, and ONNX Runtime."""
    named = {config.backend.name, *(plan.backend for plan in plans)}
    wanted = [name for name in backends.BACKENDS if name in named or backends.installed_version(name)]
    asked = {name: _distribution(name) for name in wanted} | {ONNXRUNTIME: ONNXRUNTIME}
    answers = package_index.ask(list(asked.values()))
    found = {name: _backend(name, answers[asked[name]]) for name in wanted}
    answer = answers[ONNXRUNTIME]
    newest = answer.versions[0] if answer.versions else None
    return found | {ONNXRUNTIME: Package(installed.version(ONNXRUNTIME), newest, newest, answer.reason)}


def _distribution(backend: str) -> str:
    """What the index calls the backend: the package that gives the installed version."""
    names = backends.find(backend).distributions
    return next((name for name in names if installed.version(name)), names[0]).replace("_", "-")


def _backend(name: str, answer: Answer) -> Package:
    taken = [version for version in answer.versions if backends.why_not_supported(name, version) is None]
    reason = answer.reason
    if answer.versions and not taken:
        reason = f"of {answer.versions[0]} and older trtforge takes none"
    newest = answer.versions[0] if answer.versions else None
    return Package(backends.installed_version(name), taken[0] if taken else None, newest, reason)


def _watched(
    plan: Published, standing: str, package: Package, builders: Builders, lineage: Lineage | None
) -> dict[str, Any]:
    """The document of a plan; without a lineage another plan of its place counts, and no rebuild is due for it."""
    records = [] if lineage is None else list(lineage.records(plan.key, plan.model))
    reruns = made_with.reruns(records, builders)
    return {
        **_entry(plan, standing),
        "installed": builders.version(plan.backend, plan.architecture),
        "available": package.available,
        "tools": {name: list(versions) for name, versions in sorted(made_with.tools(records).items())},
        "rebuild_due": lineage is not None and (bool(reruns) or not records),
        "reruns": [{**vars(each), "built_with": list(each.built_with)} for each in reruns],
    }
