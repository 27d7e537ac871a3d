"""What runs inside a plan, in which types, and which nodes of the model each layer computes: a report for each plan.

`build` writes it beside each plan as its output `layers`; the verb `trtforge layers` reads that, or makes one of any
plan. A plan of TensorRT-RTX 1.7 is read as it lies, `stages.plan_graph`. The report, `layers.json`::

    {"format": 1,
     "source": "plan",              # "plan": read off the file; "log": told by the log of its build, which knows no
                                    # weights; "engine": told by TensorRT's inspector, on a GPU
     "unread_reason": null,         # why there are no layers; then "profiles" is empty
     "model_reason": null,          # why nothing is said of the model ("operators", "macs"), where none was given
     "timed_reason": "no GPU of 8.9 here",    # why no layer has a time; null where they have
     "profiles": [                  # one for each optimization profile, in the plan's order
       {"profile": "default",       # its name; null where nobody knows it
        "tf32": true,               # whether products in FP32 may be computed in TF32; null where the plan does not say
        "layers": [                 # in the order in which they run; waits and signals between streams are left out
          {"name": "conv1", "kind": "corrltn",
           "product": true,         # a convolution, a matrix product or a fused attention
           "precision": "INT8",     # what it computes in, see below
           "reads": ["int8", "int8", "float"], "weights": ["int8", "float"], "writes": ["int8"],   # the plan's words
           "weight_bytes": 9344,    # of what it reads and the plan holds: weights, biases, scales
           "nodes": ["conv1", "relu1"],         # the ONNX nodes it computes, whole or in part; one may be in several
           "operators": ["Conv", "Relu"],       # what each of these is, null where unknown; [] without the model
           "macs": 589824,          # multiply-accumulates at the profile's opt; 0 of what has no product; null: unknown
           "ms": null}],            # mean time of one run, GPU only
        "precisions": {             # only those that occur
          "INT8": {"layers": 9, "products": 9, "macs": 5308416, "weight_bytes": 56160, "ms": null},
          "FP32": {"layers": 6, "products": 0, "macs": 0, "weight_bytes": 3964, "ms": null}},
        "unplaced": {"gemm7": 480}, # products of the model that no layer names, and their MACs (null: unknown)
        "uncounted": ["conv9"]}]}   # products of the model whose MACs are not known, since a shape is not

`precisions` counts layers, products, MACs and time by what a layer computes in, and weight bytes by the type that they
are stored in, each weight once: `int8_weights` stores in INT8 and computes in FP16. Shares are these by their sums.

What a layer computes in: a product in the type of its factors, so in INT8, FP8 or FP4 only where both are codes; any
other layer in the widest type among what it reads and writes, so in INT8 only where it moves codes. Conversions between
the two (`Q`, `DQ`) count as what is wider.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import builder_log, macs, onnx_file, plan_graph, profiles, tensorrt_words
from stages.builder_log import EngineLayer
from stages.plan_graph import Graph, Operation
from stages.stage import JSON, Metrics, StageError

if TYPE_CHECKING:
    from onnx import ModelProto

FORMAT = 1
"""The report's own version: raised when a field changes its meaning or goes away."""

FILE = "layers.json"

PRECISIONS: Mapping[str, str] = {
    "double": "FP64",
    "float": "FP32",
    "half": "FP16",
    "bf16": "BF16",
    "fp8_e4m3": "FP8",
    "int8": "INT8",
    "uint8": "UINT8",
    "fp4_e2m1": "FP4",
    "int4": "INT4",
    "int64": "INT64",
    "int32": "INT32",
    "bool": "BOOL",
}
"""What people call the types of a plan, the wider first; whole numbers, which positions are computed in, last."""

CODES = ("int8", "fp8_e4m3", "fp4_e2m1")
"""What a product computes in where both of its factors are such."""

UNKNOWN = "?"

_SAID = ("source", "unread_reason", "model_reason", "timed_reason")
_NOT_TIMED = "not asked for: `trtforge layers --time` times them where a GPU executes the plan"
_NO_MODEL = "the model that the plan was built from was not given"


@dataclass(frozen=True)
class Layer:
    """One step of a plan; the fields are those of the report."""

    name: str
    kind: str
    product: bool
    precision: str
    reads: tuple[str, ...]
    weights: tuple[str, ...]
    writes: tuple[str, ...]
    weight_bytes: int
    nodes: tuple[str, ...]
    operators: tuple[str | None, ...] = ()
    macs: int | None = None
    ms: float | None = None


@dataclass(frozen=True)
class Count:
    """What there is of one precision; the fields are those of the report."""

    layers: int = 0
    products: int = 0
    macs: int | None = None
    weight_bytes: int = 0
    ms: float | None = None


