"""What this machine can build and run, and what is missing: the verb `doctor`."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from rich.table import Table

from artifacts.errors import StoreError
from artifacts.store import Store
from conf.compose import compose, options
from conf.schema import LOCAL, Target
from pipelines.document import bare_table, console, in_bytes
from pipelines.targets import gpus_here
from stages import backends, machine
from stages.gpus import Gpus, capabilities, capability

PACKAGES = ("onnx", "onnxruntime", "numpy", "polygraphy", "cuda-python", "hydra-core", "prefect", "torch")
"""What the stages and the runner use; torch only for models that are torch modules."""


def examine(store: Store, overrides: Sequence[str], config_dirs: Sequence[Path]) -> dict[str, Any]:
    """Looks at the machine, the packages, the GPUs, the backends, every target and the store."""
    targets = _targets(overrides, config_dirs)
    here = gpus_here()
    return {
        "trtforge": metadata.version("trtforge"),
        "python": platform.python_version(),
        "platform": machine.platform_name(),
        "cpus": os.cpu_count(),
        "packages": {name: _version(name) for name in PACKAGES},
        "gpus": [asdict(gpu) for gpu in here.found],
        "gpus_reason": here.reason or None,
        "backends": {name: _backend(name) for name in backends.BACKENDS},
        "targets": [_target(target, name, here) for target in targets for name in backends.BACKENDS],
        "prefect_api_url": os.environ.get("PREFECT_API_URL"),
        "store": _store(store),
    }


def print_examination(found: dict[str, Any]) -> None:
    """Prints what `examine` found."""
    screen = console()

    def say(text: str) -> None:
        screen.print(text, markup=False, highlight=False, soft_wrap=True)

    say(f"trtforge {found['trtforge']}, Python {found['python']}, {found['platform']}, {found['cpus']} CPUs")
    say("packages: " + ", ".join(f"{name} {version or '(missing)'}" for name, version in found["packages"].items()))
    say("GPUs:" + ("" if found["gpus"] else f" none: {found['gpus_reason']}"))
    for gpu in found["gpus"]:
        say(f"  {gpu['name']} ({gpu['compute_capability']}), {in_bytes(gpu['memory_bytes'])}, {gpu['uuid']}")
    for name, backend in found["backends"].items():
        problem = f": {backend['problem']}" if backend["problem"] else ""
        say(f"backend {name}: {backend['version'] or 'missing'}{problem}")
    say(f"Prefect: {found['prefect_api_url'] or 'no PREFECT_API_URL: a temporary server for each build'}")
    store = found["store"]
    say(f"store: {store['root']}, {store['records']} records, {in_bytes(store['free_bytes'])} free"
        f"{': ' + store['problem'] if store['problem'] else ''}")  # fmt: skip
    screen.print(_table(found["targets"]))


def _table(targets: list[dict[str, Any]]) -> Table:
    built_by = (f"builds: {name}" for name in backends.BACKENDS)
    table = bare_table("target", "GPU", "capability", "memory", *built_by, "runs")
    names = dict.fromkeys(entry["target"] for entry in targets)
    for name in names:
        own = [entry for entry in targets if entry["target"] == name]
        builds = ["yes" if entry["can_build"] else "no" for entry in own]
        runs = "yes" if any(entry["can_run"] for entry in own) else "no"
        told = (own[0]["compute_capability"].replace(",", ", "), own[0]["memory"] or "-")
        table.add_row(name, own[0]["gpu"], *told, *builds, runs)
    return table


def _targets(overrides: Sequence[str], config_dirs: Sequence[Path]) -> list[Target]:
    """Every target that there is, by capability; those that ask the machine are told under GPUs."""
    search = [override for override in overrides if override.startswith("hydra.searchpath=")]
    names = options("targets", search, config_dirs)
    found = compose([*search, f"targets=[{','.join(names)}]"], config_dirs).targets.values()
    named = [target for target in found if LOCAL not in (target.gpu, target.compute_capability)]
    return sorted(named, key=lambda target: [capability(each) for each in capabilities(target.compute_capability)])


def _target(target: Target, backend: str, here: Gpus) -> dict[str, Any]:
    missing = None if backends.installed_version(backend) else f"{backend} is not installed"
    why_not_build = missing or backends.why_not_build(backend, target.compute_capability, here)
    why_not_run = missing or backends.why_not_run(backend, target.compute_capability, here)
    return {
        "target": target.name,
        "gpu": target.gpu,
        "compute_capability": target.compute_capability,
        "memory": target.memory,
        "backend": backend,
        "can_build": why_not_build is None,
        "why_not_build": why_not_build,
        "can_run": why_not_run is None,
        "why_not_run": why_not_run,
    }


def _backend(name: str) -> dict[str, Any]:
    version = backends.installed_version(name)
    if version is None:
        return {"version": None, "problem": backends.find(name).install_hint}
    return {"version": version, "problem": backends.why_not_supported(name, version)}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _store(store: Store) -> dict[str, Any]:
    base = next(path for path in (store.root, *store.root.parents) if path.exists())
    disk = os.statvfs(base)
    problem = None
    if store.root.exists():
        try:
            with store.scratch():
                pass
        except StoreError as error:
            problem = error.what
    elif not os.access(base, os.W_OK):
        problem = f"{base} may not be written"
    return {
        "root": str(store.root),
        "records": sum(1 for _ in (store.root / "records").glob("*.json")),
        "free_bytes": disk.f_bavail * disk.f_frsize,
        "problem": problem,
    }
