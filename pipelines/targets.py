"""The targets of a run: what each is, which backend builds it, and whether anybody here can."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from conf.errors import ConfigError, suggest
from conf.groups import PACKAGE, package_directory
from conf.schema import LOCAL, Config, Routing, Target
from pipelines.errors import CannotBuildError
from stages import STAGES, backends, machine
from stages.gpus import Gpu, Gpus, architecture, capabilities, why_no_precision
from stages.gpus import gpus as ask_gpus
from stages.sizes import size_bytes

if TYPE_CHECKING:
    from pipelines.announced import Announcement

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")
"""There while NVIDIA's kernel driver is loaded; looking costs microseconds, importing cuda-python 100 ms."""


_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class BuildTarget:
    """A target as the steps see it.

    Attributes:
        name: What `targets=[…]` called it.
        gpu: The GPU by the driver's name.
        compute_capability: Such as "8.9"; "8.0,8.6,8.9" where one plan is for several.
        backend: `tensorrt_rtx` or `tensorrt`.
        backend_version: The installed version, whole.
        here: The GPUs of the machine that builds it.
        memory_bytes: What the GPU has; None where nobody says.
        worker: Who builds it, where that is not this machine.
    """

    name: str
    gpu: str
    compute_capability: str
    backend: str
    backend_version: str
    here: Gpus
    memory_bytes: int | None = None
    worker: Announcement | None = None

    @cached_property
    def facts(self) -> Mapping[str, Any]:
        """The target's facts, by the names of `stages.stage.TARGET_FACTS`."""
        portable = backends.find(self.backend).portable_across_capability
        return {
            "backend": self.backend,
            "backend_version": self.backend_version,
            "compute_capability": self.compute_capability,
            "gpu": None if portable else self.gpu,
            "platform": self.worker.platform if self.worker else machine.platform_name(),
            "gpu_here": backends.why_not_run(self.backend, self.compute_capability, self.here) is None,
            "machine": machine.described(self.gpu, self.here.of(self.compute_capability)) | self._workers_cpu,
        }

    @property
    def _workers_cpu(self) -> dict[str, Any]:
        return {"cpu": self.worker.cpu, "cores": self.worker.cores} if self.worker else {}

    @property
    def architecture(self) -> str:
        """The capability as NVIDIA writes it: `sm_89`; `sm_80_86_89` where one plan is for several."""
        return architecture(self.compute_capability)

    @property
    def release(self) -> str:
        """Backend and version in short: `rtx-1.7.1.116`."""
        return f"{backends.find(self.backend).short}-{self.backend_version}"


def gpus_here() -> Gpus:
    """The GPUs of this machine; CUDA is not even imported where no driver is loaded."""
    wsl = Path("/dev/dxg")  # the driver of Windows, seen from WSL, has no entry in /proc
    if not NVIDIA_DRIVER.exists() and not wsl.exists():
        return Gpus((), "no NVIDIA driver is loaded")
    return ask_gpus()


def resolve(config: Config, note: Callable[[str], None] = lambda text: None) -> list[BuildTarget]:
    """The targets of `config`, each of which can be built on this machine, or by the workers of its queue.

    Args:
        config: The run's.
        note: Told which GPU was taken, where a target asks a machine that has several kinds.

    Raises:
        ConfigError: A target names no backend that there is; or there are no queues, and `routing` asks for one.
        CannotBuildError: No one can build a target; all such are named.
        EngineError: A target is for a queue, and the Prefect server does not answer.
    """
    if not config.targets:
        raise ConfigError("no target is given", "say which: targets=[l4]")
    for key, target in config.targets.items():
        if target.name != key or not _NAME.fullmatch(key):
            raise ConfigError(
                f"targets.{key}.name is {target.name!r}; it must be {key!r}, of letters, digits and ._-",
                f"make file name, `# @package targets.{key}` and `name: {key}` agree",
            )
    here = gpus_here()
    targets = [_resolve(target, config.backend.name, here, note) for target in config.targets.values()]
    refused = {made.name: reason for made in targets if (reason := _why_not(made))}
    if config.routing is Routing.queue or (refused and config.routing is Routing.auto):
        from pipelines import routing  # a build that needs no queue reads none of it

        if routing.has_queues(config):
            sent = targets if config.routing is Routing.queue else [made for made in targets if made.name in refused]
            return routing.by_workers(config, targets, sent, refused)
    if refused:
        raise CannotBuildError(f"no one here can build {_grouped(refused)}", _way_out(targets, refused))
    return targets