@dataclass(frozen=True)
class ProfileLayers:
    """What runs for one optimization profile; the fields are those of the report.

    `constants` are the bytes that the plan holds of each precision, which `precisions` says in the report.
    """

    profile: str | None
    tf32: bool | None
    layers: Sequence[Layer]
    constants: Mapping[str, int]
    unplaced: Mapping[str, int | None] = field(default_factory=dict)
    uncounted: Sequence[str] = ()

    @property
    def precisions(self) -> dict[str, Count]:
        """Layers, MACs, weights and time by precision, the widest first."""
        return {
            name: self._count(name) for name in _sorted({each.precision for each in self.layers} | {*self.constants})
        }

    def _count(self, precision: str) -> Count:
        found = [layer for layer in self.layers if layer.precision == precision]
        times = [layer.ms for layer in found if layer.ms is not None]
        known = [layer.macs for layer in found if layer.macs is not None]
        return Count(
            len(found),
            sum(layer.product for layer in found),
            sum(known) if known or not found else None,
            self.constants.get(precision, 0),
            round(sum(times), 6) if times else None,
        )


@dataclass(frozen=True)
class Report:
    """What runs inside a plan; the fields are those of the report."""

    source: str
    unread_reason: str | None
    model_reason: str | None
    timed_reason: str | None
    profiles: Sequence[ProfileLayers]

    def document(self) -> dict[str, Any]:
        """The report as it is written."""
        found = [
            {
                "profile": each.profile,
                "tf32": each.tf32,
                "layers": [asdict(layer) for layer in each.layers],
                "precisions": {name: asdict(count) for name, count in each.precisions.items()},
                "unplaced": dict(each.unplaced),
                "uncounted": list(each.uncounted),
            }
            for each in self.profiles
        ]
        return {"format": FORMAT, **{name: getattr(self, name) for name in _SAID}, "profiles": found}

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Report:
        """Reads what `document` gave.

        Raises:
            StageError: It is of another format.
        """
        if document.get("format") != FORMAT:
            raise StageError(
                f"a report of layers of format {document.get('format')}, and {FORMAT} is known", "upgrade trtforge"
            )
        said = {name: document[name] for name in _SAID}
        return cls(**said, profiles=[_profile_of(each) for each in document["profiles"]])

    def shares(self) -> dict[str, dict[str, float | None]]:
        """Of each precision its share of products, MACs and weight bytes, over all profiles; None of nothing.

        MACs that are in no layer, or not known, are in no precision and not in the sum.
        """
        counts = [each.precisions for each in self.profiles]
        names = _sorted({name for each in counts for name in each})
        sums = {
            what: {name: sum(getattr(each.get(name, Count()), what) or 0 for each in counts) for name in names}
            for what in ("products", "macs", "weight_bytes")
        }
        return {name: {what: _share(of[name], sum(of.values())) for what, of in sums.items()} for name in names}


def model_of(paths: Sequence[Path] | None) -> ModelProto | None:
    """The model in these files: the ONNX file, and its data where it has any; None where there are none.

    Raises:
        StageError: It is no ONNX.
    """
    return onnx_file.read(paths) if paths else None


def of_plan(path: Path, model: ModelProto | None, profiles_fact: Any, log: str = "") -> Report:
    """What the plan at `path` says itself, or where it says nothing, the log of its build: no GPU is asked.

    Args:
        path: The plan.
        model: What it was built from; its weights may be missing.
        profiles_fact: The fact `profiles` of the build; None where nobody knows it.
        log: What the build logged.

    Raises:
        StageError: The file is no plan, or a damaged one.
    """
    reason = plan_graph.why_unreadable(path)
    found = profiles.profiles_of(profiles_fact)
    if reason and (told := builder_log.engine_layers(log)):
        return _of_log(told, model, found)
    graphs = plan_graph.read(path) if reason is None else []
    read = [
        with_model(_profile(graph, each.name if each else None), model, each)
        for graph, each in zip(graphs, found if len(found) == len(graphs) else [None] * len(graphs), strict=True)
    ]
    return Report("plan", reason, None if model is not None else _NO_MODEL, _NOT_TIMED, read)


def _of_log(told: Sequence[EngineLayer], model: ModelProto | None, found: Sequence[profiles.Profile]) -> Report:
    """What the log says of the layers, those of all profiles in one."""
    name = found[0].name if len(found) == 1 else None
    read = ProfileLayers(name, None, [_logged(each, model) for each in told], {})
    at_opt = with_model(read, model, found[0] if found else None)
    return Report("log", None, None if model is not None else _NO_MODEL, _NOT_TIMED, [at_opt])


def _logged(told: EngineLayer, model: ModelProto | None) -> Layer:
    """A layer as the log tells of it; the weight of a product is taken to be of the type of what is multiplied by it.

    That holds in a strongly typed network, where a product has one type.
    """
    reads, writes = (tuple(map(tensorrt_words.type_of, kinds)) for kinds in (told.reads, told.writes))
    product = tensorrt_words.is_product(told.kind)
    factors = reads[:2] if len(reads) > 1 and tensorrt_words.takes_two(told.kind) else reads[:1] * 2
    known = {macs.plan_name(node) for node in model.graph.node if node.output} if model is not None else set[str]()
    parts = [part.removeprefix("PWN(").removesuffix(")") for part in told.name.split(" + ")]
    nodes = tuple(dict.fromkeys(part for part in parts if part in known or model is None))
    return Layer(
        told.name, told.kind, product, precision(product, factors, (*reads, *writes)), reads, (), writes, 0, nodes
    )


