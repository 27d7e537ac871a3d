"""Every model that `validate` looks at against every reference, run by run: what is added up, and what is noted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import nonfinite
from stages.comparison import Comparison, Detail, NotFiniteError, check_finite
from stages.runtimes import Runtime
from stages.stage import JSON, Job, StageError
from stages.users_metric import Kept, UsersMetric

if TYPE_CHECKING:
    from stages.batches import Array, Batch

CANDIDATE, ENGINE, REFERENCE = "the candidate", "the engine", "the reference"


@dataclass(frozen=True)
class Feed:
    """One run: what is fed, and what is known of it.

    Attributes:
        batch: The inputs.
        labels: What stands beside them; None: nothing.
        done: The share of all samples that are done with it; None where nobody knows.
        edge: Which dim is at its end, of a run that a model may refuse; None: it must do it.
    """

    batch: Batch
    labels: Array | None = None
    done: float | None = None
    edge: str | None = None


@dataclass
class Outputs:
    """What the user's metric is given at the end: all outputs and labels, on disk until then.

    Attributes:
        metric: The user's metric.
        kept: The outputs of each model.
        labels: The labels beside them.
    """

    metric: UsersMetric
    kept: Mapping[str, Kept]
    labels: Kept

    @classmethod
    def of(cls, job: Job[Any], scratch: Path, models: Sequence[str]) -> Outputs | None:
        """None where the user has no metric."""
        fact = job.facts.get("metric")
        if not fact:
            return None
        metric = UsersMetric(fact["callable"], job.inputs["metric"], fact["direction"])
        return cls(metric, {who: Kept(scratch / who) for who in models}, Kept(scratch / "labels", single=True))


class Study:
    """Every model against every reference.

    Args:
        job: The run.
        given: The references by name; the first is the one that gates read.
        models: What is held against them.
        outputs: What to keep for the user's metric; None: nothing.
        top_k: For which k to count the agreement of the k largest values.
    """

    def __init__(
        self,
        job: Job[Any],
        given: Mapping[str, Runtime],
        models: Mapping[str, Runtime],
        outputs: Outputs | None,
        top_k: Sequence[int],
    ) -> None:
        self.references, self.models = given, models
        self.first = next(iter(given))
        self.extremes: dict[str, JSON] = {}
        self.skipped: list[JSON] = []
        self._job, self._outputs, self._top_k = job, outputs, top_k
        self._compared = {(reference, who): Comparison(who, top_k, Detail()) for reference in given for who in models}

    def of(self, reference: str, who: str) -> Comparison | None:
        """How far `who` is from `reference`; None where `who` was not run."""
        return self._compared.get((reference, who))

    def add(self, feed: Feed) -> None:
        """Runs everything on one feed.

        Raises:
            StageError: Something cannot be run or compared; of an edge that a reference refuses, only that is noted.
        """
        try:
            expected = {name: runtime.run(feed.batch) for name, runtime in self.references.items()}
        except StageError as error:
            if feed.edge is None:
                raise
            self.skipped.append({"inputs": feed.edge, "reason": error.what})
            return
        # With a metric of the user's own, labels are for that: what they mean it knows.
        labels = feed.labels if self._outputs is None else None
        got = {who: runtime.run(feed.batch) for who, runtime in self.models.items()}
        for (name, who), compared in self._compared.items():
            try:
                compared.add(expected[name], _narrowed(got[who], expected[name], name), labels)
            except NotFiniteError as error:
                raise self._located(error, name, feed) from error
        if self._outputs is not None and feed.labels is not None:
            self._outputs.labels.append(feed.labels)
            for who, values in {REFERENCE: expected[self.first], **got}.items():
                self._outputs.kept[who].append(values)

    def try_extremes(self, feeds: Iterator[tuple[str, Batch]]) -> None:
        """Notes how the models do on inputs that they may never meet: nothing fails for it, and no gate reads it."""
        runtime = self.references[self.first]
        for kind, batch in feeds:
            try:
                expected = runtime.run(batch)
                for name, values in expected.items():
                    check_finite(REFERENCE, name, values, 0)
            except StageError as error:
                self.extremes[kind] = {"compared": False, "reason": error.what}
                continue
            self.extremes[kind] = {
                "compared": True,
                **{key(who): self._extreme(who, expected, batch) for who in self.models},
            }

    def _extreme(self, who: str, expected: Mapping[str, Array], batch: Batch) -> dict[str, JSON]:
        compared = Comparison(who, self._top_k)
        try:
            compared.add(expected, self.models[who].run(batch), None)
        except NotFiniteError as error:
            return {"finite": False, "reason": self._located(error, self.first, Feed(batch)).what}
        summary = compared.summary()
        return {"finite": True, **{name: summary[name] for name in ("max_abs_error", "cosine", "sqnr_db")}}

    def _located(self, error: NotFiniteError, reference: str, feed: Feed) -> StageError:
        """`error` with the layer in which the values first appear, where the model is one that can be looked into."""
        what = error.what if feed.edge is None else f"{error.what} ({feed.edge})"
        if error.who == ENGINE:  # the candidate was looked at before it
            return StageError(f"{what}; the ONNX that it was built from is finite there", error.next_step)
        onnx = {CANDIDATE: "onnx", REFERENCE: "reference" if reference == "onnx" else None}[error.who]
        if onnx is None:
            return StageError(what, error.next_step)
        origin = nonfinite.origin(self._job.inputs[onnx], feed.batch, error.row)
        return StageError(f"{what}; {origin}", error.next_step)

    def judged(self) -> dict[str, dict[str, JSON]]:
        """What the user's metric says of each model, by its name in the report; empty where there is none.

        Raises:
            StageError: The function fails, or gives no numbers.
        """
        if self._outputs is None:
            return {}
        self._job.progress(f"judge by {self._outputs.metric.called}", None)
        found = self._outputs.metric.judge(self._outputs.kept, self._outputs.labels)
        return {key(who): self._outputs.metric.result(found[REFERENCE], found[who]) for who in self.models}


def _narrowed(got: Mapping[str, Array], expected: Mapping[str, Array], reference: str) -> Mapping[str, Array]:
    """Of golden outputs there need not be one for each of the model's."""
    return {name: got[name] for name in got if name in expected} if reference == "golden" else got


def key(who: str) -> str:
    """`candidate` or `engine`, as the report calls them."""
    return who.removeprefix("the ")
