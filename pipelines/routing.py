"""Which workers build the targets that this machine does not: found out before anything runs.

A target's queue is the one of its architecture. A worker counts when it has announced itself in the remote that both
share (`pipelines.announced`), and the Prefect server has heard of it lately. Any of a queue's workers may take a run,
so they must agree in all that the target's keys depend on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from artifacts.errors import RemoteError, StoreError
from artifacts.remote import Remote
from conf.errors import ConfigError
from conf.schema import Config, Routing, Runner
from pipelines import announced
from pipelines.announced import Announcement
from pipelines.deployments import CPU, GPU_QUEUES, POOL
from pipelines.errors import CannotBuildError
from pipelines.prefect_settings import name_server
from stages import STAGES, backends

if TYPE_CHECKING:
    from pipelines.targets import BuildTarget


def has_queues(config: Config) -> bool:
    """Whether there is a server that could have queues, and a runner that uses it.

    Raises:
        ConfigError: There is none, and `routing` asks for a queue.
    """
    if config.runner is Runner.prefect and name_server():
        return True
    if config.routing is Routing.queue:
        raise ConfigError(
            "routing=queue: queues are a Prefect server's, and "
            + ("runner=local uses none" if config.runner is Runner.local else "none is named"),
            "name it: PREFECT_API_URL=http://HOST:4200/api, or leave out routing",
        )
    return False


def queue_of(target: BuildTarget) -> str:
    """The work queue of a target's architecture; `cpu` for one plan for several."""
    return target.architecture if target.architecture in GPU_QUEUES else CPU


def by_workers(
    config: Config, targets: Sequence[BuildTarget], sent: Sequence[BuildTarget], refused: Mapping[str, str]
) -> list[BuildTarget]:
    """`targets`, those of `sent` as the workers have them that will build them.

    Args:
        config: The run's.
        targets: All of the run's targets.
        sent: Those that are for queues.
        refused: Why this machine cannot build some of them, by name.

    Raises:
        CannotBuildError: A queue has no worker that lives and fits, or no remote is shared with it; with the command
            that starts one.
        EngineError: The Prefect server does not answer.
    """
    if not config.store.remote:
        told = "; ".join(f"{target.name}{_because(refused.get(target.name))}" for target in sent)
        raise CannotBuildError(
            f"for the queue {', '.join(sorted({*map(queue_of, sent)}))}: {told}; and results come back through "
            "store.remote, which is not given",
            "name what both machines reach: TRTFORGE_REMOTE=s3://bucket/prefix here and for `trtforge worker` there",
        )
    alive, url = _alive()
    here = announced.tools_here(_tools(config))
    try:
        known, ended = announced.known(Remote(config.store.remote, config.store.remote_limit_s))
    except RemoteError as error:
        raise CannotBuildError(f"workers are found through the remote: {error.what}", error.next_step) from error
    except StoreError as error:
        raise ConfigError(error.what, error.next_step) from error
    made = {}
    for target in sent:
        on_queue = {name for name in alive - ended if announced.serves(name, queue_of(target))}
        workers = [each for each in known if each.worker in on_queue]
        if strangers := sorted(on_queue - {each.worker for each in workers}):
            fitting, reason = None, f"its worker {strangers[0]!r} shares no remote with us, and may take the run"
        else:
            fitting, reason = _agreed(target, workers, here)
        if fitting is None:
            raise CannotBuildError(
                f"target {target.name}{_because(refused.get(target.name))}; its queue {queue_of(target)}: {reason}",
                _start(target, url, config.store.remote),
            )
        made[target.name] = fitting
    return [made.get(target.name, target) for target in targets]


def _because(reason: str | None) -> str:
    return f" cannot be built here: {reason}" if reason else ""


def _start(target: BuildTarget, url: str, remote: str) -> str:
    """The command that starts a worker for a target's queue."""
    variables = f"PREFECT_API_URL={url} TRTFORGE_REMOTE={remote}"
    if not backends.find(target.backend).can_cross_build:
        return f"on a machine with {target.gpu} and {target.backend}: {variables} trtforge worker"
    return f"{variables} trtforge worker --queue {queue_of(target)}"


def _tools(config: Config) -> set[str]:
    """The tools of the steps that a worker would run."""
    stages = (STAGES[step.stage] for step in config.steps.values())
    return {tool for stage in stages if stage.per_target for tool in stage.tools}


def _alive() -> tuple[set[str], str]:
    """The names of the workers that the server has heard of lately, and its URL."""
    from pipelines.deploying import require_server, server, workers_of

    with server() as client:
        return workers_of(client, POOL), require_server()


def _agreed(
    target: BuildTarget, workers: Sequence[Announcement], tools: Mapping[str, str]
) -> tuple[BuildTarget | None, str]:
    """The target as the workers of its queue have it; or None, and why."""
    if not workers:
        return None, "no worker that lives has announced itself in the remote"
    made = [
        replace(target, here=each.gpus, backend_version=each.versions.get(target.backend, ""), worker=each)
        for each in workers
    ]
    for one in made:
        if reason := _why_not(one, tools):
            return None, f"its worker on {_host(one)} {reason}"
    for one in made[1:]:
        for fact in ("backend_version", "platform"):
            if one.facts[fact] != made[0].facts[fact]:
                return None, (
                    f"its workers differ, and either may take the run: {fact} is {made[0].facts[fact]} on "
                    f"{_host(made[0])} and {one.facts[fact]} on {_host(one)}"
                )
    return made[0], ""


def _host(target: BuildTarget) -> str:
    return target.worker.host if target.worker else ""


def _why_not(target: BuildTarget, tools: Mapping[str, str]) -> str | None:
    """Why the worker of a target cannot build it as it would be built here; None where it can."""
    worker, backend = target.worker, backends.find(target.backend)
    if worker is None:
        return None
    if not target.backend_version:
        return f"has no {target.backend}"
    if reason := backends.why_not_supported(target.backend, target.backend_version):
        return f"cannot: {reason}"
    if reason := backends.why_not_build(target.backend, target.compute_capability, worker.gpus):
        return f"cannot: {reason}"
    if worker.gpu and not backend.portable_across_capability and worker.gpu.name != target.gpu:
        return f"has {worker.gpu.name}, and the target is {target.gpu}"
    differing = others(tools, worker.tools)
    return f"has other versions than this machine, and keys hold them: {differing}" if differing else None


def others(wanted: Mapping[str, str], there: Mapping[str, str]) -> str:
    """`onnx 1.22.0, not 1.23.2`, for each tool that is there in another version than wanted; empty where none is."""
    return ", ".join(
        f"{tool} {there.get(tool, 'missing')}, not {version}"
        for tool, version in sorted(wanted.items())
        if there.get(tool) != version
    )