def with_model(read: ProfileLayers, model: ModelProto | None, profile: profiles.Profile | None) -> ProfileLayers:
    """`read` with what the model says of its layers' nodes: their operators, and their MACs."""
    if model is None:
        return read
    operators = {macs.plan_name(node): node.op_type for node in model.graph.node if node.output}
    counted = macs.macs(model, profile)
    places = {name: _places(read.layers, name) for name in counted}
    own: list[list[int | None]] = [[] for _ in read.layers]
    for name, indices in places.items():
        for index, part in zip(indices, _parts(counted[name], len(indices)), strict=True):
            own[index].append(part)
    found = [
        replace(layer, operators=tuple(operators.get(node) for node in layer.nodes), macs=_sum(own[index]))
        for index, layer in enumerate(read.layers)
    ]
    unplaced = {name: counted[name] for name, indices in places.items() if not indices}
    return replace(
        read,
        layers=found,
        unplaced=unplaced,
        uncounted=[name for name, number in counted.items() if number is None and name not in unplaced],
    )


def keep(model: ModelProto, path: Path, profiles_fact: Any, out: Path, log: str = "") -> Metrics:
    """Writes the report of the plan at `path`, built from `model`, into the directory `out`, and returns its metrics.

    It takes 25 to 150 ms for models of 30 to 350 nodes, most of them to infer shapes; where these are computed in the
    graph, 0.4 s of the 9 s that a MiniLM builds.

    Raises:
        StageError: The plan is damaged.
    """
    report = of_plan(path, model, profiles_fact, log)
    write(report, out / FILE)
    return metrics(report)


def write(report: Report, path: Path) -> None:
    """Writes `layers.json`."""
    path.write_text(json.dumps(report.document(), indent=1, ensure_ascii=False, allow_nan=False) + "\n", "utf-8")


def metrics(report: Report) -> Metrics:
    """What `build` and `layers` tell of the report: `layers_run` (of the first profile) and `precisions` (shares)."""
    shares: dict[str, JSON] = {name: dict(share) for name, share in report.shares().items()}
    return {"layers_run": len(report.profiles[0].layers) if report.profiles else None, "precisions": shares or None}


def precision(is_product: bool, factors: Sequence[str], types: Iterable[str]) -> str:
    """What a layer computes in.

    Args:
        is_product: Whether it is a convolution, a matrix product or a fused attention.
        factors: Of a product, the types among which its two factors are, in the plan's words.
        types: Of all that it reads and writes.
    """
    if is_product:
        codes = [kind for kind, number in Counter(factors).items() if kind in CODES and number >= 2]
        floats = [kind for kind in factors if kind not in CODES]
        kinds = codes[:1] or floats or list(factors)
    else:
        kinds = list(types)
    return min((PRECISIONS.get(kind, UNKNOWN) for kind in kinds), key=_width, default=UNKNOWN)


def _width(name: str) -> int:
    order = [*PRECISIONS.values(), UNKNOWN]
    return order.index(name)


def _sorted(names: Iterable[str]) -> list[str]:
    return sorted(names, key=_width)


def _profile(graph: Graph, name: str | None) -> ProfileLayers:
    constants: Counter[str] = Counter()
    for kind, size in graph.constants.items():
        constants[PRECISIONS.get(kind, UNKNOWN)] += size
    found = [_layer(operation) for operation in graph.operations if operation.reads or operation.writes]
    return ProfileLayers(name, graph.tf32, found, dict(constants))


def _layer(operation: Operation) -> Layer:
    return Layer(
        name=operation.name,
        kind=operation.kind,
        product=operation.is_weighted,
        precision=precision(operation.is_weighted, operation.factors, (*operation.reads, *operation.writes)),
        reads=operation.reads,
        weights=operation.weights,
        writes=operation.writes,
        weight_bytes=operation.weight_bytes,
        nodes=operation.nodes,
    )


def _places(found: Sequence[Layer], node: str) -> list[int]:
    """The layers that compute the product `node`: those that are products, where there are such.

    What scales and adds after a product, in a layer of its own, names it, too.
    """
    naming = [index for index, layer in enumerate(found) if node in layer.nodes]
    return [index for index in naming if found[index].product] or naming[:1]


def _parts(number: int | None, count: int) -> list[int | None]:
    """`number` in `count` parts, as equal as can be, which add up to it."""
    if number is None:
        return [None] * count
    return [number // count + (index < number % count) for index in range(count)]


def _sum(parts: Sequence[int | None]) -> int | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _share(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None


def _profile_of(document: Mapping[str, Any]) -> ProfileLayers:
    return ProfileLayers(
        document["profile"],
        document["tf32"],
        [_layer_of(layer) for layer in document["layers"]],
        {name: count["weight_bytes"] for name, count in document["precisions"].items() if count["weight_bytes"]},
        document["unplaced"],
        document["uncounted"],
    )


def _layer_of(document: Mapping[str, Any]) -> Layer:
    values: dict[str, Any] = {k: tuple(value) if isinstance(value, list) else value for k, value in document.items()}
    return Layer(**values)
