"""The stage `surgery`: passes over the model in the order that the flow lists them, and a check of what it computes.

By default what every later stage and TensorRT would rather not see is computed, fused or dropped: constants are folded,
Conv + BatchNormalization become one Conv, Identity and dead nodes go, shapes are inferred, and Q/DQ that the model came
with are held to TensorRT's rules. Inputs and outputs keep their names, order and types. `stages.passes` has all passes;
a user's own is a Python function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stages import onnx_data, onnx_file, profiles
from stages.agreement import DisagreementError, NotComparedError, compare
from stages.allowed import require, require_at_least
from stages.passes import entries, own
from stages.passes.entries import Listed
from stages.stage import JSON, Job, Metrics, Stage, StageError

if TYPE_CHECKING:
    from onnx import ModelProto

DEFAULT = ("adopt", "fold", "drop_identities", "fuse_conv_bn", "drop_dead", "infer_shapes", "check_qdq")
"""What a flow that says nothing gets. Fusing comes before calibration, so that scales are those of what runs."""


@dataclass(frozen=True)
class SurgeryConfig:
    """What is done, and how it is checked.

    Attributes:
        passes: The passes in order, each a name or `{pass: NAME, OPTION: VALUE, …}`; `package.module.callable` is the
            user's own.
        first: Further passes before these: `first=[{pass: set_dims, dims: {batch: 1}}]`.
        then: Further passes after these: `then=[{pass: mark_outputs, tensors: [relu1]}]`.
        tolerance: How far outputs may be from the model's as it came, as a share of their largest value; null: the
            two are not compared.
        compare_max_bytes: A model with more bytes of weights is not compared here: running it would take longer than
            all passes.
    """

    passes: list[Any] = field(default_factory=lambda: list(DEFAULT))
    first: list[Any] = field(default_factory=list)
    then: list[Any] = field(default_factory=list)
    tolerance: float | None = 1e-3
    compare_max_bytes: int = 268435456

    def __post_init__(self) -> None:
        for key in ("passes", "first", "then"):
            # In full, so that the key has every option, also those at their defaults.
            object.__setattr__(self, key, entries.checked(getattr(self, key), key))
        require(self.tolerance is None or self.tolerance >= 0, "tolerance", self.tolerance, "0 and more, or null")
        require_at_least(self, 0, "compare_max_bytes")

    @property
    def own_passes(self) -> list[str]:
        """The user's own passes: `package.module.callable`."""
        return [entry["pass"] for entry in (*self.first, *self.passes, *self.then) if entries.is_own(entry["pass"])]


def surgery(job: Job[SurgeryConfig]) -> Metrics:
    """Writes the model that the passes leave.

    Raises:
        StageError: The model cannot be read, a pass cannot do its work, or a pass changed what the model computes.
    """
    operation = _Operation(job)
    model = operation.run()
    onnx_file.write(model, job.out / STAGE.outputs["onnx"])
    return operation.metrics()


