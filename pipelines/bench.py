"""The verb `bench`: times the plans that a flow has built, and builds none.

A flow may have a step of the stage `bench`, which then runs with every build. Where it has none, one is added here, as
if the flow's YAML said so: it takes the plan that the flow makes last, and the ONNX that this was validated by.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

from conf.compose import compose
from conf.errors import ConfigError
from conf.schema import Config, Step
from pipelines import schedule
from pipelines.document import bare_table, console
from pipelines.execute import Outcome
from pipelines.graph import Node, makes_plan
from pipelines.reported import Reported
from pipelines.reporting import Reporter
from pipelines.session import Session, open_session
from stages import STAGES

STEP = "bench"


class Benchmarks(Reported):
    """What was timed, target by target."""

    @property
    def ok(self) -> bool:
        """Whether all of them have an answer."""
        return all(outcome.done for outcome in self.outcomes)

    def document(self) -> dict[str, Any]:
        """What `bench --json` prints."""
        return {
            "flow": self.session.config.flow,
            "ok": self.ok,
            "benchmarks": [self._described(outcome) for outcome in self.outcomes],
        }

    def _described(self, outcome: Outcome) -> dict[str, Any]:
        record, store = outcome.record, self.session.store
        return {
            **self.described(outcome),
            "host": record.provenance.get("host") if record else None,
            "finished": record.provenance.get("finished") if record else None,
            "outputs": {
                name: {"digest": blob.digest, "bytes": blob.bytes, "path": str(store.path(blob))}
                for name, blob in (record.outputs if record else {}).items()
            },
        }


def bench(
    overrides: Sequence[str], config_dirs: Sequence[Path], again: bool, reporter: Reporter, stop: Event
) -> Benchmarks:
    """Times the plans of the flow that are in the store.

    Args:
        overrides: Hydra overrides.
        config_dirs: The user's own config directories.
        again: Whether what has been measured before is measured anew.
        reporter: Told how it goes.
        stop: Set when the user wants to stop.

    Raises:
        ConfigError: The flow makes no plan, or one is not built yet.
        InterruptedBuildError: `stop` was set.
    """
    session = open_session(
        with_step(overrides, config_dirs), config_dirs, lambda phase, done: None, stop, reporter.note
    )
    nodes = [node for node in session.nodes if node.stage.name == STEP]
    if again:
        session.workshop = replace(session.workshop, again={node.id for node in nodes})
    _require_plans(session, nodes, overrides)
    with session.holding():
        for node in nodes:  # one after the other: side by side they would time each other
            schedule.work(session, node, reporter)
    return Benchmarks(session, nodes)


def with_step(overrides: Sequence[str], config_dirs: Sequence[Path]) -> list[str]:
    """The overrides, and before them what adds a step that times the flow's plan, unless it has one.

    Raises:
        ConfigError: The flow makes no plan.
    """
    stage = f"++steps.{STEP}.stage={STEP}"
    config = compose([stage, *overrides], config_dirs)
    others = {name: step for name, step in config.steps.items() if name != STEP}
    if any(step.stage == STEP for step in others.values()):
        return list(overrides)
    if config.steps[STEP].inputs:
        return [stage, *overrides]
    onnx, plan = _wired(config, others)
    return [stage, f"++steps.{STEP}.inputs={{onnx: {onnx}, plan: {plan}}}", *overrides]


def _wired(config: Config, steps: Mapping[str, Step]) -> tuple[str, str]:
    """The ONNX file and the plan to time, as inputs name them."""
    makers = {name: step for name, step in steps.items() if makes_plan(STAGES[step.stage])}
    taken = {text.partition(".")[0] for step in makers.values() for text in step.inputs.values()}
    last = [name for name in makers if name not in taken]
    if not last:
        raise ConfigError(f"flow {config.flow} makes no plan that could be timed", "choose one that does: flow=fp16")
    judged = [step.inputs["onnx"] for step in steps.values() if step.stage == "validate" and "onnx" in step.inputs]
    built = [step.inputs["onnx"] for step in makers.values() if "onnx" in step.inputs]
    return [*judged, *built][0], f"{last[0]}.plan"


def _require_plans(session: Session, nodes: Sequence[Node], overrides: Sequence[str]) -> None:
    before = {name for node in nodes for name in node.before}
    missing = [name for name in sorted(before) if not session.outcomes[name].done]
    if missing:
        told = "; ".join(f"{name} is {session.outcomes[name].state}" for name in missing)
        raise ConfigError(
            f"bench times what is built, and builds nothing: {told}",
            f"build it first: {' '.join(['trtforge build', *_without_step(overrides)])}",
        )


def _without_step(overrides: Sequence[str]) -> list[str]:
    """What a build takes, whose flow need not have the step."""
    return [line for line in overrides if not line.lstrip("+").startswith(f"steps.{STEP}.")]


_COLUMNS = ("point", "samples", "launch", "inputs", "gpu p50", "p90", "p99", "host p50", "p99", "inf/s", "samples/s")
_TEXTS = {"point", "launch", "inputs"}


def print_benchmarks(found: Benchmarks) -> None:
    """Prints a table for each target, headed by what ran where."""
    from rich.text import Text

    screen = console()
    for outcome in found.outcomes:
        if outcome.record is None:
            continue
        report = found.report(outcome)
        for line in _heading(outcome, report):
            screen.print(Text(line))
        if not report["points"]:
            continue
        table = bare_table(*_COLUMNS, right=set(_COLUMNS) - _TEXTS)
        for point in report["points"]:
            for run in point["runs"]:
                table.add_row(*map(Text, _row(point, run)))
        screen.print(table)
        for line in _remarks(report):
            screen.print(Text(line))


def _heading(outcome: Outcome, report: Mapping[str, Any]) -> list[str]:
    summary, measured = report["summary"], report["measured"]
    name = outcome.node.target.name if outcome.node.target else outcome.node.step
    if summary["engine_executed"]:
        lines = [f"{name}: {summary['runtime']} on {summary['gpu']}; {_clocks(summary['clocks'])}; times in ms"]
    elif summary["runtime"] is None:
        lines = [f"{name}: the plan was not executed: {summary['reason']}"]
    else:
        threads = measured["how"]["threads"]
        lines = [
            f"{name}: the plan was not executed: {summary['reason']}",
            f"{name}: {summary['runtime']} instead, {threads} threads, {summary['cpu']}; times in ms, of the CPU",
        ]
    if outcome.state == "cached" and outcome.record:
        when = outcome.record.provenance
        lines.append(f"{name}: measured {when.get('finished')} on {when.get('host')}; --again measures anew")
    return lines


def _clocks(clocks: Mapping[str, Any]) -> str:
    if clocks["sm_mhz"] is None:
        return f"clocks not read ({clocks['unread']})"
    low, high = clocks["sm_mhz"]["min"], clocks["sm_mhz"]["max"]
    held = f", held down by {', '.join(clocks['held_down_by'])}" if clocks["held_down_by"] else ""
    return f"SM clock {low if low == high else f'{low} to {high}'} MHz of {clocks['highest_sm_mhz']}{held}"


def _row(point: Mapping[str, Any], run: Mapping[str, Any]) -> list[str]:
    best = max(run["throughput"], key=lambda rate: float(rate["inferences_per_s"]))
    streams = f" ({best['streams']} streams)" if best["streams"] > 1 else ""
    samples = "-" if best["samples_per_s"] is None else f"{best['samples_per_s']:,.0f}"
    return [
        f"{point['profile']}.{point['point']}" if point["profile"] else point["point"],
        "-" if point["samples"] is None else str(point["samples"]),
        run["launch"] + " *" * run["enqueue_bound"],
        run["inputs"],
        *(_ms(run.get("gpu_ms"), percent) for percent in ("p50", "p90", "p99")),
        *(_ms(run["host_ms"], percent) for percent in ("p50", "p99")),
        f"{best['inferences_per_s']:,.0f}{streams}",
        samples,
    ]


def _ms(told: Mapping[str, float] | None, percent: str) -> str:
    return "-" if told is None else f"{told[percent]:.3f}"


def _remarks(report: Mapping[str, Any]) -> list[str]:
    runs = [run for point in report["points"] for run in point["runs"]]
    reasons = {point["cuda_graph"]["reason"] for point in report["points"]} if report["summary"]["gpu"] else set()
    bound = ["* giving it to the GPU takes most of its time there: a graph, or a larger batch, may be faster"]
    return [
        *(bound if any(run["enqueue_bound"] for run in runs) else []),
        *(f"no CUDA graph: {reason}" for reason in sorted(filter(None, reasons))),
    ]
