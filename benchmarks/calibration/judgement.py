"""What must hold: each promise is a line with the figure, what is allowed, and whether it holds.

`Run` is what one tool took and made of one model with so many samples; `claims` says what follows from all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from statistics import fmean, stdev
from typing import Any

MEMORY_OF_MODELOPT = {"rec": 1 / 4}
"""Of our peak over modelopt's at the most samples; 1/2 for the others."""

MEMORY_OF_ENTROPY, MEMORY_GROWTH, CPU_OF_MODELOPT = 1 / 10, 1.1, 1 / 2
MEMORY_TO_SAVE = 800 * 2**20
"""Python, numpy and onnxruntime alone hold 80 MB: a tenth of less than this is not to be had, as on the digits."""

DIGITS_DROP, SQNR_SLACK_DB = 0.003, 0.5


@dataclass(frozen=True)
class Made:
    """One quantized model.

    Attributes:
        peak: Bytes of resident memory until it was there.
        cpu_s: CPU seconds that it takes.
        sqnr_db: On held-out data; None where it was not scored.
        metrics: The model's own, a number for each sample.
        kept: The algorithm that it was made with.
    """

    peak: int
    cpu_s: float
    sqnr_db: float | None = None
    metrics: Mapping[str, Sequence[float]] = field(default_factory=dict)
    kept: str = ""


@dataclass(frozen=True)
class Run:
    """What became of one tool, model and number of samples.

    Attributes:
        model: Its name in `models.SUBJECTS`.
        samples: How many.
        tool: `ours`, `modelopt max`, …
        made: By algorithm; empty where it failed.
        failed: Why.
        peak: Bytes it had taken when it failed.
    """

    model: str
    samples: int
    tool: str
    made: Mapping[str, Made] = field(default_factory=dict)
    failed: str | None = None
    peak: int = 0

    @property
    def most(self) -> int:
        """The peak of the process."""
        return max((each.peak for each in self.made.values()), default=self.peak)


@dataclass(frozen=True)
class Claim:
    """A promise, the figure, and whether it holds."""

    what: str
    figure: str
    allowed: str
    holds: bool


def claims(
    runs: Sequence[Run], float32: Mapping[str, Mapping[str, Sequence[float]]], plans: Mapping[str, Mapping[str, Any]]
) -> list[Claim]:
    """All that can be judged by what was run.

    Args:
        runs: What was run.
        float32: The metrics of the float32 models.
        plans: By model and capability: what its plan reads, or why there is none.
    """
    found: list[Claim] = []
    for model in dict.fromkeys(run.model for run in runs):
        of_model = [run for run in runs if run.model == model]
        found += [
            *_memory(model, of_model),
            *_cpu(model, of_model),
            *_accuracy(model, of_model, float32.get(model, {})),
        ]
        found += [_plan(model, capability, reads) for capability, reads in plans.get(model, {}).items()]
    return found


def _memory(model: str, runs: Sequence[Run]) -> Iterator[Claim]:
    ours = {run.samples: run.most for run in runs if run.tool == "ours" and run.made}
    if not ours:
        return
    least, most = min(ours), max(ours)
    if least < most:
        yield _ratio(f"{model}: peak at {most} over {least} samples", ours[most] / ours[least], MEMORY_GROWTH)
    for run in runs:
        if run.samples != most:
            continue
        if run.tool.startswith("modelopt") and run.made:
            allowed = MEMORY_OF_MODELOPT.get(model, 1 / 2)
            yield _ratio(f"{model}: peak over {run.tool}'s at {most}", ours[most] / run.most, allowed)
        if (
            run.tool == "onnxruntime entropy"
            and run.most >= MEMORY_TO_SAVE
            and not (run.failed or "").startswith("exit code")
        ):
            what = f"{model}: peak over {run.tool}'s at {most}"
            yield _ratio(what, ours[most] / run.most, MEMORY_OF_ENTROPY, at_most=run.failed is not None)


def _cpu(model: str, runs: Sequence[Run]) -> Iterator[Claim]:
    ours = {run.samples: run.made for run in runs if run.tool == "ours"}
    for run in runs:
        kind, _, algorithm = run.tool.partition(" ")
        mine = ours.get(run.samples, {}).get(algorithm)
        if kind == "modelopt" and run.made and mine:
            what = f"{model}: CPU seconds over {run.tool}'s at {run.samples}"
            yield _ratio(what, mine.cpu_s / run.made[algorithm].cpu_s, CPU_OF_MODELOPT)


def _accuracy(model: str, runs: Sequence[Run], float32: Mapping[str, Sequence[float]]) -> Iterator[Claim]:
    scored = [(run, each) for run in runs for each in run.made.values() if each.sqnr_db is not None]
    mine = [run.made["auto"] for run, _ in scored if run.tool == "ours" and "auto" in run.made]
    if not mine:
        return
    ours = mine[0]
    if model == "digits" and "accuracy" in float32:
        drop = fmean(float32["accuracy"]) - fmean(ours.metrics["accuracy"])
        what = f"{model}: accuracy below float32's"
        yield Claim(what, f"{100 * drop:.2f} points", f"{100 * DIGITS_DROP:.1f}", drop <= DIGITS_DROP)
        return
    others = [(run.tool, each) for run, each in scored if run.tool != "ours"]
    if not others:
        return
    tool, best = max(others, key=lambda each: each[1].sqnr_db or 0.0)
    assert ours.sqnr_db is not None
    assert best.sqnr_db is not None
    behind = best.sqnr_db - ours.sqnr_db
    what = f"{model}: SQNR ({ours.sqnr_db:.2f} dB, {ours.kept}) below the best other's ({tool}, {best.sqnr_db:.2f} dB)"
    yield Claim(what, f"{behind:.2f} dB", f"{SQNR_SLACK_DB} dB", behind <= SQNR_SLACK_DB)
    for metric, values in ours.metrics.items():
        tool, best = max(others, key=lambda each: fmean(each[1].metrics[metric]))
        behind, interval = below(best.metrics[metric], values)
        mean, other = fmean(values), fmean(best.metrics[metric])
        what = f"{model}: {metric} ({mean:.4f}) below the best other's ({tool}, {other:.4f})"
        yield Claim(what, f"{behind:.4f}", f"{interval:.4f}", behind <= interval)


def below(theirs: Sequence[float], ours: Sequence[float]) -> tuple[float, float]:
    """By how much theirs is better in the mean, and half the 95 % confidence interval of theirs."""
    return fmean(theirs) - fmean(ours), 1.96 * stdev(theirs) / sqrt(len(theirs))


def _plan(model: str, capability: str, reads: Any) -> Claim:
    """No more may read float than the model leaves in float; a plan merges products that read the same."""
    what = f"{model}: convolutions and matrix products of the plan for {capability} that read no int8"
    if "failed" in reads:
        return Claim(what, reads["failed"], "none that carry Q/DQ", False)
    int8 = sum(types.get("int8", 0) for types in reads["reads"].values())
    others = sum(sum(types.values()) for types in reads["reads"].values()) - int8
    return Claim(what, f"{others} ({reads['reads']})", f"{reads['in_float']}", others <= reads["in_float"] and int8 > 0)


def _ratio(what: str, figure: float, allowed: float, at_most: bool = False) -> Claim:
    """Args: at_most: The figure is an upper bound: the other was killed before it had all that it wanted."""
    return Claim(what, f"{'< ' if at_most else ''}{figure:.3f}", f"{allowed:.3f}", figure <= allowed)