class _Operation:
    """One run of the passes.

    A pass that changes results on purpose ends a stretch of the list: the model is compared with what it was at the
    stretch's beginning, and what comes after the pass with what the pass left.
    """

    def __init__(self, job: Job[SurgeryConfig]) -> None:
        self.job, self.config = job, job.config
        self.passes = entries.listed([*self.config.first, *self.config.passes, *self.config.then])
        self.reports: list[Metrics] = []
        self.comparisons: list[JSON] = []
        self.profiles = profiles.profiles_of(job.facts.get("profiles"))
        self.before: Callable[[], ModelProto] = lambda: onnx_file.read(job.inputs["onnx"])

    def run(self) -> ModelProto:
        model = onnx_file.read(self.job.inputs["onnx"])
        stretch: list[Listed] = []
        for number, each in enumerate(self.passes):
            self.job.progress(each.name, 0.8 * number / len(self.passes))
            if not each.keeps_results:
                self._compare(stretch, model)
                stretch = []
            self.reports.append(_run_measured(each, model))
            if each.keeps_results:
                stretch.append(each)
            else:
                self.before = _copies(model)
        self.job.progress("compare", 0.8)
        self._compare(stretch, model)
        return model

    def metrics(self) -> Metrics:
        ends = [(report["nodes_before"], report["bytes_before"]) for report in self.reports[:1]]
        ends += [(report["nodes_after"], report["bytes_after"]) for report in self.reports[-1:]]
        totals: Metrics = {}
        if ends:
            (nodes_before, bytes_before), (nodes_after, bytes_after) = ends
            totals = {
                "nodes_before": nodes_before,
                "nodes_after": nodes_after,
                "bytes_before": bytes_before,
                "bytes_after": bytes_after,
            }
        return {**totals, "passes": self.reports, "comparisons": self.comparisons}

    def _compare(self, stretch: Sequence[Listed], model: ModelProto) -> None:
        """Holds `model` to what it was before the passes of `stretch`.

        Raises:
            StageError: One of them changed what it computes; it is named.
        """
        if not stretch:
            return
        names = [each.name for each in stretch]
        result: dict[str, JSON] = {"passes": names}
        try:
            result.update(self._agreement(stretch, self.before(), model))
        except NotComparedError as why:
            result.update({"compared": False, "reason": str(why)})
        except DisagreementError as error:
            raise self._blame(stretch, str(error)) from error
        self.comparisons.append(result)

    def _agreement(self, stretch: Sequence[Listed], before: ModelProto, after: ModelProto) -> Mapping[str, JSON]:
        if self.config.tolerance is None:
            raise NotComparedError("tolerance is null")
        weights = sum(onnx_data.nbytes(tensor) for tensor in before.graph.initializer)
        if weights > self.config.compare_max_bytes:
            raise NotComparedError(f"it has {weights} bytes of weights, above {self.config.compare_max_bytes}")
        agreement = compare(before, after, self.profiles, self.config.tolerance, _renamed(stretch))
        return agreement.result()

    def _blame(self, stretch: Sequence[Listed], what: str) -> StageError:
        """Runs the passes of `stretch` again, one by one, until the first that makes a difference."""
        model = self.before()
        for number, each in enumerate(stretch):
            _run(each, model)
            try:
                self._agreement(stretch[: number + 1], self.before(), model)
            except NotComparedError:
                continue  # on the way the model may be one that cannot be run: what is left of it counts
            except DisagreementError as error:
                return _changed(f"pass {each.name} changed", str(error))
        return _changed(f"the passes {', '.join(each.name for each in stretch)} changed", what)


def _changed(who: str, what: str) -> StageError:
    return StageError(
        f"{who} what the model computes: {what}",
        "leave the pass out of steps.surgery.config.passes; if it is meant to, give it changes_results: true; if that "
        "is rounding, raise steps.surgery.config.tolerance",
    )


def _renamed(stretch: Sequence[Listed]) -> dict[str, str]:
    """The names now of what was called otherwise at the beginning of `stretch`."""
    found: dict[str, str] = {}
    for each in stretch:
        news: Mapping[str, str] = each.options.tensors if each.name == "rename" else {}
        moved = {old: news.get(now, now) for old, now in found.items()}
        found = {**{old: new for old, new in news.items() if old not in found.values()}, **moved}
    return found


def _copies(model: ModelProto) -> Callable[[], ModelProto]:
    from onnx import ModelProto

    kept = ModelProto()
    kept.CopyFrom(model)

    def copy() -> ModelProto:
        made = ModelProto()
        made.CopyFrom(kept)
        return made

    return copy


def _run_measured(each: Listed, model: ModelProto) -> Metrics:
    nodes, size = _count(model), onnx_file.size(model)
    did = _run(each, model)
    return {
        "pass": each.name,
        "nodes_before": nodes,
        "nodes_after": _count(model),
        "bytes_before": size,
        "bytes_after": onnx_file.size(model),
        **did,
    }


def _count(model: ModelProto) -> int:
    """The nodes of the graph and of all subgraphs."""
    return sum(1 for _ in onnx_file.walk(model.graph.node))


def _run(each: Listed, model: ModelProto) -> Metrics:
    if each.declared is None:
        return own.run(model, each.name, each.options)
    return each.declared.run(model, each.options)


def _facts(config: SurgeryConfig) -> tuple[str, ...]:
    """Where the models are compared depends on the profiles; what the user's own passes do, on what they import."""
    return (
        *(("profiles",) if config.tolerance is not None else ()),
        *(("pass_packages",) if config.own_passes else ()),
    )


STAGE = Stage(
    name="surgery",
    version=3,
    config=SurgeryConfig,
    run=surgery,
    inputs=("onnx",),
    optional=("passes",),  # the source of the user's own
    outputs={"onnx": "model.onnx"},
    tools=("onnx", "onnxruntime", "numpy"),
    facts_when=_facts,
    keeps_fp32=lambda config: {each["pass"] for each in (*config.first, *config.passes, *config.then)} <= {*DEFAULT},
)
