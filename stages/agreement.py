"""Whether a changed model still computes what it did: both run side by side on ONNX Runtime, on the same inputs.

Inputs are drawn at the min, opt and max shapes of every profile; of a model that has dynamic dims and no profile, at
1, 2 and 3. Two outputs agree where their largest difference is at most `tolerance` of the largest value (of 1e-3, where
that is less), NaN and infinities stand in the same places, and of whole numbers, booleans and strings no larger a share
than that differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stages import onnx_file, profiles
from stages.batches import Input, model_inputs
from stages.folding import RANDOM
from stages.generated import generate
from stages.onnx_session import open_session
from stages.stage import JSON, StageError
from stages.wording import first_line

if TYPE_CHECKING:
    from onnx import ModelProto

    from stages.batches import Array

SEED = 20

SMALLEST = 1e-3
"""An output whose largest value is below this counts as if it had this one: a detector's sigmoid of noise is 1e-7
everywhere, and the rounding of the fused convolutions before it as large."""

FREE_SIZES = (1, 2, 3)
"""Sizes for dynamic dims that no profile gives."""


class DisagreementError(Exception):
    """The changed model computes something else.

    Args:
        what: What differs, where, and by how much.
    """


class NotComparedError(Exception):
    """The two cannot be compared.

    Args:
        why: In words.
    """


@dataclass
class Agreement:
    """How far two models agreed.

    Attributes:
        runs: How many runs were compared.
        worst: The largest difference of floats, as a share of the largest value of its output.
        skipped: Why a run was left out: the reference itself could not do it.
    """

    runs: int = 0
    worst: float = 0.0
    skipped: list[str] = field(default_factory=list)

    def result(self) -> dict[str, JSON]:
        """The numbers, as the record holds them."""
        return {"compared": True, "runs": self.runs, "worst_difference": self.worst, "skipped": self.skipped}


def compare(
    reference: ModelProto,
    candidate: ModelProto,
    found: Sequence[profiles.Profile],
    tolerance: float,
    renamed: Mapping[str, str],
) -> Agreement:
    """Runs both.

    Args:
        reference: The model before.
        candidate: The model after. It may have further outputs, other types of inputs and outputs, and dims fixed.
        found: The profiles of the reference.
        tolerance: See above; of outputs in fp16 and bf16 at least four steps of their type.
        renamed: The candidate's names of inputs and outputs by the reference's, where they differ.

    Raises:
        DisagreementError: They do not agree, or only the candidate cannot be run.
        NotComparedError: The reference cannot be run here.
    """
    _refuse_random(reference)
    before = _open(reference)
    inputs = _inputs(reference)
    try:
        after = _open(candidate)
    except NotComparedError as error:
        _require_one_run(before, _feeds(inputs, candidate, found, renamed))
        raise DisagreementError(f"afterwards {error}") from error
    names = {name: renamed.get(name, name) for name in before.outputs}
    missing = [name for name in names.values() if name not in after.outputs]
    unknown = set(after.inputs) - {renamed.get(wanted.name, wanted.name) for wanted in inputs}
    if missing or unknown:
        what = f"the output {missing[0]!r} is gone" if missing else f"the input {sorted(unknown)[0]!r} is new"
        raise DisagreementError(what)
    agreement = Agreement()
    for feed in _feeds(inputs, candidate, found, renamed):
        _run_both(before, after, feed, names, renamed, tolerance, agreement)
    if not agreement.runs:
        raise NotComparedError(f"it cannot be run: {agreement.skipped[0]}" if agreement.skipped else "no inputs fit it")
    return agreement


def _require_one_run(before: _Opened, feeds: Iterator[Mapping[str, Array]]) -> None:
    """A model that cannot be run with these shapes at all may well be refused once they are fixed.

    Raises:
        NotComparedError: The reference cannot be run.
    """
    why = "no inputs fit it"
    for feed in feeds:
        try:
            before.run(feed)
            return
        except Exception as error:  # ONNX Runtime's errors have no common base
            why = first_line(error)
    raise NotComparedError(f"it cannot be run: {why}")


@dataclass(frozen=True)
class _Opened:
    session: Any
    inputs: Mapping[str, str]
    outputs: Sequence[str]

    def run(self, feed: Mapping[str, Array]) -> list[Any]:
        taken = {name: values for name, values in feed.items() if name in self.inputs}
        return list(self.session.run(list(self.outputs), taken))


def _open(model: ModelProto) -> _Opened:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_cpu_mem_arena = False  # else both models hold what their largest run took
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = open_session(model, options)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise NotComparedError(f"ONNX Runtime cannot load it: {first_line(error)}") from error
    inputs = {value.name: value.type for value in session.get_inputs()}
    return _Opened(session, inputs, [value.name for value in session.get_outputs()])


def _refuse_random(model: ModelProto) -> None:
    random = next((node.op_type for node in onnx_file.iter_nodes(model) if node.op_type in RANDOM), None)
    if random is not None:
        raise NotComparedError(f"{random} gives other numbers in every run")


def _inputs(model: ModelProto) -> list[Input]:
    try:
        inputs = model_inputs(model)
    except StageError as error:
        raise NotComparedError(error.what) from error
    odd = next((wanted for wanted in inputs if wanted.shape is None), None)
    if odd is not None:
        raise NotComparedError(f"nobody knows how many dims its input {odd.name!r} has")
    return inputs


def _feeds(
    inputs: Sequence[Input], candidate: ModelProto, found: Sequence[profiles.Profile], renamed: Mapping[str, str]
) -> Iterator[Mapping[str, Array]]:
    """Inputs of the reference, in shapes that the candidate takes too, and with values that its types can hold."""
    shapes = {value.name: value for value in candidate.graph.input}
    wanted = [_narrowed(each, shapes.get(renamed.get(each.name, each.name))) for each in inputs]
    try:
        for feed, _ in generate(wanted, _free_profile(wanted) if not found else _fitting(found, wanted), 0, SEED):
            yield feed
    except StageError as error:
        raise NotComparedError(error.what) from error


def _narrowed(wanted: Input, value: Any) -> Input:
    if value is None or not value.type.tensor_type.HasField("shape"):
        return wanted
    dims = [onnx_file.dimension(dim) for dim in value.type.tensor_type.shape.dim]
    shape = wanted.shape or ()
    if len(dims) != len(shape):
        return wanted
    return Input(
        wanted.name, wanted.dtype, tuple(b if isinstance(b, int) else a for a, b in zip(shape, dims, strict=True))
    )


def _fitting(found: Sequence[profiles.Profile], inputs: Sequence[Input]) -> list[profiles.Profile]:
    """The profiles without the dims that were fixed since."""
    shapes = {wanted.name: wanted.shape or () for wanted in inputs}

    def fitted(name: str, shape: profiles.Shape) -> profiles.Shape:
        pairs = zip(shapes[name], shape, strict=True)
        return tuple(dim if isinstance(dim, int) else size for dim, size in pairs)

    return [
        profiles.Profile(
            profile.name,
            {
                name: each
                if each.values
                else profiles.Range(fitted(name, each.min), fitted(name, each.opt), fitted(name, each.max))
                for name, each in profile.ranges.items()
                if name in shapes and (each.values or len(shapes[name]) == len(each.min))
            },
        )
        for profile in found
    ]


def _free_profile(inputs: Sequence[Input]) -> list[profiles.Profile]:
    dynamic = {w.name: w.shape for w in inputs if w.shape and not all(isinstance(dim, int) for dim in w.shape)}
    ranges = {}
    for name, shape in dynamic.items():
        low, opt, high = (tuple(dim if isinstance(dim, int) else size for dim in shape) for size in FREE_SIZES)
        ranges[name] = profiles.Range(low, opt, high)
    return [profiles.Profile("free", ranges)] if ranges else []


def _run_both(
    before: _Opened,
    after: _Opened,
    feed: Mapping[str, Array],
    names: Mapping[str, str],
    renamed: Mapping[str, str],
    tolerance: float,
    agreement: Agreement,
) -> None:
    shapes = ", ".join(f"{name} {values.shape}" for name, values in feed.items()) or "no inputs"
    mine, theirs = _cast(feed, after, renamed)
    try:
        expected = dict(zip(before.outputs, before.run(mine), strict=True))
    except Exception as error:
        agreement.skipped.append(f"{shapes}: {first_line(error)}")
        return
    try:
        got = dict(zip(after.outputs, after.run(theirs), strict=True))
    except Exception as error:
        raise DisagreementError(f"at {shapes} it fails: {first_line(error)}") from error
    agreement.runs += 1
    for old, new in names.items():
        share = distance(expected[old], got[new], tolerance)
        if isinstance(share, str):
            raise DisagreementError(f"at {shapes} the output {new!r} {share}")
        agreement.worst = max(agreement.worst, share)


def _cast(
    feed: Mapping[str, Array], after: _Opened, renamed: Mapping[str, str]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The feed for both, where an input has another type now: rounded to that one for both."""
    theirs = {}
    mine = dict(feed)
    for name, values in feed.items():
        new = renamed.get(name, name)
        dtype = _NUMPY.get(after.inputs.get(new, ""), None)
        theirs[new] = values if dtype is None else values.astype(dtype, copy=False)
        mine[name] = theirs[new].astype(values.dtype, copy=False)
    return mine, theirs