def _grouped(refused: Mapping[str, str]) -> str:
    """Names and reason, for each reason: `a10, l4: why not`."""
    names: dict[str, list[str]] = {}
    for name, reason in refused.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{', '.join(named)}: {reason}" for reason, named in names.items())


def architectures(config: Config) -> dict[str, str]:
    """The architecture of each target of `config`, by name; whether anybody can build it is another question.

    Raises:
        ConfigError: A target names no backend that there is.
        CannotBuildError: A target asks this machine for its GPU, and there is none.
    """
    here = gpus_here()
    targets = config.targets.values()
    return {target.name: _resolve(target, config.backend.name, here, _tell_nobody).architecture for target in targets}


def _tell_nobody(text: str) -> None:
    """Which GPU a target `local` takes is told when it is built."""


def refuse_precisions(config: Config, chosen: Sequence[BuildTarget]) -> None:
    """Refuses targets whose GPU lacks what a step makes: the builder would only find out after all steps before it.

    Raises:
        ConfigError: A target lacks a precision; names the step, and the targets that have it.
    """
    for name, step in config.steps.items():
        for precision in STAGES[step.stage].precisions(step.config):
            lacking = {
                target.name: reason
                for target in chosen
                if (reason := why_no_precision(precision, target.compute_capability))
            }
            if lacking:
                told = "; ".join(f"target {target}: {reason}" for target, reason in lacking.items())
                fine = [target.name for target in chosen if target.name not in lacking]
                rest = f"leave out what lacks it: targets=[{','.join(fine)}]; " if fine else ""
                raise ConfigError(
                    f"flow {config.flow}: step {name} asks for {precision}; {told}",
                    f"{rest}these have it: {', '.join(_with_precision(precision, chosen[0]))}",
                )


def refuse_fp32_products(config: Config, chosen: Sequence[BuildTarget], products: Sequence[str]) -> None:
    """Refuses targets for which the backend compiles no float32 matrix product, where a flow leaves some in float32.

    Args:
        config: The run's.
        chosen: Its targets.
        products: Those of the model, as its signature names them.

    Raises:
        ConfigError: There are such targets and products.
    """
    if not products or not all(STAGES[step.stage].keeps_fp32(step.config) for step in config.steps.values()):
        return
    lacking = {}
    for target in chosen:
        without = backends.find(target.backend).without_fp32_products
        own = [each for each in capabilities(target.compute_capability) if each in without]
        if own:
            lacking[target.name] = f"target {target.name}: {target.backend} multiplies no float32 matrices on {own[0]}"
    if lacking:
        fine = [target.name for target in chosen if target.name not in lacking]
        rest = f", or leave them out: targets=[{','.join(fine)}]" if fine else ""
        more = f" and {len(products) - 1} more" if len(products) > 1 else ""
        raise ConfigError(
            f"flow {config.flow}: {'; '.join(lacking.values())}, and the model does: {products[0]}{more}",
            f"multiply in float16: flow=fp16 or flow=int8_fp16{rest}",
        )


