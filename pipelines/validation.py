"""The verb `validate`: compares what a flow has built with its references, and builds nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

from conf.compose import compose
from conf.errors import ConfigError
from conf.quoting import quoted
from pipelines import data, schedule
from pipelines.document import bare_table, console
from pipelines.errors import Exit
from pipelines.execute import Outcome
from pipelines.graph import VALIDATE, Node
from pipelines.reported import Reported
from pipelines.reporting import Reporter
from pipelines.session import Session, open_session

HEADER = ("target", "what", "output", "max abs", "mean abs", "max rel", "mean rel", "cosine", "SQNR dB", "top-1")
_TEXTS = 3
"""So many of the columns, the first, are no numbers."""

_NUMBERS = ("max_abs_error", "mean_abs_error", "max_relative_error", "mean_relative_error")


class Validations(Reported):
    """What was compared, target by target."""

    @property
    def exit(self) -> Exit:
        """How the run ended, as far as these steps go."""
        if not all(outcome.done for outcome in self.outcomes):
            return Exit.STEP_FAILED
        return Exit.GATE_SAID_NO if any(map(self.session.refusals, self.outcomes)) else Exit.DONE

    def document(self) -> dict[str, Any]:
        """What `validate --json` prints."""
        return {
            "flow": self.session.config.flow,
            "ok": self.exit is Exit.DONE,
            "validations": [self._described(outcome) for outcome in self.outcomes],
        }

    def _described(self, outcome: Outcome) -> dict[str, Any]:
        report = outcome.record.outputs["report"] if outcome.record else None
        return {
            **self.described(outcome),
            "refusals": self.session.refusals(outcome),
            "path": str(self.session.store.path(report)) if report else None,
        }


def validate(
    overrides: Sequence[str], config_dirs: Sequence[Path], against: str | None, reporter: Reporter, stop: Event
) -> Validations:
    """Runs the steps of the stage `validate` on what the flow's other steps have in the store.

    Args:
        overrides: Hydra overrides.
        config_dirs: The user's own config directories.
        against: What to compare with instead of the flow's references: `published`, a plan by its name or key, an ONNX
            file, or golden outputs (`.npz`, `.npy`, or a directory of them).
        reporter: Told how it goes.
        stop: Set when the user wants to stop.

    Raises:
        ConfigError: The flow validates nothing, or something is not built yet.
        InterruptedBuildError: `stop` was set.
    """
    more = _compared_with(against, overrides, config_dirs) if against is not None else []
    session = open_session([*overrides, *more], config_dirs, lambda phase, done: None, stop, reporter.note)
    nodes = [node for node in session.nodes if node.stage.name == VALIDATE]
    if not nodes:
        raise ConfigError(
            f"flow {session.config.flow} has no step of stage {VALIDATE}", "choose one that has: flow=fp16"
        )
    with session.holding():
        _require_built(session, nodes, overrides)
        for node in nodes:
            schedule.work(session, node, reporter)
    return Validations(session, nodes)


def _compared_with(against: str, overrides: Sequence[str], config_dirs: Sequence[Path]) -> list[str]:
    steps = [name for name, step in compose(overrides, config_dirs).steps.items() if step.stage == VALIDATE]
    if Path(against).is_dir() or against.endswith(data.ARRAYS):
        word, given = "golden", [f"model.holdout.golden={quoted(against)}"]
    else:
        word, given = "against", [f"steps.{name}.config.against={quoted(against)}" for name in steps]
    return [*given, *(f"steps.{name}.config.references=[{word}]" for name in steps)]


def _require_built(session: Session, nodes: Sequence[Node], overrides: Sequence[str]) -> None:
    missing = [name for node in nodes for name in sorted(node.before) if not session.outcomes[name].done]
    if missing:
        command = " ".join(["trtforge build", *overrides])
        raise ConfigError(f"{', '.join(dict.fromkeys(missing))}: not built yet", f"build first: {command}")


def print_validations(found: Validations) -> None:
    """Prints the numbers of each output as a table, and below it what is judged by labels."""
    from rich.text import Text

    done = [(outcome, found.report(outcome)) for outcome in found.outcomes if outcome.done]
    table = bare_table(*HEADER, right=HEADER[_TEXTS:])
    for outcome, report in done:
        for row in _rows(_name(outcome), report):
            table.add_row(*map(Text, row))
    screen = console()
    screen.print(table)
    for outcome, report in done:
        for line in _judged(_name(outcome), report["summary"]):
            screen.print(line, markup=False, highlight=False, soft_wrap=True)


def _name(outcome: Outcome) -> str:
    return outcome.node.target.name if outcome.node.target else "-"


def _rows(target: str, report: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row for each output of the candidate and the engine, against each reference."""
    first = report["summary"]["reference"]
    for reference, described in report["references"].items():
        compared = report if reference == first else described
        for what in ("candidate", "engine"):
            for output, numbers in (compared.get(what) or {"outputs": {}})["outputs"].items():
                yield (target, f"{what} / {reference}", output, *_numbers(numbers))


def _numbers(numbers: Mapping[str, Any]) -> tuple[str, ...]:
    sqnr, top1 = numbers["sqnr_db"], numbers["top1_agreement"]
    return (
        *(f"{numbers[name]:.3g}" for name in _NUMBERS),
        f"{numbers['cosine']:.6f}",
        "-" if sqnr is None else f"{sqnr:.1f}",
        "-" if top1 is None else f"{top1:.2%}",
    )


def _judged(target: str, summary: Mapping[str, Any]) -> Iterator[str]:
    for what, numbers in (("candidate", summary), ("engine", summary["engine"])):
        if numbers and numbers["accuracy"] is not None:
            drop = _with_interval(numbers["accuracy_drop"], numbers["accuracy_drop_interval"], ".2%")
            yield (
                f"{target}: accuracy of the {what} {numbers['accuracy']:.2%}, of the reference "
                f"{numbers['accuracy_reference']:.2%}: drop {drop}"
            )
        for name, judged in ((numbers or {}).get("metric") or {}).items():
            candidate = _with_interval(judged["candidate"], judged["candidate_interval"])
            drop = _with_interval(judged["drop"], judged["drop_interval"])
            yield f"{target}: {name} of the {what} {candidate}, of the reference {judged['reference']:.6g}: drop {drop}"
    if not summary["engine_executed"]:
        yield f"{target}: the plan was not executed: {summary['reason']}"


def _with_interval(value: float, interval: Sequence[float] | None, how: str = ".6g") -> str:
    return f"{value:{how}}" if interval is None else f"{value:{how}} ({interval[0]:{how}} to {interval[1]:{how}})"