_NUMPY = {"tensor(float)": "float32", "tensor(double)": "float64", "tensor(bool)": "bool", "tensor(float16)": "float16"}
_NUMPY |= {f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def distance(expected: Any, got: Any, tolerance: float) -> float | str:
    """How far two outputs are apart, or in words what differs.

    Args:
        expected: An array, or what ONNX Runtime hands out for sequences (a list), maps and empty optionals (None).
        got: The same of the changed model.
        tolerance: The largest share that is allowed.
    """
    if expected is None or got is None or isinstance(expected, (list, dict)) or isinstance(got, (list, dict)):
        return _distance_of_containers(expected, got, tolerance)
    if expected.shape != got.shape:
        return f"has the shape {got.shape} instead of {expected.shape}"
    if not expected.size:
        return 0.0
    return _distance_of_arrays(expected, got, tolerance)


def _distance_of_containers(expected: Any, got: Any, tolerance: float) -> float | str:
    if type(expected) is not type(got) or (expected is not None and len(expected) != len(got)):
        return f"is {_described(got)} instead of {_described(expected)}"
    if expected is None:
        return 0.0
    if isinstance(expected, dict):
        return 0.0 if expected == got else "is another map"
    worst = 0.0
    for one, other in zip(expected, got, strict=True):
        share = distance(one, other, tolerance)
        if isinstance(share, str):
            return share
        worst = max(worst, share)
    return worst


def _described(value: Any) -> str:
    return "nothing" if value is None else f"{type(value).__name__} of {len(value)}"


def _distance_of_arrays(expected: Array, got: Array, tolerance: float) -> float | str:
    import numpy as np
    from ml_dtypes import finfo  # NumPy's, and those of the types that onnx adds

    if not all("float" in values.dtype.name for values in (expected, got)):  # bfloat16 is of kind V to NumPy
        share = float((expected != got).mean())
        return share if share <= tolerance else f"differs in {share:.2%} of its values"
    step = max(float(finfo(values.dtype).eps) for values in (expected, got))  # type: ignore[no-untyped-call]
    e, g = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(e)
    with np.errstate(invalid="ignore"):
        if not np.array_equal(e[~finite], g[~finite], equal_nan=True) or not np.isfinite(g[finite]).all():
            return "has NaN or infinities in other places"
    largest = float(np.abs(e[finite]).max(initial=0.0))
    error = float(np.abs(e[finite] - g[finite]).max(initial=0.0))
    share = error / max(largest, SMALLEST)
    allowed = max(tolerance, 4 * step)
    return share if share <= allowed else f"differs by {error:.3g}, {share:.2g} of its largest value {largest:.3g}"