def refuse_without_refit(config: Config, chosen: Sequence[BuildTarget]) -> None:
    """Refuses targets whose plans cannot be refitted here, where a step is not to build them anew instead.

    Raises:
        CannotBuildError: There are such targets.
    """
    if not any(step.stage == "refit" and step.config.fallback == "fail" for step in config.steps.values()):
        return
    refused = {target.name: reason for target in chosen if (reason := _why_not_refitted(target))}
    if refused:
        told = "; ".join(f"target {name}: {reason}" for name, reason in refused.items())
        raise CannotBuildError(
            f"no plan can be refitted here: {told}",
            "run it on a machine with the target's GPU, or with refit.fallback=rebuild",
        )


def _why_not_refitted(target: BuildTarget) -> str | None:
    if reason := backends.why_not_refittable(target.backend, target.compute_capability, target.here):
        return reason
    return None if target.facts["gpu_here"] else backends.no_gpu(target.compute_capability)


def _with_precision(precision: str, like: BuildTarget) -> list[str]:
    """The shipped targets that have `precision` and that this machine can build with the backend of `like`, by name."""
    from yaml import safe_load  # type: ignore[import-untyped]

    shipped = [safe_load(path.read_text()) for path in sorted((Path(package_directory(PACKAGE)) / "targets").iterdir())]
    known = [target for target in shipped if target["compute_capability"] != LOCAL]
    return [
        target["name"]
        for target in known
        if not why_no_precision(precision, target["compute_capability"])
        and not backends.why_not_build(like.backend, target["compute_capability"], like.here)
    ]


def _resolve(target: Target, backend: str, here: Gpus, note: Callable[[str], None]) -> BuildTarget:
    backend = target.backend or backend
    if backend not in backends.BACKENDS:
        raise ConfigError(f"there is no backend {backend!r}", suggest(backend, backends.BACKENDS))
    gpu, compute_capability = target.gpu, target.compute_capability
    memory_bytes = None if target.memory is None else size_bytes(target.memory)
    if LOCAL in (gpu, compute_capability):
        own = _local(target, here, note)
        gpu, compute_capability, memory_bytes = own.name, own.compute_capability, own.memory_bytes
    version = backends.installed_version(backend) or ""
    return BuildTarget(target.name, gpu, compute_capability, backend, version, here, memory_bytes)


def _local(target: Target, here: Gpus, note: Callable[[str], None]) -> Gpu:
    """The first GPU here that is what `target` says of it."""
    if not here.found:
        raise CannotBuildError(
            f"target {target.name}: this machine has no GPU to ask: {here.reason}", "name a GPU: targets=[l4]"
        )
    fitting = here.found if target.compute_capability == LOCAL else here.of(target.compute_capability)
    fitting = tuple(gpu for gpu in fitting if target.gpu in (LOCAL, gpu.name))
    if not fitting:
        asked = target.compute_capability if target.gpu == LOCAL else f"{target.gpu} ({target.compute_capability})"
        raise CannotBuildError(f"target {target.name}: there is no {asked} here: {here}", "take one that is here")
    taken = fitting[0]
    others = dict.fromkeys(str(Gpus((gpu,))) for gpu in fitting if gpu.name != taken.name)
    if others:
        note(
            f"target {target.name}: {Gpus((taken,))} is taken, and {', '.join(others)} is here too: choose by "
            f"targets.{target.name}.compute_capability, or by UUID with CUDA_VISIBLE_DEVICES=GPU-…"
        )
    return taken


def _why_not(target: BuildTarget) -> str | None:
    if not target.backend_version:
        return f"{target.backend} is not installed ({backends.find(target.backend).install_hint})"
    return backends.why_not_supported(target.backend, target.backend_version) or backends.why_not_build(
        target.backend, target.compute_capability, target.here
    )


def _way_out(targets: Sequence[BuildTarget], refused: Mapping[str, str]) -> str:
    fine = [target.name for target in targets if target.name not in refused]
    if fine:
        return f"leave them out: targets=[{','.join(fine)}]; `trtforge doctor` says what this machine can build"
    return "`trtforge doctor` says what this machine can build; workers build the rest: docs/deployments.md"
